"""Batches of large images: one image at a time on the CPU without gradients, and as a batch wherever that is needed."""

import pytest
import torch
from torch import nn

from rmt_mm import RMT, ops
from rmt_mm.errors import UsageError
from rmt_mm.ops import cpu
from rmt_mm.ops.recorders import Call

from support.archs import SMALL_ARCH

SIZE = (36, 48)
CALL = Call.of(torch.zeros(1))


def one_by_one(model, *args):
    """Compute a model one image at a time, whatever the size; return the reason if that is refused."""
    with ops.use(batch='one_by_one'):
        try:
            return model(*args)
        except UsageError as error:
            return str(error)


@pytest.mark.parametrize('out_norm', [True, False])
def test_values_of_the_batch(out_norm):
    model, x = RMT(SMALL_ARCH, out_indices=(1, 3), out_norm=out_norm).eval(), torch.rand(3, 3, *SIZE)
    with torch.no_grad():
        expected, outs = model(x), one_by_one(model, x)
    assert isinstance(outs, tuple) and all(out.is_contiguous() for out in outs)
    torch.testing.assert_close(outs, expected)


def test_precision_of_autocast():
    model, x = RMT(SMALL_ARCH).eval(), torch.rand(2, 3, *SIZE)
    with torch.inference_mode(), torch.autocast('cpu', torch.bfloat16):
        outs, first = one_by_one(model, x), model(x[:1])
    assert [out.dtype for out in outs] == [out.dtype for out in first]
    assert all(torch.equal(out[:1], single) for out, single in zip(outs, first))


def test_large_images_of_a_batch_are_separate():
    """An image is large if it has MIN_SEPARATE_PIXELS for each thread."""
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        for images, height, separate in ((2, 512, True), (2, 511, False), (1, 512, False), (0, 512, False)):
            x = torch.empty(images, 3, height, 512)
            assert (cpu._batch_is_small(CALL, None, None, x) is None) is separate
        torch.set_num_threads(1)
        assert cpu._batch_is_small(CALL, None, None, torch.empty(2, 3, 256, 512)) is None
    finally:
        torch.set_num_threads(threads)
    other = CALL._replace(device='cuda')
    assert 'cuda' in cpu._batch_is_small(other, None, None, torch.empty(2, 3, 4096, 4096))


def test_a_large_batch_is_separated_without_being_asked():
    model = RMT({**SMALL_ARCH, 'depths': (1, 1, 1, 1)}, out_indices=(0,)).eval()
    x = torch.rand(2, 3, 364, 364 * torch.get_num_threads())
    with ops.record() as choices, torch.no_grad():
        model(x)
    assert [choice.kernel for choice in choices if choice.operator == 'batch'] == ['one_by_one']


def test_gradients_and_batchnorm_of_the_batch_are_needed():
    model, x = RMT(SMALL_ARCH).eval(), torch.rand(2, 3, *SIZE)
    assert 'gradients' in one_by_one(model, x)
    with torch.no_grad():
        assert isinstance(one_by_one(model, x), tuple)
        next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d)).train()
        assert 'statistics of the batch' in one_by_one(model, x)
        assert 'statistics of the batch' in one_by_one(model.train(), x)
        stateless = RMT(SMALL_ARCH, norm_cfg=dict(type='BN', track_running_stats=False)).eval()
        assert 'statistics of the batch' in one_by_one(stateless, x)


def test_hooks_of_modules_see_the_batch():
    model, x, seen = RMT(SMALL_ARCH).eval(), torch.rand(2, 3, *SIZE), []
    handle = model.stages[2].register_forward_hook(lambda module, args, out: None)
    with torch.no_grad():
        assert 'hooks' in one_by_one(model, x)
        handle.remove()
        model.register_forward_hook(lambda module, args, outs: seen.append(len(outs[0])))
        assert isinstance(one_by_one(model, x), tuple)  # a hook of the backbone itself sees the batch anyway
    assert seen == [2]


def test_a_mask_masks_the_batch():
    model = RMT(SMALL_ARCH, mask_token=True).eval()
    with torch.no_grad(), ops.record() as choices:
        model(torch.rand(2, 3, *SIZE), torch.ones(2, 9, 12))
    assert not [choice for choice in choices if choice.operator == 'batch']


def test_transforms_and_tracers_record_the_batch():
    model, x = RMT(SMALL_ARCH).eval(), torch.rand(2, 3, *SIZE)
    with torch.no_grad(), ops.use(batch='one_by_one'):
        with pytest.raises(UsageError, match='a tracer'):
            torch.jit.trace(model, x, check_trace=False)
        with pytest.raises(UsageError, match='transform'):
            torch.vmap(lambda image: model(image[None]))(x)
