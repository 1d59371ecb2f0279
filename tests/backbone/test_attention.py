"""All implementations of attention with a decay agree with the formulas, gradients too, and use fused kernels."""

import pytest
import torch

from rmt_mm.arch import log_decay
from rmt_mm.backbone import attention
from rmt_mm.backbone.attention import (
    MaSA,
    attend_decomposed,
    attend_full,
    attend_full_by_row,
    attend_full_flex,
    attend_lines,
)
from rmt_mm.backbone.ffn import FFN
from rmt_mm.ops.tables import PositionTables, line_bias, manhattan_bias, manhattan_bias_by_row
from rmt_mm.reference import log_line, log_manhattan

from support import needs_torch

HEADS, DIM = 3, 8
LOG_DECAY = log_decay(HEADS, 2, 5)
SIZES = [(6, 10), (7, 3), (1, 9), (9, 1), (1, 1)]


def tables(size, device='cpu'):
    return PositionTables(LOG_DECAY, *size, DIM, torch.device(device))


def explicit(q, k, v, bias):
    """Return softmax(q k^T / sqrt(d) + bias) v, with tokens in the last dimension but one."""
    return (q @ k.transpose(-1, -2) / DIM**0.5 + bias).softmax(-1) @ v


def explicit_full(q, k, v):
    size = q.shape[1:3]
    flat = [t.flatten(1, 2).transpose(1, 2) for t in (q, k, v)]
    out = explicit(*flat, log_manhattan(torch.tensor(LOG_DECAY).exp(), *size))
    return out.transpose(1, 2).unflatten(1, size)


def explicit_decomposed(q, k, v):
    gamma = torch.tensor(LOG_DECAY).exp()
    rows = [t.transpose(2, 3) for t in (q, k, v)]
    v = explicit(*rows, log_line(gamma, q.shape[2])).transpose(2, 3)
    columns = [t.permute(0, 2, 3, 1, 4) for t in (q, k, v)]
    return explicit(*columns, log_line(gamma, q.shape[1])).permute(0, 3, 1, 2, 4)


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize(
    'attend, expected',
    [(attend_decomposed, explicit_decomposed), (attend_full, explicit_full), (attend_full_by_row, explicit_full)],
)
def test_values_and_gradients(attend, expected, size):
    results = []
    inputs = [torch.randn(2, *size, HEADS, DIM) for _ in range(3)]
    direction = torch.randn(2, *size, HEADS, DIM)
    for function in (lambda *qkv: attend(*qkv, tables(size)), expected):
        qkv = [t.clone().requires_grad_() for t in inputs]
        out = function(*qkv)
        out.backward(direction)
        results.append([out.detach(), *(t.grad for t in qkv)])
    for ours, reference, tolerance in zip(*results, (1e-5, 1e-4, 1e-4, 1e-4)):
        assert float((ours - reference).norm()) <= tolerance * max(float(reference.norm()), 1e-2)


def test_large_maps_are_taken_by_row(monkeypatch):
    qkv = [torch.randn(2, 6, 10, HEADS, DIM, requires_grad=True) for _ in range(3)]
    full = attend_full(*qkv, tables((6, 10)))
    # Smaller than the bias of the map and than the gradients of a row's keys: every row of queries is computed alone.
    monkeypatch.setattr(attention, 'MAX_BIAS_ELEMENTS', HEADS * 60 * DIM)
    manhattan_bias.cache_clear()
    torch.testing.assert_close(attend_full(*qkv, tables((6, 10))), full)
    assert manhattan_bias.cache_info().misses == 0, 'the whole bias was built'


@needs_torch('2.5', 'FlexAttention')
@pytest.mark.filterwarnings('ignore:flex_attention called without torch.compile')
@pytest.mark.parametrize('size', SIZES)
def test_flex_attention_is_given_the_same_decay(size, monkeypatch):
    """Compare values only, uncompiled: on the CPU torch has no gradients for it and compiles it slowly."""
    monkeypatch.setattr(attention, 'compiled_flex_attention', lambda: attention.flex_attention)
    qkv = [torch.randn(2, *size, HEADS, 16) for _ in range(3)]
    both = (attend(*qkv, tables(qkv[0].shape[1:3])) for attend in (attend_full_flex, attend_full))
    torch.testing.assert_close(*both, rtol=1e-5, atol=1e-5)


@needs_torch('2.5', 'FlexAttention')
@pytest.mark.slow
def test_flex_attention_compiled():
    qkv = [torch.randn(2, 6, 10, HEADS, 16) for _ in range(3)]
    both = (attend(*qkv, tables(qkv[0].shape[1:3])) for attend in (attend_full_flex, attend_full))
    torch.testing.assert_close(*both, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='FlexAttention has gradients on CUDA only, and there is none')
@pytest.mark.parametrize('size', [(6, 10), (40, 70)])
def test_flex_attention_on_cuda(size, monkeypatch):
    """It is chosen for large maps, and has the values and gradients of the form with the bias in memory."""
    inputs = [torch.randn(2, *size, HEADS, 16, device='cuda') for _ in range(3)]
    results = []
    monkeypatch.setattr(attention, 'attend_full_by_row', None)
    for limit in (2**40, 0):
        monkeypatch.setattr(attention, 'MAX_BIAS_ELEMENTS', limit)
        qkv = [t.clone().requires_grad_() for t in inputs]
        out = attend_full(*qkv, tables(size, 'cuda'))
        results.append([out, *torch.autograd.grad(out.square().sum(), qkv)])
    for ours, expected in zip(*results):
        assert float((ours - expected).norm() / expected.norm()) < 1e-2  # TF32


def test_the_manhattan_bias_by_row_is_the_manhattan_bias_in_less_memory():
    size = (6, 10)
    arguments = (LOG_DECAY, *size, torch.device('cpu'), torch.float32)
    sliding = manhattan_bias_by_row(*arguments)
    whole = manhattan_bias(*arguments).unflatten(1, size).unflatten(3, size)  # heads, y, x, y', x'
    expected = whole.flip(3).permute(1, 0, 2, 3, 4).flatten(3)
    torch.testing.assert_close(sliding, expected)
    assert sliding.untyped_storage().nbytes() < 2 * 2 / size[0] * manhattan_bias(*arguments).untyped_storage().nbytes()


@needs_torch('2.3', 'choice of kernels')
@pytest.mark.parametrize('attend', [attend_decomposed, attend_full, attend_full_by_row])
@pytest.mark.parametrize('train', [False, True])
def test_the_fused_kernel_is_taken(attend, train):
    """With only the fused kernel allowed, torch raises where it would take the slow path."""
    qkv = [torch.randn(2, 5, 7, HEADS, DIM, requires_grad=train) for _ in range(3)]
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        attend(*qkv, tables((5, 7))).sum()


@pytest.mark.parametrize('length', [1, 7, 15, 16, 17, 40])
@pytest.mark.parametrize('slice_weights', [1, 3 * HEADS * 7**2, 2**20])
def test_short_lines_without_gradients(length, slice_weights, monkeypatch):
    """They take plain products, in slices, with the values of the fused kernel; queries and keys are not changed."""
    monkeypatch.setattr(attention, 'SLICE_WEIGHTS', slice_weights)
    qkv = [torch.randn(2, length, 5, HEADS, DIM).transpose(1, 2) for _ in range(3)]  # columns of a map
    given = [t.clone() for t in qkv]
    bias = line_bias(LOG_DECAY, length, qkv[0].device, torch.float32)
    expected = attend_lines(*qkv, bias)
    calls = []
    real = attention.attend_short_lines
    monkeypatch.setattr(attention, 'attend_short_lines', lambda *args: calls.append(1) or real(*args))
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            torch.testing.assert_close(attend_lines(*qkv, bias), expected, rtol=1e-5, atol=1e-5)
    assert len(calls) == 2 and all(torch.equal(*pair) for pair in zip(qkv, given))


def test_other_lines_take_the_fused_kernel(monkeypatch):
    """Lines that are long, of another dtype, recorded or with gradients."""
    monkeypatch.setattr(attention, 'attend_short_lines', None)
    q = torch.randn(1, 2, 5, HEADS, DIM)
    bias = line_bias(LOG_DECAY, 5, q.device, q.dtype)
    attend_lines(q, q, q, bias)
    with torch.no_grad():
        torch.jit.trace(attend_lines, (q, q, q, bias), check_trace=False)  # a check would run it untraced
        attend_lines(*[q.bfloat16()] * 3, bias.bfloat16())
        monkeypatch.setattr(attention, 'MAX_SHORT_LINE', 4)
        attend_lines(q, q, q, bias)


def test_a_line_attends_within_itself():
    q, k, v = (torch.randn(1, 4, 5, HEADS, DIM) for _ in range(3))
    bias = line_bias(LOG_DECAY, 5, q.device, q.dtype)
    out = attend_lines(q, k, v, bias)
    v[:, 2] += 1
    changed = (attend_lines(q, k, v, bias) - out).abs().amax((0, 2, 3, 4))
    assert changed[2] > 0.5 and changed[[0, 1, 3]].max() == 0


def test_distinct_sizes_do_not_grow_memory():
    for table in (manhattan_bias, manhattan_bias_by_row):
        table.cache_clear()
    for width in range(2, 40):
        qkv = [torch.randn(1, 3, width, HEADS, DIM) for _ in range(3)]
        attend_full(*qkv, tables((3, width)))
        attend_full_by_row(*qkv, tables((3, width)))
    for table in (manhattan_bias, manhattan_bias_by_row):
        assert table.cache_info().currsize == table.cache_info().maxsize <= 4


@pytest.mark.parametrize('module', [MaSA(16, 2, 2, 4, True), MaSA(16, 2, 2, 4, False), FFN(16, 3)])
def test_inference_changes_no_input_and_gives_what_training_gives(module):
    """Without gradients some steps work in place, but only on their own results."""
    x = torch.randn(2, 5, 7, 16)
    before = x.clone()
    with torch.no_grad():
        out = module(x)
        again = module(x)
    torch.testing.assert_close(x, before, rtol=0, atol=0)
    torch.testing.assert_close(out, again, rtol=0, atol=0)
    torch.testing.assert_close(out, module(x).detach())
