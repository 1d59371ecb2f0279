"""One exported file serves any size and batch, in runtimes that have neither torch nor this package."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from rmt_mm import RMT, ops
from rmt_mm.errors import UsageError
from rmt_mm.tools.deployment.files import replace_file
from rmt_mm.tools.deployment.graphs import feature_graph
from rmt_mm.tools.deployment.inputs import ImageNorm, Preparation
from rmt_mm.tools.deployment.layers import AveragePool
from rmt_mm.tools.deployment.onnx_file import check_operators, operators, run_onnx, write_onnx
from rmt_mm.tools.deployment.openvino_file import run_openvino, write_openvino
from rmt_mm.tools.deployment.torch_program import run_compiled, run_program, write_compiled, write_program

from support import needs_torch
from support.archs import LEAST_ARCH, SMALL_ARCH

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')

SIZES = [(1, 224, 224), (2, 97, 131), (3, 31, 40), (1, 1, 1)]
LARGE = [(1, 512, 512), (1, 800, 1344)]
# ONNX's own operators that the backbone uses, and no other: no complex numbers, no loop, no branch.
BACKBONE_OPERATORS = set(
    'Abs Add Cast Concat Constant ConstantOfShape Conv Cos Div Equal Erf Expand Gather Identity LayerNormalization '
    'MatMul Mod Mul Range Reshape Shape Sin Slice Softmax Split Sqrt Squeeze Sub Transpose Unsqueeze Where'.split()
)


def make_graph(arch, randomize=True):
    torch.manual_seed(0)
    backbone = RMT(arch).eval()
    if randomize:
        for parameter in backbone.parameters():  # LayerScale and norms start at values that hide errors
            parameter.data.add_(torch.randn_like(parameter) * 0.02)
    backbone.switch_to_deploy()
    prepare = Preparation(ImageNorm(), False)
    return feature_graph(backbone, prepare, prepare.example(1, 64, 64)).eval()


def check(graph, run, path, sizes, tolerance=1e-4):
    for size in sizes:
        image = graph.prepare.example(*size) / 64
        with torch.no_grad():
            expected = graph(image)
        for out, wanted in zip(run(path, image), expected):
            assert out.shape == tuple(wanted.shape)
            np.testing.assert_allclose(out, wanted.numpy(), rtol=tolerance, atol=tolerance)


@pytest.fixture(scope='module')
def graph():
    return make_graph(SMALL_ARCH)


@pytest.fixture(scope='module')
def onnx_file(graph, tmp_path_factory):
    path = str(tmp_path_factory.mktemp('onnx') / 'a.onnx')
    write_onnx(graph, graph.prepare.example(2, 64, 96), path, True, 17, dict(task='features', classes=['ä', '\n']))
    return path


def test_onnxruntime_at_any_size(graph, onnx_file):
    check(graph, run_onnx, onnx_file, SIZES)


def test_standard_operators_and_metadata(graph, onnx_file):
    model = onnx.load(onnx_file)
    assert set(operators(model)) <= BACKBONE_OPERATORS
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [('', 17)]
    found = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert found == dict(task='features', classes=['ä', '\n'])
    # Positions are computed in fp32, from sizes: no table of a fixed size is in the file.
    held = sum(np.prod(tensor.dims) for tensor in model.graph.initializer)
    assert held < 1.01 * sum(parameter.numel() for parameter in graph.parameters())


@pytest.mark.slow
def test_openvino_at_any_size(graph, tmp_path):
    pytest.importorskip('openvino')
    path = str(tmp_path / 'a.xml')
    write_openvino(graph, graph.prepare.example(2, 64, 96), path, True, 17, dict(task='features'))
    check(graph, run_openvino, path, SIZES[:3])


def test_a_traced_program_serves_other_sizes():
    model = RMT(SMALL_ARCH).eval()
    with torch.no_grad():
        traced = torch.jit.trace(model, torch.rand(1, 3, 64, 64))
        for size in SIZES:
            x = torch.rand(size[0], 3, *size[1:])
            with ops.use(attend_map='by_row'):  # a program never does
                expected = model(x)
            for out, wanted in zip(traced(x), expected):
                torch.testing.assert_close(out, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_half_precision_keeps_the_tables(tmp_path):
    """fp16 cannot count the tokens of a map: the tables stay fp32, and only weights and maps are rounded."""
    graph = make_graph(LEAST_ARCH)
    image = graph.prepare.example(1, 300, 400) / 64
    with torch.no_grad():
        expected = graph(image)
    graph.use_half()
    path = str(tmp_path / 'a.onnx')
    write_onnx(graph, image, path, False, 17, {})
    for out, wanted in zip(run_onnx(path, image), expected):
        assert out.dtype == np.float32
        assert np.abs(out - wanted.numpy()).max() < 0.02 * float(wanted.abs().max())


def test_average_pooling_is_torchs():
    for size in ((16, 16), (7, 33), (1, 5), (3, 2)):
        x = torch.randn(2, 4, *size)
        for cells in (1, 2, 3, 6):
            torch.testing.assert_close(AveragePool(cells)(x), torch.nn.AdaptiveAvgPool2d(cells)(x))


def test_normalisation_and_padding():
    norm = ImageNorm((10.0, 20.0, 30.0), (1.0, 2.0, 4.0), is_bgr=True, divisor=32, pad_value=7.0)
    image = torch.tensor([50, 60, 70], dtype=torch.uint8).expand(1, 33, 40, 3)
    out = Preparation(norm, True)(image)
    assert out.shape == (1, 3, 64, 64)
    assert out[0, :, 32, 39].tolist() == [10, 20, 40] and out[0, :, 33, 0].tolist() == [7, 7, 7]
    assert out[0, :, 0, 40].tolist() == [7, 7, 7]


def test_an_interrupted_export_leaves_the_earlier_file(tmp_path):
    path = tmp_path / 'a.onnx'
    path.write_bytes(b'earlier')
    with pytest.raises(KeyboardInterrupt), replace_file(str(path)) as temporary:
        Path(temporary).write_bytes(b'half')
        raise KeyboardInterrupt
    assert path.read_bytes() == b'earlier' and list(tmp_path.iterdir()) == [path]
    with replace_file(str(path)) as temporary:
        Path(temporary).write_bytes(b'new')
    assert path.read_bytes() == b'new' and list(tmp_path.iterdir()) == [path]


def test_operators_of_others_are_refused():
    node = onnx.helper.make_node('MMCVRoiAlign', ['a'], ['b'], domain='mmcv')
    inner = onnx.helper.make_graph([node], 'inner', [], [])
    branch = onnx.helper.make_node('If', ['c'], ['d'], then_branch=inner, else_branch=inner)
    model = onnx.helper.make_model(onnx.helper.make_graph([branch], 'outer', [], []))
    with pytest.raises(UsageError, match='the model uses mmcv::MMCVRoiAlign, which ONNX does not have'):
        check_operators(model)


# Runs where neither torch nor rmt_mm can be imported.
ALONE = """
import sys
sys.modules.update(torch=None, rmt_mm=None)
import json, numpy as np, onnxruntime
path, *files = sys.argv[1:]
session = onnxruntime.InferenceSession(path)
if {use_openvino}:
    import openvino
    model = openvino.compile_model(openvino.Core().read_model(path), 'CPU', dict(INFERENCE_PRECISION_HINT='f32'))
for file in files:
    data = np.load(file)
    runs = [session.run(None, dict(image=data['image']))]
    if {use_openvino}:
        found = model(data['image'])
        runs.append([found[i] for i in range(len(model.outputs))])
    for outs in runs:
        for i, out in enumerate(outs):
            np.testing.assert_allclose(out, data[f'out{i}'], rtol=1e-4, atol=1e-4)
print('equal')
"""


@pytest.mark.slow
@pytest.mark.parametrize('arch', ['tiny', 'small', 'base', 'large'])
def test_every_arch_and_size_in_a_process_without_torch(arch, tmp_path):
    graph = make_graph(arch, randomize=False)
    path = str(tmp_path / 'a.onnx')
    write_onnx(graph, graph.prepare.example(2, 64, 96), path, True, 17, {})
    assert set(operators(onnx.load(path))) <= BACKBONE_OPERATORS
    sizes = [(2, 97, 131), (1, 224, 224), (1, 512, 512), *([(1, 800, 1344)] if arch in ('tiny', 'small') else [])]
    files = []
    for size in sizes:
        image = graph.prepare.example(*size) / 64
        with torch.no_grad():
            outs = graph(image)
        files.append(str(tmp_path / f'{size}.npz'))
        np.savez(files[-1], image=image.numpy(), **{f'out{i}': out.numpy() for i, out in enumerate(outs)})
    code = ALONE.replace('{use_openvino}', 'True')
    done = subprocess.run(
        [sys.executable, '-c', code, path, *files], capture_output=True, text=True, cwd=tmp_path, env={}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().endswith('equal')


def test_a_process_without_torch(graph, onnx_file, tmp_path):
    image = graph.prepare.example(2, 97, 131) / 64
    with torch.no_grad():
        outs = graph(image)
    file = str(tmp_path / 'a.npz')
    np.savez(file, image=image.numpy(), **{f'out{i}': out.numpy() for i, out in enumerate(outs)})
    code = ALONE.replace('{use_openvino}', 'False')
    done = subprocess.run(
        [sys.executable, '-c', code, onnx_file, file], capture_output=True, text=True, cwd=tmp_path, env={}
    )
    assert done.returncode == 0, done.stderr[-3000:]


@needs_torch('2.6', 'torch.export for any size')
@pytest.mark.slow
def test_exported_programs_of_torch(tmp_path):
    graph = make_graph(LEAST_ARCH)
    path = str(tmp_path / 'a.pt2')
    write_program(graph, graph.prepare.example(2, 96, 128), path, True)
    check(graph, run_program, path, [(2, 97, 131), (3, 224, 160)])


@needs_torch('2.6', 'packages of Inductor')
@pytest.mark.slow
def test_compiled_packages(tmp_path):
    graph = make_graph(LEAST_ARCH)
    path = str(tmp_path / 'a.pt2')
    write_compiled(graph, graph.prepare.example(1, 64, 96), path, False)
    check(graph, run_compiled, path, [(1, 64, 96)])


@needs_torch('2.6', 'torch.export for any size')
@pytest.mark.slow
def test_exported_program_of_one_size(tmp_path):
    graph = make_graph(LEAST_ARCH)
    path = str(tmp_path / 'a.pt2')
    write_program(graph, graph.prepare.example(1, 64, 96), path, False)
    check(graph, run_program, path, [(1, 64, 96)])
