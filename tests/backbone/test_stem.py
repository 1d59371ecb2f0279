"""The stem in strips of rows: the values of the whole map, and the whole map wherever a strip would not do."""

import pytest
import torch
from torch import nn

from rmt_mm.backbone import stem as stem_module
from rmt_mm.backbone import strips as strips_module
from rmt_mm.backbone.stem import ConvStem

DIM = 8


@pytest.fixture
def inputs(monkeypatch):
    """Compute every map in strips of three rows; return the list of shapes (B, H) that the convolutions see."""
    shapes = []
    real = nn.Sequential.forward
    monkeypatch.setattr(
        nn.Sequential, 'forward', lambda self, x: shapes.append((len(x), int(x.shape[2]))) or real(self, x)
    )
    monkeypatch.setattr(strips_module, 'MAX_MAP_BYTES', 0)
    monkeypatch.setattr(strips_module, 'MIN_STRIP_ROWS', 3)
    monkeypatch.setattr(stem_module, 'STRIP_BYTES', 0)
    return shapes


def build(norm='BN', **norm_options):
    """Return a stem in eval mode whose norms change their input."""
    stem = ConvStem(3, DIM, dict(type=norm, **norm_options)).eval()
    for module in stem:
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.5, 2)
        if getattr(module, 'bias', None) is not None:
            nn.init.uniform_(module.bias, -1, 1)
    return stem


def image(batch, height, width):
    return torch.randn(batch, 3, height, width).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    'size, num_strips',
    [((1, 64, 20), 6), ((2, 50, 17), 10), ((1, 12, 8), 1), ((1, 13, 9), 2), ((3, 49, 1), 15), ((4, 1, 5), 2)],
)
@pytest.mark.parametrize('folded', [False, True])
def test_values_of_the_whole_map(inputs, size, num_strips, folded):
    stem, x = build(), image(*size)
    if folded:
        stem.fold()
    expected = stem(x).detach()
    assert inputs == [size[:2]]
    with torch.no_grad():
        out = stem(x)
    assert len(inputs) == 1 + num_strips
    assert out.shape == expected.shape and out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out, expected)


def test_a_strip_is_small(inputs):
    with torch.inference_mode():
        build()(image(1, 400, 4))
    assert max(height for _, height in inputs) == 4 * (3 + 2 * 3)


def test_several_small_images_make_a_strip(inputs, monkeypatch):
    monkeypatch.setattr(strips_module, 'MIN_STRIP_ROWS', 5)
    with torch.no_grad():
        build()(image(5, 8, 8))
    assert inputs == [(2, 8), (2, 8), (1, 8)]


def test_small_maps_are_computed_as_a_whole(inputs, monkeypatch):
    x = image(2, 64, 21)
    bytes_of_first_map = 2 * 32 * 11 * (DIM // 2) * 4
    for limit in (bytes_of_first_map, bytes_of_first_map - 1):
        monkeypatch.setattr(strips_module, 'MAX_MAP_BYTES', limit)
        with torch.no_grad():
            build()(x)
    assert inputs[0] == (2, 64) and len(inputs) > 2


def test_precision_is_that_of_the_whole_map(inputs, monkeypatch):
    stem, x = build(), image(1, 64, 20)
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        out = stem(x)
        monkeypatch.setattr(strips_module, 'MAX_MAP_BYTES', 2**24)
        expected = stem(x)
    assert len(inputs) > 2 and out.dtype == expected.dtype
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize('norm', [dict(norm='GN', num_groups=2), dict(norm='IN'), dict(track_running_stats=False)])
def test_statistics_are_those_of_the_whole_map(inputs, norm):
    with torch.no_grad():
        build(**norm)(image(2, 64, 20))
    assert inputs == [(2, 64)]


def test_batchnorm_in_training_mode_sees_the_whole_map(inputs):
    stem = build()
    stem[-1].train()
    with torch.no_grad():
        stem(image(2, 64, 20))
    assert inputs == [(2, 64)]


def test_gradients_hooks_other_classes_and_recorders_see_the_whole_map(inputs):
    stem, x, seen = build(), image(1, 64, 20), []
    stem(x)
    with torch.no_grad():
        for module in stem:
            handle = module.register_forward_hook(lambda module, args, out: seen.append(args[0].shape[2]))
            stem(x)
            handle.remove()
        torch.jit.trace(stem, x, check_trace=False)
        stem[3] = torch.nn.utils.parametrizations.weight_norm(stem[3])
        stem(x)
    assert seen == [64, 32, 32, 32, 32, 32, 32, 16, 16, 16, 16]
    assert set(inputs) == {(1, 64)} and len(inputs) == 1 + len(stem) + 1 + 1
