"""Run the heads of one of mmseg's segmentors on small inputs, to find losses and norms that would fail in training."""

import copy
import math
import random
import warnings
from typing import Any, Iterable, Iterator, List, Optional, Set, Tuple

import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from mmengine.dist import get_world_size
from mmengine.model import revert_sync_batchnorm
from mmengine.structures import PixelData
from torch import Tensor, nn

from ..errors import FOREIGN_ERRORS, in_one_line
from .datasets import pick_evenly
from .findings import Finding

SIDES = (16, 8, 4, 4)  # of the maps on which a head is run: only a pooling layer of its own makes maps of one pixel


def find_decode_heads(model: nn.Module) -> Iterator[Tuple[str, Any]]:
    """Yield mmseg's heads that predict a class for each pixel, with their paths, such as ``'decode_head'``."""
    for name, module in model.named_modules():
        bases = type(module).__mro__
        if any(cls.__name__ == 'BaseDecodeHead' and cls.__module__.startswith('mmseg.') for cls in bases):
            yield name.replace('module.', '', 1), module


def check_losses(
    model: nn.Module, labels: Iterable[int], where: str, batches: Iterable[Set[int]] = ()
) -> Iterator[Finding]:
    """Find losses that fail, or do not depend on the prediction, by computing them for labels that the data have.

    Heads that compute their losses in another way than BaseDecodeHead are checked for the number of class weights only.

    Args:
        model (nn.Module): the segmentor.
        labels (Iterable[int]): labels in the data, ignored ones included.
        where (str): name of the data loader.
        batches (Iterable[set[int]]): labels in some batches, which may have more ignored pixels; read only for losses
            with class weights. Default: none.
    """
    labels = set(labels)
    for name, head in find_decode_heads(model):
        place, given = f'model.{name}', [getattr(loss, 'class_weight', None) for loss in _losses(head)]
        weights: List[Any] = [weight for weight in given if hasattr(weight, '__len__')]
        unequal = [len(weight) for weight in weights if len(weight) != head.out_channels]
        used = {label for label in labels if label < max(head.out_channels, 2)}
        error, learns = None, True
        if not used or not _runs_here(head):
            used = set()
        else:
            error, learns = _run_loss(head, used)
        if unequal and (error or max(unequal) > 1):
            yield Finding(
                f'{place}.loss_decode.class_weight has {unequal[0]} weights, but the head predicts '
                f'{head.out_channels} classes: give one weight for each class.'
            )
        if head.out_channels == 1 and (error or not learns):
            yield Finding(
                f'{place}.num_classes is 1, and the softmax over one class is always 1: nothing can be learned with '
                'this loss. Name the background as a class (metainfo.classes of two names) and set '
                f'{place}.num_classes=2, and {place}.out_channels=1 too if loss_decode.use_sigmoid=True.'
            )
        if error:
            yield Finding(
                f'{place}.loss_decode fails for the labels {_list(used)} of {where}'
                f'{" with class_weight, which it may not take" if weights else ""}: {_text(error)}.'
            )
        if not learns:
            yield Finding(f'{place}.loss_decode is the same for every prediction: nothing can be learned with it.')
        ignored = (labels.union(*batches) if weights else labels) - used if used else set()
        error, _ = _run_loss(head, used | ignored) if ignored else (None, True)
        if error:
            yield Finding(
                f'{place}.loss_decode fails for the ignored pixels ({_list(ignored)}) of {where}'
                + (
                    f": mmseg's loss with class_weight takes none. Set {place}.loss_decode.reduction='none', which "
                    'leaves them out, or, if padding makes them, data_preprocessor.seg_pad_val to the background.'
                    if weights and head.ignore_index in ignored
                    else f': {_text(error)}. {place}.ignore_index is {head.ignore_index}: set it to the ignored label.'
                )
            )


def _losses(head: Any) -> List[nn.Module]:
    return list(head.loss_decode) if isinstance(head.loss_decode, nn.ModuleList) else [head.loss_decode]


def _runs_here(head: Any) -> bool:
    """Tell whether the head's loss can be computed here as in training."""
    from mmseg.models.decode_heads.decode_head import BaseDecodeHead

    # mmseg's FocalLoss computes something else on the CPU, and fails there for several classes.
    on_gpu = any(parameter.is_cuda for parameter in head.parameters())
    focal = any(type(loss).__name__ == 'FocalLoss' for loss in _losses(head))
    return type(head).loss_by_feat is BaseDecodeHead.loss_by_feat and not (on_gpu and focal)


def _run_loss(head: Any, labels: Set[int]) -> Tuple[Optional[Exception], bool]:
    """Return the error of the head's loss for these labels, and whether the loss depends on the prediction.

    Run it on the CPU: on a GPU, a label out of range would leave the process without a usable GPU.
    """
    from mmseg.structures import SegDataSample

    width = max(len(labels), head.out_channels) + 1
    target = torch.from_numpy(np.resize(sorted(labels), (1, 2, width)).astype(np.int64))
    logits = torch.linspace(-1, 1, head.out_channels * 2 * width).view(1, head.out_channels, 2, width)
    logits.requires_grad_()
    sample = SegDataSample(gt_sem_seg=PixelData(data=target))
    try:
        with torch.enable_grad():
            losses = copy.deepcopy(head).cpu().loss_by_feat(logits, [sample])
            total = sum(value.sum() for key, value in losses.items() if 'loss' in key)
            if not total.requires_grad:
                return None, False
            (gradient,) = torch.autograd.grad(total, logits)
    except FOREIGN_ERRORS as error:
        return error, True
    return None, bool(gradient.any())


def find_batch_labels(dataset, preprocessor: nn.Module, batch_size: int, at_most: int = 8) -> Iterator[Set[int]]:
    """Yield the labels in some batches after the pipeline and the padding, which may add ignored pixels.

    The state of the random generators is the same afterwards.
    """
    sample = pick_evenly(range(len(dataset)), at_most)
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            for start in range(0, len(sample), batch_size):
                batch = pseudo_collate([dataset[i] for i in sample[start : start + batch_size]])
                done = preprocessor(batch, training=True)
                yield {int(x) for s in done['data_samples'] for x in s.gt_sem_seg.data.unique()}
        except FOREIGN_ERRORS:
            pass  # the training raises the error itself
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


def check_norms(model: nn.Module, dataloader, where: str) -> Iterator[Finding]:
    """Find BatchNorms that see a single value per channel, as behind the pooling of UPerNet with one image a batch."""
    heads = list(find_decode_heads(model))
    if not heads:
        return
    last = 0  # images in the last batch, if it is not full
    if not dataloader.drop_last and 'Infinite' not in type(dataloader.sampler).__name__:
        last = len(dataloader.sampler) % (dataloader.batch_size or 1)
    for name, head in heads if 1 in (dataloader.batch_size, last) else ():
        layer = _find_single_value(head)
        if layer:
            cure = 'drop_last=True' if dataloader.batch_size != 1 else 'batch_size=2 or more'
            what = 'the last batch has' if dataloader.batch_size != 1 else 'a batch has'
            yield Finding(
                f'{where}: {what} one image, and model.{name}.{layer} is a BatchNorm that then sees one value per '
                f"channel, which it cannot train on: set {where}.{cure}, or model.{name}.norm_cfg=dict(type='GN', "
                f'num_groups={math.gcd(32, head.channels)}).'
            )


def _find_single_value(head: Any) -> Optional[str]:
    """Return the path of the BatchNorm of a head that fails for one image, or None."""
    at: List[str] = []
    try:
        head = copy.deepcopy(head).cpu().train()
        if get_world_size() == 1:  # otherwise other processes have other images
            head = revert_sync_batchnorm(head)
        for name, module in head.named_modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.register_forward_pre_hook(lambda module, inputs, name=name: at.append(name))
        with torch.no_grad(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            head(_make_maps(head))
    except FOREIGN_ERRORS as error:
        # Other errors come from the made-up maps: the head may need other sizes or inputs.
        if at and 'more than 1 value per channel' in str(error):
            return at[-1]
    return None


def _make_maps(head: Any) -> List[Tensor]:
    """Return maps of one image with the channels that a head selects by ``in_index``."""
    several = isinstance(head.in_index, (list, tuple))
    indices = list(head.in_index) if several else [head.in_index]
    channels = head.in_channels
    if not isinstance(channels, (list, tuple)):  # one map, or the sum of several
        channels = [channels - len(indices) + 1, *[1] * (len(indices) - 1)]
    maps = [torch.zeros(1, 1, side, side) for side in SIDES]
    maps += [torch.zeros(1, 1, 4, 4)] * (max(indices) + 1 - len(maps))
    for i, count in zip(indices, channels):
        maps[i] = torch.zeros(1, count, *maps[i].shape[2:])
    return maps


def _text(error: Exception) -> str:
    return in_one_line(error).rstrip('.')


def _list(values: Iterable[int]) -> str:
    return ', '.join(map(str, sorted(values)))
