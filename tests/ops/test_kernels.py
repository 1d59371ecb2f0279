"""Every kernel computes what `plain` computes, gradients too; `plain` computes the formulas; fused kernels are used."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from rmt_mm import ops
from rmt_mm.arch import log_decay
from rmt_mm.backbone.ffn import FFN
from rmt_mm.backbone.layers import ResidualDWConv
from rmt_mm.ops import cuda, dispatch, eager, masa, tables
from rmt_mm.reference import log_line, log_manhattan
from rmt_mm.reference import rotate as explicit_rotation

from support import needs_torch

HEADS, DIM = 3, 8
LOG_DECAY = log_decay(HEADS, 2, 5)
SIZES = [(6, 10), (7, 3), (1, 9), (9, 1), (1, 1), (3, 40)]
BIASES = (tables.line_bias, tables.manhattan_bias, tables.manhattan_bias_by_row)


def position_tables(size, device='cpu', dim=DIM):
    return ops.PositionTables(LOG_DECAY, *size, dim, torch.device(device))


class Attention:
    """An operator on queries, keys and values."""

    def __init__(self, operator, *args):
        self.operator, self.args, self.layers = operator, args, nn.Module()

    def inputs(self, size):
        return [torch.randn(2, *size, HEADS, DIM) for _ in range(3)]

    def __call__(self, *qkv):
        return self.operator(*qkv, position_tables(qkv[0].shape[1:3]), *self.args)


class Projection(Attention):
    """The operator on a projection, with its result and the values side by side."""

    def inputs(self, size):
        return [torch.randn(2, *size, 3 * HEADS * DIM)]

    def __call__(self, qkv):
        return torch.cat(ops.attend(qkv, position_tables(qkv.shape[1:3]), *self.args), -1)


class Layers(Attention):
    """An operator on layers and a map."""

    def __init__(self, operator, *layers):
        self.operator, self.layers = operator, nn.ModuleList(layers)

    def inputs(self, size):
        return [torch.randn(2, *size, 16)]

    def __call__(self, x):
        return self.operator(*self.layers, x)


class Rotation(Attention):
    def inputs(self, size):
        return super().inputs(size)[:1]


# Operators as pinned, and what calls them.
CALLS = {
    'attend whole': lambda: Projection(ops.attend, False),
    'attend decomposed': lambda: Projection(ops.attend, True),
    'attend_lines rows': lambda: Attention(ops.attend_lines, 2),
    'attend_lines columns': lambda: Attention(ops.attend_lines, 1),
    'attend_map': lambda: Attention(ops.attend_map),
    'rotate': lambda: Rotation(ops.rotate),
    'linear': lambda: Layers(ops.linear, nn.Linear(16, 24)),
    'dwconv': lambda: Layers(lambda layer, x: layer(x), ResidualDWConv(16)),
    'ffn': lambda: Layers(ops.ffn, nn.Linear(16, 48), ResidualDWConv(48), nn.Linear(48, 16)),
}
KERNELS = [
    (call, kernel)
    for call in CALLS
    for kernel in ops.PRIORITY[call.split()[0]]
    if kernel not in ('plain', 'flex', 'float32', 'triton')  # the last three have tests of their own
]


def error(out, expected):
    return float((out.double() - expected.double()).norm()) / max(float(expected.double().norm()), 1.0)


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('call, kernel', KERNELS)
def test_values_and_gradients_of_plain(call, kernel, size):
    if kernel in ('masa', 'fused') and not masa.is_loaded():
        pytest.skip('the kernel in C++ is not built')
    operator, compute = call.split()[0], CALLS[call]()
    given = compute.inputs(size)
    results, direction = [], None
    for name in ('plain', kernel):
        inputs = [t.clone().requires_grad_() for t in given]
        compute.layers.zero_grad()
        with ops.use(**{operator: name}), torch.no_grad():
            forward = compute(*inputs)
            with torch.enable_grad():
                out = compute(*inputs)
        torch.testing.assert_close(out.detach(), forward)
        direction = torch.randn_like(out) if direction is None else direction
        out.backward(direction)
        assert all(torch.equal(*pair) for pair in zip(inputs, given)), 'an input was changed'
        results.append([forward, *(t.grad for t in inputs), *(p.grad for p in compute.layers.parameters())])
    for i, (plain, ours) in enumerate(zip(*results)):
        assert error(ours, plain) < (1e-4 if i else 1e-5)


def explicit(q, k, v, bias):
    """Return softmax(q k^T / sqrt(d) + bias) v, with tokens in the last dimension but one."""
    return (q @ k.transpose(-1, -2) / DIM**0.5 + bias).softmax(-1) @ v


def explicit_map(q, k, v):
    flat = [t.flatten(1, 2).transpose(1, 2) for t in (q, k, v)]
    out = explicit(*flat, log_manhattan(torch.tensor(LOG_DECAY).exp(), *q.shape[1:3]))
    return out.transpose(1, 2).unflatten(1, q.shape[1:3])


def explicit_rows(q, k, v):
    rows = [t.transpose(2, 3) for t in (q, k, v)]
    return explicit(*rows, log_line(torch.tensor(LOG_DECAY).exp(), q.shape[2])).transpose(2, 3)


def explicit_columns(q, k, v):
    return explicit_rows(*(t.transpose(1, 2) for t in (q, k, v))).transpose(1, 2)


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize(
    'call, expected',
    [
        ('attend_map', explicit_map),
        ('attend_lines rows', explicit_rows),
        ('attend_lines columns', explicit_columns),
        ('rotate', lambda x: explicit_rotation(x, 1.0 / 10000 ** torch.linspace(0, 1, DIM // 2))),
    ],
)
def test_plain_computes_the_formulas(call, expected, size):
    compute, results = CALLS[call](), []
    given = compute.inputs(size)
    direction = torch.randn_like(given[0])
    with ops.use('plain'):
        for function in (compute, expected):
            inputs = [t.clone().requires_grad_() for t in given]
            out = function(*inputs)
            out.backward(direction)
            results.append([out.detach(), *(t.grad for t in inputs)])
    for i, (ours, reference) in enumerate(zip(*results)):
        assert error(ours, reference) < (1e-4 if i else 1e-5)


@pytest.mark.parametrize('kernel', ['plain', 'complex'])
def test_rotation_in_bf16_is_computed_in_fp32(kernel):
    """An index of 67,200 is no number of bf16, nor are most phases."""
    x = torch.randn(1, 5, 300, HEADS, DIM).bfloat16()
    with ops.use(rotate=kernel):
        out = ops.rotate(x, position_tables((5, 300)))
        expected = ops.rotate(x.float(), position_tables((5, 300)))
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, expected.bfloat16(), rtol=0, atol=0)


def test_gradients_in_bf16_without_the_kernel_are_computed_in_float32():
    q, k, v = (torch.randn(1, 6, 10, HEADS, DIM).bfloat16().requires_grad_() for _ in range(3))
    for call in ('attend_map', 'attend_lines rows'):
        compute = CALLS[call]()
        with ops.use(**{compute.operator.__name__: 'float32'}):
            out = compute(q, k, v)
        out.sum().backward()
        with ops.use('plain'):
            exact = compute(*(t.detach().float() for t in (q, k, v)))
        assert out.dtype == q.grad.dtype == torch.bfloat16
        torch.testing.assert_close(out, exact.bfloat16(), rtol=0, atol=1e-2)
        with ops.use(**{compute.operator.__name__: 'plain'}):
            assert error(compute(q, k, v).float(), exact) >= error(out.float(), exact)


def test_a_line_attends_within_itself():
    q, k, v = (torch.randn(1, 4, 5, HEADS, DIM) for _ in range(3))
    compute = Attention(ops.attend_lines, 2)
    out = compute(q, k, v)
    v[:, 2] += 1
    changed = (compute(q, k, v) - out).abs().amax((0, 2, 3, 4))
    assert changed[2] > 0.5 and changed[[0, 1, 3]].max() == 0


@pytest.mark.parametrize('max_elements', [1, HEADS * 60 * DIM, 2 * HEADS * 60 * DIM])
def test_rows_of_queries_a_few_at_a_time(max_elements):
    """Values and gradients do not depend on how many rows of queries are computed at once."""
    qkv = [torch.randn(2, 6, 10, HEADS, DIM, requires_grad=True) for _ in range(3)]
    results = []
    for limit in (max_elements, 2**40):
        out = eager.attend_map_by_row(*qkv, position_tables((6, 10)), limit)
        results.append([out, *torch.autograd.grad(out.square().sum(), qkv)])
    torch.testing.assert_close(*results)


def test_large_maps_are_taken_by_row_and_no_bias_of_the_map_is_built():
    size = (40, 70)
    assert HEADS * (size[0] * size[1]) ** 2 > eager.MAX_BIAS_ELEMENTS
    qkv = [torch.randn(1, *size, HEADS, DIM) for _ in range(3)]
    tables.manhattan_bias.cache_clear()
    with ops.record() as choices, ops.use(attend_map='by_row'):
        expected = ops.attend_map(*qkv, position_tables(size))
    with ops.record() as choices:
        out = ops.attend_map(*qkv, position_tables(size))
    assert {choice.kernel for choice in choices} == {'by_row'}
    torch.testing.assert_close(out, expected)
    assert tables.manhattan_bias.cache_info().misses == 0


def test_the_manhattan_bias_by_row_is_the_manhattan_bias_in_less_memory():
    size = (6, 10)
    arguments = (LOG_DECAY, *size, torch.device('cpu'), torch.float32)
    sliding = tables.manhattan_bias_by_row(*arguments)
    bias = tables.manhattan_bias(*arguments)
    whole = bias.unflatten(1, size).unflatten(3, size)  # heads, y, x, y', x'
    torch.testing.assert_close(sliding, whole.flip(3).permute(1, 0, 2, 3, 4).flatten(3))
    assert sliding.untyped_storage().nbytes() < 2 * 2 / size[0] * bias.untyped_storage().nbytes()


def test_distinct_sizes_do_not_grow_memory():
    for table in BIASES:
        table.cache_clear()
    for width in range(2, 70):
        qkv = [torch.randn(1, 3, width, HEADS, DIM) for _ in range(3)]
        for kernel in ('plain', 'by_row'):
            with ops.use(attend=kernel):
                ops.attend_map(*qkv, position_tables((3, width)))
    for table in BIASES[1:]:
        assert table.cache_info().currsize == table.cache_info().maxsize <= 4


@needs_torch('2.3', 'choice of kernels')
@pytest.mark.parametrize('kernel', ['plain', 'by_row'])
@pytest.mark.parametrize('train', [False, True])
def test_torchs_fused_kernel_is_taken(kernel, train):
    """With only the fused kernel allowed, torch raises where it would take the slow path."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    qkv = [torch.randn(2, 5, 7, HEADS, DIM, requires_grad=train) for _ in range(3)]
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION), ops.use(attend_map=kernel, attend_lines='plain'):
        ops.attend_map(*qkv, position_tables((5, 7))).sum()
        ops.attend_lines(*qkv, position_tables((5, 7)), dim=1).sum()


@needs_torch('2.5', 'FlexAttention')
@pytest.mark.filterwarnings('ignore:flex_attention called without torch.compile')
@pytest.mark.parametrize('size', SIZES)
def test_flex_attention_is_given_the_same_decay(size):
    """Compare values, uncompiled: on the CPU torch has no gradients for it, and torch 2.12 compiles none of it."""
    qkv = [torch.randn(2, *size, HEADS, 16) for _ in range(3)]
    out = cuda.attend_map_flex(*qkv, position_tables(size, dim=16), cuda.flex_attention)
    with ops.use(attend_map='plain'):
        expected = ops.attend_map(*qkv, position_tables(size, dim=16))
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='FlexAttention has gradients on CUDA only, and there is none')
@pytest.mark.parametrize('size', [(6, 10), (40, 70)])
def test_flex_attention_on_cuda(size):
    inputs = [torch.randn(2, *size, HEADS, 16, device='cuda') for _ in range(3)]
    results = []
    for kernel in ('flex', 'plain'):
        qkv = [t.clone().requires_grad_() for t in inputs]
        with ops.use(attend_map=kernel):
            out = ops.attend_map(*qkv, position_tables(size, 'cuda', 16))
        results.append([out, *torch.autograd.grad(out.square().sum(), qkv)])
    for ours, expected in zip(*results):
        assert float((ours - expected).norm() / expected.norm()) < 1e-2  # TF32


class Operators(TorchDispatchMode):
    """Record the names of torch's operators that run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize('shape', [(2, 5, 7, 16), (1, 1, 1, 16), (3, 1, 9, 16), (1, 6, 1, 16)])
@pytest.mark.parametrize('bias', [True, False])
def test_linear_layers_are_convolutions_without_copies(shape, bias):
    layer, x = nn.Linear(16, 24, bias), torch.randn(shape)
    with torch.no_grad(), Operators() as operators:
        out = ops.linear(layer, x)
    assert 'convolution' in operators.names and not {'addmm', 'clone', 'copy_', '_to_copy'} & set(operators.names)
    assert out.is_contiguous()
    torch.testing.assert_close(out, F.linear(x, layer.weight, layer.bias), rtol=1e-4, atol=1e-5)


def test_linear_layers_in_other_precisions_and_without_onednn_are_products():
    layer = nn.Linear(16, 24)
    with torch.no_grad(), Operators() as operators:
        ops.linear(layer.double(), torch.randn(2, 5, 7, 16).double())
        with torch.backends.mkldnn.flags(enabled=False):
            ops.linear(layer.float(), torch.randn(2, 5, 7, 16))
    assert 'convolution' not in operators.names and operators.names.count('addmm') == 2


def double_weight(layer):
    """Give a Linear layer a pre-forward hook that changes its input, as adapters and quantisers do."""
    layer.register_forward_pre_hook(lambda module, args: (2 * args[0],))
    return layer


class Adapted(nn.Linear):
    """A Linear layer of another class, as adapters use to replace one."""

    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    'adapt',
    [
        double_weight,
        lambda layer: torch.nn.utils.parametrizations.weight_norm(layer),
        lambda layer: Adapted(16, 24),
        lambda layer: torch.ao.quantization.quantize_dynamic(nn.Sequential(layer), {nn.Linear})[0],
    ],
    ids=['hook', 'parametrised', 'subclass', 'quantised'],
)
def test_a_layer_that_is_not_plain_is_called(adapt):
    layer, x = adapt(nn.Linear(16, 24)), torch.randn(2, 5, 7, 16)
    with torch.no_grad():
        torch.testing.assert_close(ops.linear(layer, x), layer(x), rtol=0, atol=0)


def test_gelu_goes_into_the_convolution_unless_somebody_watches_it():
    ffn, x = FFN(16, 3), torch.randn(1, 5, 7, 16)

    def calls():
        with ops.record() as choices:
            out = ffn(x)
        return sum(choices[choice] for choice in choices if choice.operator == 'dwconv'), out

    arguments = []
    original = dispatch._KERNELS['dwconv', 'plain']

    def watch(*args):
        arguments.append(args[-1])
        return original.run(*args)

    with pytest.MonkeyPatch.context() as patch, ops.use(dwconv='plain'):
        patch.setitem(dispatch._KERNELS, ('dwconv', 'plain'), original._replace(run=watch))
        count, expected = calls()
        assert count == 1 and arguments == [True]
        seen = []
        ffn.dwconv.register_forward_hook(lambda module, args, out: seen.append(args[0]))
        count, out = calls()
    assert count == 1 and arguments == [True, False]
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(seen[0], F.gelu(ffn.fc1(x)))  # a hook sees what the layer convolves


@pytest.mark.parametrize('grad', [False, True])
def test_a_trace_of_an_ffn_is_plain(grad):
    ffn, x = FFN(16, 3), torch.randn(1, 5, 7, 16)
    with torch.set_grad_enabled(grad), ops.record() as choices:
        torch.jit.trace(ffn, x, check_trace=False)  # a check would run it untraced
    assert {choice.operator for choice in choices} == {'ffn', 'dwconv', 'to_image'}
    assert {choice.kernel for choice in choices} == {'plain'}
