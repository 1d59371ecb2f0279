"""Batches of large images: one image at a time on the CPU without gradients, and as a batch wherever that is needed."""

import pytest
import torch
from torch import nn

from rmt_mm import RMT
from rmt_mm.backbone import rmt

from support.archs import SMALL_ARCH

THREADS = 3  # SIZE holds THREADS * PIXELS pixels
SIZE, PIXELS = (36, 48), 36 * 16


@pytest.fixture
def batches(monkeypatch):
    """Return the list of batch sizes that the stem computes, with a limit that images of SIZE just reach."""
    sizes = []
    real = rmt.ConvStem.forward
    monkeypatch.setattr(rmt.ConvStem, 'forward', lambda self, x: sizes.append(len(x)) or real(self, x))
    monkeypatch.setattr(rmt, 'MIN_SEPARATE_PIXELS', PIXELS)
    monkeypatch.setattr(torch, 'get_num_threads', lambda: THREADS)
    return sizes


@pytest.mark.parametrize('out_norm', [True, False])
def test_values_of_the_batch(batches, out_norm):
    model, x = RMT(SMALL_ARCH, out_indices=(1, 3), out_norm=out_norm).eval(), torch.rand(3, 3, *SIZE)
    expected = model(x)  # with gradients
    with torch.no_grad():
        outs = model(x)
    assert batches == [3, 1, 1, 1]
    assert isinstance(outs, tuple) and all(out.is_contiguous() for out in outs)
    torch.testing.assert_close(outs, expected)


def test_precision_of_autocast(batches):
    model, x = RMT(SMALL_ARCH).eval(), torch.rand(2, 3, *SIZE)
    with torch.inference_mode(), torch.autocast('cpu', torch.bfloat16):
        outs = model(x)
        first = model(x[:1])
    assert batches == [1, 1, 1]
    assert [out.dtype for out in outs] == [out.dtype for out in first]
    assert all(torch.equal(out[:1], single) for out, single in zip(outs, first))


@pytest.mark.parametrize('x', [torch.rand(1, 3, *SIZE), torch.rand(2, 3, 35, 48), torch.rand(0, 3, *SIZE)])
def test_single_and_small_images_are_a_batch(batches, x):
    with torch.no_grad():
        RMT(SMALL_ARCH).eval()(x)
    assert batches == [len(x)]


def test_batchnorm_in_training_mode_sees_the_batch(batches):
    model, x = RMT(SMALL_ARCH).eval(), torch.rand(2, 3, *SIZE)
    next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d)).train()
    with torch.no_grad():
        model(x)
        model.train()(x)
    assert batches == [2, 2]


def test_batchnorm_without_running_statistics_sees_the_batch(batches):
    norm_cfg = dict(type='BN', track_running_stats=False)
    model, x = RMT(SMALL_ARCH, norm_cfg=norm_cfg).eval(), torch.rand(2, 3, *SIZE)
    with torch.no_grad():
        model(x)
    assert batches == [2]


def test_hooks_of_modules_see_the_batch(batches):
    model, x, seen = RMT(SMALL_ARCH).eval(), torch.rand(2, 3, *SIZE), []
    handle = model.stages[2].register_forward_hook(lambda module, args, out: seen.append(len(out)))
    with torch.no_grad():
        model(x)
        handle.remove()
        model.register_forward_hook(lambda module, args, outs: seen.append(len(outs[0])))
        model(x)
    assert seen == [2, 2] and batches == [2, 1, 1]


def test_a_mask_masks_the_batch(batches):
    model = RMT(SMALL_ARCH, mask_token=True).eval()
    with torch.no_grad():
        model(torch.rand(2, 3, *SIZE), torch.ones(2, 9, 12))
    assert batches == [2]


def test_transforms_and_tracers_record_the_batch(batches):
    model, x = RMT(SMALL_ARCH).eval(), torch.rand(2, 3, *SIZE)
    with torch.no_grad():
        torch.jit.trace(model, x, check_trace=False)
        torch.vmap(lambda image: model(image[None]))(x)
    assert batches == [2, 1]
