"""The FFN in strips of rows: the values of the whole map; no strips with gradients, hooks or a recorder."""

import pytest
import torch

from rmt_mm.backbone import ffn as ffn_module
from rmt_mm.backbone import strips as strips_module
from rmt_mm.backbone.ffn import FFN


@pytest.fixture
def strips(monkeypatch):
    """Compute every map in strips of three rows; return the list of calls, which holds the rows of each."""
    calls = []
    real = ffn_module.ffn_in_strips

    def ffn_in_strips(*args):
        calls.append(args[-1])
        return real(*args)

    monkeypatch.setattr(ffn_module, 'ffn_in_strips', ffn_in_strips)
    monkeypatch.setattr(strips_module, 'MAX_MAP_BYTES', 0)
    monkeypatch.setattr(ffn_module, 'STRIP_BYTES', 0)
    monkeypatch.setattr(strips_module, 'MIN_STRIP_ROWS', 3)
    return calls


@pytest.mark.parametrize('size', [(1, 10, 6), (2, 9, 5), (1, 3, 4), (3, 2, 4), (5, 1, 7), (1, 4, 1)])
@pytest.mark.parametrize('folded', [False, True])
def test_values_of_the_whole_map(strips, size, folded):
    ffn, x = FFN(8, 3).eval(), torch.randn(*size, 8)
    if folded:
        ffn.dwconv.fold()
    expected = ffn(x).detach()
    with torch.no_grad():
        out = ffn(x)
    assert strips == [3]
    torch.testing.assert_close(out, expected)


def test_several_small_images_make_a_strip(strips, monkeypatch):
    monkeypatch.setattr(strips_module, 'MIN_STRIP_ROWS', 5)
    ffn, x = FFN(8, 3).eval(), torch.randn(5, 2, 4, 8)
    seen = []
    real = ffn_module.linear_by_convolution
    monkeypatch.setattr(
        ffn_module, 'linear_by_convolution', lambda x, *args: seen.append(tuple(x.shape)) or real(x, *args)
    )
    with torch.no_grad():
        ffn(x)
    assert seen[::2] == [(2, 2, 4, 8), (2, 2, 4, 8), (1, 2, 4, 8)]


def test_precision_is_that_of_the_whole_map(strips, monkeypatch):
    ffn, x = FFN(8, 3).eval(), torch.randn(1, 10, 6, 8)
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        out = ffn(x)
        monkeypatch.setattr(strips_module, 'MAX_MAP_BYTES', 2**24)
        expected = ffn(x)
    assert len(strips) == 1 and out.dtype == expected.dtype
    torch.testing.assert_close(out, expected)


def test_gradients_hooks_and_recorders_see_the_whole_map(strips):
    ffn, x = FFN(8, 3).eval(), torch.randn(1, 10, 6, 8)
    ffn(x)
    with torch.no_grad():
        torch.jit.trace(ffn, x, check_trace=False)  # a check would run it untraced
        for layer in (ffn.fc1, ffn.dwconv, ffn.fc2):
            seen = []
            handle = layer.register_forward_hook(lambda module, args, out, seen=seen: seen.append(out.shape[1]))
            ffn(x)
            handle.remove()
            assert seen == [10]
    assert not strips
