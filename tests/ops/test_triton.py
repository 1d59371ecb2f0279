"""The kernels in Triton: on a GPU if there is one, else by Triton's interpreter on the CPU, which knows no bf16."""

import importlib

import pytest
import torch

from rmt_mm import RMT, ops
from rmt_mm.arch import ARCHS
from rmt_mm.ops import PositionTables, dispatch, plain

pytest.importorskip('triton', reason='triton is not installed')
if not hasattr(torch.library, 'custom_op'):
    pytest.skip('torch.library.custom_op needs torch >= 2.4', allow_module_level=True)

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
DTYPES = [torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.skipif(DEVICE == 'cpu', reason='no GPU'))]
LOG_DECAY = (-0.3, -0.1)
LEAST = {**ARCHS['tiny']._asdict(), 'depths': (1,) * 4, 'embed_dims': (32, 32, 64, 64), 'num_heads': (2, 2, 4, 4)}
# Less than a tile, one, several; one token; heads of no power of two.
SIZES = [(2, 5, 7, 16), (1, 70, 3, 32), (1, 1, 1, 16), (2, 4, 66, 24)]


@pytest.fixture(scope='module')
def triton_masa():
    return importlib.import_module('rmt_mm.ops.triton_masa')


@pytest.fixture
def accepted(triton_masa, monkeypatch):
    """Let the kernels take maps on the CPU, where the interpreter runs them."""
    for operator in ('attend_lines', 'attend_map', 'rotate'):
        key = operator, 'triton'
        if DEVICE == 'cpu':
            monkeypatch.setitem(dispatch._KERNELS, key, dispatch._KERNELS[key]._replace(cannot=dispatch.never))


def error(found, exact):
    return float((found.double() - exact.double()).norm() / exact.double().norm().clamp_min(1e-30))


def tables_of(height, width, head_dim):
    return PositionTables(LOG_DECAY, height, width, head_dim, torch.device(DEVICE))


def attend_plainly(q, k, v, dim):
    tables = tables_of(*q.shape[1:3], q.shape[-1])
    return plain.attend_lines(q, k, v, tables, dim) if dim else plain.attend_map(q, k, v, tables)


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('dim', [0, 1, 2])
@pytest.mark.parametrize('batch,height,width,head_dim', SIZES)
def test_attention_and_its_gradients(triton_masa, batch, height, width, head_dim, dim, dtype):
    shape = (batch, height, width, 3 * len(LOG_DECAY), head_dim)
    projection = torch.randn(shape, device=DEVICE).to(dtype).requires_grad_()
    qkv = projection.split(len(LOG_DECAY), 3)  # not contiguous
    out = triton_masa.masa(*qkv, list(LOG_DECAY), dim)[0]
    exact = attend_plainly(*(t.double() for t in qkv), dim)
    grad = torch.randn(exact.shape, device=DEVICE).to(dtype)
    found, wanted = (torch.autograd.grad(o, projection, grad.to(o))[0] for o in (out, exact))
    bound = {torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    assert out.dtype == dtype and out.is_contiguous()
    assert error(out, exact) < bound
    assert torch.allclose(found, wanted.to(dtype), rtol=0, atol=4 * bound * float(wanted.abs().max()))
    assert error(found, wanted) < bound or height * width == 1  # where gradients of q and k are 0


@pytest.mark.parametrize('layout', ['channels apart', 'rows apart'])
@pytest.mark.parametrize('dim', [0, 1])
def test_other_layouts_are_copied(triton_masa, layout, dim):
    q, k, v = torch.randn(3, 2, 4, 5, 2, 16, device=DEVICE).half().unbind()
    permutation = (0, 1, 2, 4, 3) if layout == 'channels apart' else (0, 2, 1, 3, 4)
    moved = [t.permute(permutation).contiguous().permute(permutation) for t in (q, k, v)]
    assert moved[0].stride() != q.stride()
    out, expected = (triton_masa.masa(*qkv, list(LOG_DECAY), dim)[0] for qkv in (moved, (q, k, v)))
    assert torch.equal(out, expected)


def test_nan_and_no_tokens(triton_masa):
    q, k, v = torch.randn(3, 1, 3, 4, 2, 16, device=DEVICE).half().unbind()
    k[0, 1, 2, 0, 3] = float('nan')
    out = triton_masa.masa(q, k, v, list(LOG_DECAY), 2)[0]
    assert out[0, 1, :, 0].isnan().all() and int(out.isnan().sum()) == 4 * 16
    assert triton_masa.masa(q[:0], k[:0], v[:0], list(LOG_DECAY), 0)[0].shape == (0, 3, 4, 2, 16)
    assert triton_masa.rotate(q[:0], tables_of(3, 4, 16).phases(), False).shape == (0, 3, 4, 2, 16)


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('layout', ['of a projection', 'columns apart'])
def test_rotation_and_its_gradient(triton_masa, layout, dtype):
    tables, x = tables_of(5, 7, 24), torch.randn(2, 5, 7, 6, 24, device=DEVICE).to(dtype)
    x = x[:, :, :, :4] if layout == 'of a projection' else x.transpose(1, 2).contiguous().transpose(1, 2)
    x = x.detach().requires_grad_()
    out, expected = triton_masa.rotate(x, tables.phases(), False), plain.rotate(x, tables)
    torch.testing.assert_close(out, expected)
    grad = torch.randn_like(out)
    torch.testing.assert_close(*(torch.autograd.grad(o, x, grad)[0] for o in (out, expected)))


def both_ways(model, x):
    model.zero_grad()
    outs = model(x)
    sum(out.float().square().sum() for out in outs).backward()
    return torch.cat([t.flatten() for t in (*outs, *(p.grad for p in model.parameters()))]).detach().float()


@pytest.mark.parametrize('compiled', [False, True])
def test_a_model_by_these_kernels(accepted, compiled):
    """Compile by AOTAutograd, which needs shapes without values, for both passes, and sizes that are symbols."""
    model, dtype = RMT(LEAST).to(DEVICE), torch.float16 if DEVICE == 'cuda' else torch.float32
    x = torch.randn(1, 3, 50, 71, device=DEVICE)
    with torch.autocast(DEVICE, torch.float16, enabled=DEVICE == 'cuda'):
        with ops.use('plain'):
            exact = both_ways(model, x)
        pins = dict(attend='triton') if compiled else dict(attend='triton', rotate='triton')
        with ops.use(**pins), ops.record() as records:
            model = torch.compile(model, backend='aot_eager', fullgraph=True, dynamic=True) if compiled else model
            found = both_ways(model, x)
    assert compiled or {'attend_lines', 'attend_map', 'rotate'} <= {c.operator for c in records if c.kernel == 'triton'}
    assert error(found, exact) < (1e-5 if dtype == torch.float32 else 1e-2)


def test_which_calls_they_take(triton_masa):
    q = torch.zeros(1, 2, 3, 2, 16)
    choice = ops.choose('attend_lines', ops.Call.of(q), q, q, q, PositionTables(LOG_DECAY, 2, 3, 16, q.device), 2)
    reasons = dict(choice.reasons)
    assert choice.kernel == 'masa' or reasons['triton'] == 'it is for CUDA, and the map is on cpu'
    assert 'AMP' in dispatch._KERNELS['rotate', 'triton'].cannot(ops.Call.of(q)._replace(device='cuda'), q)
