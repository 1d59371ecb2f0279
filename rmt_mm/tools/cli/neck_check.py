"""Run a neck once on small feature maps to find which maps it accepts and uses, and what it returns.

The same arguments mean different things to different necks: mmdet's YOLOV3Neck lists channels from the deepest, FPN
skips inputs by ``start_level``, others use only the last input. A run shows whether the maps fit, which strides the
outputs have, and, by the gradients, which inputs are used.
"""

import copy
from typing import List, NamedTuple, Optional, Tuple

import torch
from mmengine.registry import MODELS
from torch import Tensor

from ...errors import FOREIGN_ERRORS
from .types import is_of_library

# Image sides from which the sizes of the maps are computed. The second is for necks whose kernels need larger maps.
SIDES = (256, 1024)


class NeckError(Exception):
    """A neck does not accept its input maps."""


class Features(NamedTuple):
    """Channels and strides of the feature maps that one part of a model passes to the next."""

    channels: List[int]
    strides: List[int]  # 0 for vectors


def run_neck(neck, features: Features, scope: str, trace: bool = False) -> Optional[Tuple[Features, List[List[int]]]]:
    """Return the outputs of a neck and, for each of them, the inputs that it depends on.

    Args:
        neck (dict | list[dict]): the neck's config.
        features (Features): its inputs.
        scope (str): the library whose names the config uses.
        trace (bool): find the inputs that each output depends on, by a backward pass for each. Default False: all.

    Returns:
        tuple | None: None if the neck cannot be run here, or is of another package and cannot be built or does not
        accept these maps.

    Raises:
        NeckError: a neck of one of the libraries cannot be built, or does not accept these maps.
    """
    parts = neck if isinstance(neck, (list, tuple)) else [neck]
    known = all(is_of_library(part.get('type'), scope) for part in parts)
    with MODELS.switch_scope_and_registry(scope) as registry, torch.random.fork_rng(devices=[]):
        try:
            module = registry.build(copy.deepcopy(neck)).eval()
        except FOREIGN_ERRORS as caught:
            if known:
                raise NeckError(str(caught) or type(caught).__name__) from caught
            return None
    error = None
    for side in SIDES:
        maps = [torch.zeros(1, c, side // s, side // s, requires_grad=trace) for c, s in zip(*features)]
        try:
            with torch.set_grad_enabled(trace):
                outs = module(tuple(maps))
            outs = [outs] if isinstance(outs, Tensor) else list(outs)
            used = [_find_used(out, maps) if trace else list(range(len(maps))) for out in outs]
        except NotImplementedError:
            return None
        except FOREIGN_ERRORS as caught:
            error = error or caught
            continue
        strides = [round(side / out.shape[-1]) if out.dim() == 4 else 0 for out in outs]
        return Features([out.shape[1] for out in outs], strides), used
    if known:
        raise NeckError(str(error) or type(error).__name__) from error
    return None


def _find_used(out: Tensor, maps: List[Tensor]) -> List[int]:
    if not out.requires_grad:
        return []
    gradients = torch.autograd.grad(out.sum(), maps, retain_graph=True, allow_unused=True)
    return [i for i, gradient in enumerate(gradients) if gradient is not None]
