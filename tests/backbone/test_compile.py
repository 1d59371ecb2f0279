"""torch.compile: one graph without breaks, few graphs for many sizes, and the values of the eager form."""

import re

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from rmt_mm import RMT, ops
from rmt_mm.ops import masa
from rmt_mm.ops.recorders import Call

from support import needs_torch
from support.archs import LEAST_ARCH, SMALL_ARCH

pytestmark = needs_torch('2.6', 'compiler that takes the backbone whole')


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()


@pytest.mark.parametrize(
    'mode', ['infer', *(pytest.param(mode, marks=pytest.mark.slow) for mode in ('infer with gradients', 'train'))]
)
def test_one_graph_without_breaks_and_few_for_many_sizes(mode):
    model = RMT(LEAST_ARCH).train(mode == 'train')
    counter = CompileCounterWithBackend('aot_eager')
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for height, width in ((64, 96), (96, 64), (128, 96), (80, 112), (160, 144), (100, 76), (224, 192), (61, 45)):
        with torch.set_grad_enabled(mode != 'infer'):
            outs = compiled(torch.randn(2, 3, height, width))
        if mode == 'train':
            sum(out.sum() for out in outs).backward()
    assert counter.frame_count <= 4, f'{counter.frame_count} compilations for 8 sizes'


def test_values_and_gradients_of_the_eager_form():
    model = RMT(LEAST_ARCH).double()  # in fp64, so that gradients that cancel are compared without rounding errors
    x = torch.randn(2, 3, 64, 96).double()
    shapes = ((2, 16, 16, 24), (2, 16, 8, 12), (2, 32, 4, 6), (2, 32, 2, 3))
    directions = [torch.randn(shape).double() for shape in shapes]
    compiled = torch.compile(model, backend='aot_eager', fullgraph=True)
    gradients = []
    for net in (model, compiled):
        model.zero_grad()
        outs = net(x)
        torch.autograd.backward(outs, directions)
        gradients.append([out.detach() for out in outs] + [p.grad.clone() for p in model.parameters()])
    for expected, out in zip(*gradients):
        assert float((out - expected).norm() / expected.norm().clamp(min=1e-6)) < 1e-6


@pytest.mark.slow
def test_tables_once_a_stage():
    """A compiled graph computes sine and cosine, and the log-decay of each axis, once a stage and not once a block."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    arch = {**SMALL_ARCH, 'depths': (2, 3, 4, 2)}
    with ops.use(attend='plain'):  # the kernel in C++ needs no log-decay of an axis
        torch.compile(RMT(arch).eval(), backend=backend, fullgraph=True)(torch.randn(1, 3, 64, 96))
    names = [str(node.target) for graph in graphs for node in graph.graph.nodes]
    for operation in ('sin', 'cos'):
        assert names.count(operation) == 4, operation
    assert names.count('abs') == 8  # distances along rows and along columns, in every stage


def operations(batch=1, train=False, export=False, arch=SMALL_ARCH):
    """Return the names of all operations of a compiled or exported model, joined."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    model, x = RMT(arch).train(train), torch.randn(batch, 3, 64, 96)
    with torch.set_grad_enabled(train):
        if export:
            graphs.append(torch.export.export(model, (x,)))
        else:
            torch.compile(model, backend=backend, fullgraph=True)(x)
    return ' '.join(str(node.target) for graph in graphs for node in graph.graph.nodes)


@pytest.mark.usefixtures('_tells_compilers_from_exporters')
@pytest.mark.parametrize('train', [False, True])
def test_compiled_models_call_the_kernel_in_cpp(train):
    """Once per line direction or map; an exported program holds no operation of this package."""
    if not masa.is_loaded():
        pytest.skip('the kernel in C++ is not built')
    arch = {**SMALL_ARCH, 'num_heads': tuple(dim // 8 for dim in SMALL_ARCH['embed_dims'])}
    calls = sum(
        depth * (2 if decomposed else 1) for depth, decomposed in zip(SMALL_ARCH['depths'], SMALL_ARCH['decomposed'])
    )
    assert operations(train=train, arch=arch).count('rmt_mm.masa') == calls
    if not train:
        assert 'rmt_mm' not in operations(export=True, arch=arch)


def count_as_strided(*args, **kwargs):
    return operations(*args, **kwargs).count('as_strided')


@pytest.fixture
def _tells_compilers_from_exporters():
    """Skip where torch answers is_exporting with True while it compiles, as 2.9 does."""
    told = []

    def ask(x):
        told.append(Call.of(x).exported)
        return x + 1

    torch.compile(ask, backend='eager')(torch.zeros(1))
    if told != [False]:
        pytest.skip('this torch cannot tell a compiler from an exporter')


@pytest.mark.slow
@pytest.mark.usefixtures('_tells_compilers_from_exporters')
def test_a_compiled_batch_of_one_names_its_strides():
    """Inductor needs that for one image alone; an exported file would hold it, and its gradient is slow."""
    with ops.use(attend='plain', dwconv='plain'):  # the kernels in C++ take maps
        # Four Linear layers, CPE, the FFN's convolution, LCE's, what LCE takes and what it returns.
        assert count_as_strided(1) == 9 * sum(SMALL_ARCH['depths'])
        assert count_as_strided(2) == count_as_strided(1, train=True) == count_as_strided(1, export=True) == 0


@pytest.mark.slow
@pytest.mark.parametrize('batch', [1, 2])
def test_compiled_convolutions_stay_channels_last(batch):
    """In (B, C, H, W) layout, every convolution would need its map copied."""
    from torch._inductor.utils import run_and_get_code

    with torch.no_grad():
        _, codes = run_and_get_code(torch.compile(RMT(SMALL_ARCH).eval()), torch.randn(batch, 3, 96, 160))
    pattern = r'assert_size_stride\(\w+, \(([^)]*)\), \(([^)]*)\), .torch.ops.aten.convolution'
    outs = [
        [list(map(int, numbers.split(','))) for numbers in out] for code in codes for out in re.findall(pattern, code)
    ]
    assert len(outs) > 30
    assert all(stride[1] == 1 for _, stride in outs)


@pytest.mark.slow
def test_inductor_agrees():
    model = RMT(SMALL_ARCH).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for out, expected in zip(torch.compile(model)(x), model(x)):
            torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
