"""The kernel in Triton: on a GPU if there is one, else by Triton's interpreter on the CPU, which knows no bf16."""

import importlib

import pytest
import torch

from rmt_mm import ops
from rmt_mm.backbone.attention import MaSA
from rmt_mm.ops import PositionTables, dispatch, plain

pytest.importorskip('triton', reason='triton is not installed')
if not hasattr(torch.library, 'custom_op'):
    pytest.skip('torch.library.custom_op needs torch >= 2.4', allow_module_level=True)

NO_BF16 = "triton's interpreter has no bf16, and there is no GPU"
DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
DTYPES = [
    torch.float16,
    pytest.param(
        torch.bfloat16,
        marks=pytest.mark.skipif(DEVICE == 'cpu', reason=NO_BF16),
    ),
]
LOG_DECAY = (-0.3, -0.1)
# Columns and rows of one token, of less than a tile, of several; heads whose channels are no power of two.
SIZES = [(2, 5, 7, 16), (1, 3, 70, 32), (1, 1, 1, 16), (1, 66, 2, 24)]


@pytest.fixture(scope='module')
def triton_masa():
    return importlib.import_module('rmt_mm.ops.triton_masa')


def error(found, exact):
    found, exact = found.detach().double(), exact.detach().double()
    return float((found - exact).norm() / exact.norm().clamp_min(1e-30))


def tables_of(height, width, head_dim):
    return PositionTables(LOG_DECAY, height, width, head_dim, torch.device(DEVICE))


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('dim', [1, 2])
@pytest.mark.parametrize('batch,height,width,head_dim', SIZES)
def test_attention_and_its_gradients(triton_masa, batch, height, width, head_dim, dim, dtype):
    shape = (batch, height, width, 3 * len(LOG_DECAY), head_dim)
    projection = torch.randn(shape, device=DEVICE).to(dtype).requires_grad_()
    qkv = projection.split(len(LOG_DECAY), 3)  # not contiguous
    out = triton_masa.attend_lines(*qkv, LOG_DECAY, dim)
    exact = plain.attend_lines(*(t.double() for t in qkv), tables_of(height, width, head_dim), dim)
    grad = torch.randn(exact.shape, device=DEVICE).to(dtype)
    found, wanted = (torch.autograd.grad(o, projection, grad.to(o))[0] for o in (out, exact))
    bound = {torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    assert out.dtype == dtype and out.is_contiguous()
    assert error(out, exact) < bound
    assert error(found, wanted) < bound


@pytest.mark.parametrize('permutation', [(0, 1, 2, 4, 3), (0, 2, 1, 3, 4)])
def test_any_strides(triton_masa, permutation):
    qkv = torch.randn(3, 2, 4, 5, 2, 16, device=DEVICE).half().unbind()
    moved = [t.permute(permutation).contiguous().permute(permutation) for t in qkv]
    assert moved[0].stride() != qkv[0].stride()
    out, expected = (triton_masa.attend_lines(*tensors, LOG_DECAY, 1) for tensors in (moved, qkv))
    assert torch.equal(out, expected)


def test_nan_stays_in_its_line(triton_masa):
    q, k, v = torch.randn(3, 1, 3, 4, 2, 16, device=DEVICE).half().unbind()
    k[0, 1, 2, 0, 3] = float('nan')
    out = triton_masa.attend_lines(q, k, v, LOG_DECAY, 2)
    assert out[0, 1, :, 0].isnan().all() and int(out.isnan().sum()) == 4 * 16


def test_no_image(triton_masa):
    q = torch.zeros(0, 3, 4, 2, 16, device=DEVICE, dtype=torch.float16, requires_grad=True)
    out = triton_masa.attend_lines(q, q, q, LOG_DECAY, 2)
    assert out.shape == q.shape == torch.autograd.grad(out.sum(), q)[0].shape


def test_second_gradients_are_refused(triton_masa):
    q = torch.randn(1, 1, 2, 2, 16, device=DEVICE).half().requires_grad_()
    with pytest.raises(RuntimeError, match="first order only.*attend='plain'"):
        torch.autograd.grad(triton_masa.attend_lines(q, q, q, LOG_DECAY, 2).sum(), q, create_graph=True)


def both_ways(module, x):
    out = module(x)
    return torch.cat(
        [
            t.flatten().float()
            for t in (out, *torch.autograd.grad(out.float().square().sum(), [x, *module.parameters()]))
        ]
    )


@pytest.mark.parametrize('compiled', [False, True])
def test_a_module_by_this_kernel(triton_masa, monkeypatch, compiled):
    """Compile by AOTAutograd, which needs the operator's shapes and gradients, with sizes that are symbols."""
    key = 'attend_lines', 'triton'
    if DEVICE == 'cpu':  # let it take maps on the CPU
        monkeypatch.setitem(dispatch._KERNELS, key, dispatch._KERNELS[key]._replace(cannot=dispatch.never))
    module = MaSA(32, 2, 2.0, 4.0, decomposed=True).to(DEVICE)
    x = torch.randn(1, 4, 5, 32, device=DEVICE, requires_grad=True)
    with torch.autocast(DEVICE, torch.float16, enabled=DEVICE == 'cuda'):
        with ops.use(attend_lines='plain'):
            exact = both_ways(module, x)
        with ops.use(attend_lines='triton'), ops.record() as records:
            compile_ = torch.compile(module, backend='aot_eager', fullgraph=True, dynamic=True)
            found = both_ways(compile_ if compiled else module, x)
    assert compiled or {choice.kernel for choice in records if choice.operator == 'attend_lines'} == {'triton'}
    assert error(found, exact) < (1e-2 if DEVICE == 'cuda' else 1e-5)


def test_which_calls_it_takes(monkeypatch):
    monkeypatch.setattr('rmt_mm.ops.cuda._capability', lambda device: (8, 0))
    kernel = dispatch._KERNELS['attend_lines', 'triton']
    q = torch.zeros(2, 64, 128, 2, 16, dtype=torch.float16)
    call = ops.Call.of(q)._replace(device='cuda')
    rest = q, q, tables_of(64, 128, 16), 2
    assert kernel.cannot(call, q, *rest) is None and kernel.should_not(call, q) is None
    assert 'has less than 16384 tokens' in kernel.should_not(call, q[:1])
    assert 'no gain' in kernel.should_not(call._replace(needs_grad=True), q)
    assert 'AMP' in kernel.cannot(call._replace(dtype=torch.float32), q, *rest)
    assert 'on cpu' in kernel.cannot(call._replace(device='cpu'), q, *rest)
    assert 'torch.export' in kernel.cannot(call._replace(compiled=True, exported=True), q, *rest)
    monkeypatch.setattr('rmt_mm.ops.cuda._capability', lambda device: (7, 5))
    assert 'capability 8.0' in kernel.cannot(call, q, *rest)
