"""State dicts of checkpoint files: find them, and tell what they are of by the names and shapes of their tensors."""

import os.path as osp
import re
from typing import Dict, Iterable, List, Mapping, Optional, Tuple

from torch import Tensor

from ..errors import CheckpointError, printable
from .official_names import is_ours
from .shapes import Shapes

StateDict = Dict[str, Tensor]

# Names of tensors that layers compute with. Other tensors, such as counters, indices and masks, may be of any type.
_WEIGHT = re.compile(r'(^|[._])(weight|bias|gamma\w*|running_mean|running_var)$')
# A tensor name in a block, official or ours.
_BLOCK = re.compile(
    r'(?:layers\.(\d{1,3})\.blocks|stages\.(\d{1,3}))\.(\d{1,3})\.'
    r'((?:retention_layer_norm|norm1)\.weight$)?'
)


def pick_state_dict(checkpoint: dict, weights: str = 'auto') -> Tuple[str, StateDict, List[str]]:
    """Find the state dict in a checkpoint.

    Returns:
        tuple: its key in the checkpoint, its tensors without the ``module.`` of wrappers, and notes for the user.

    Raises:
        CheckpointError: there is none, or none under the key ``weights``; or a weight is no floating-point number.
    """
    groups = {key: value for key, value in checkpoint.items() if isinstance(value, dict)}
    notes = []
    if weights != 'auto':
        if weights not in groups:
            there = ', '.join(key for key in ('model', 'model_ema', 'state_dict') if key in groups)
            raise CheckpointError(
                f'the file has no {weights!r}; it has {there or "a bare state dict"}.', 'weights', weights='auto'
            )
        key: Optional[str] = weights
    else:
        key = next((key for key in ('state_dict', 'model', 'model_ema') if key in groups), None)
        if key == 'model' and 'model_ema' in groups:
            notes.append('note: these are the raw weights; the file has their moving average too, as model_ema')
    others = [name for name in checkpoint if name not in ('meta', 'official_only', 'model', 'model_ema', key)]
    if key and others:
        notes.append(f'left out: {list_some([str(name) for name in others], 6)}')
    if 'ema_state_dict' in groups:
        notes.append("note: mmengine's EMAHook stores the moving average as state_dict, which is what is used")
    state_dict = groups[key] if key else checkpoint
    odd = [name for name, value in state_dict.items() if not isinstance(value, Tensor) or not isinstance(name, str)]
    if odd or not state_dict:
        what = f'has entries that are not tensors ({list_some([str(name) for name in odd])})' if odd else 'is empty'
        raise CheckpointError(f'the file holds no state dict: {repr(key) if key else "it"} {what}.')
    common = osp.commonprefix(list(state_dict))
    wrappers = len(common) - len(re.sub(r'^(?:module\.)*', '', common))
    state_dict = {name[wrappers:]: tensor for name, tensor in state_dict.items()}
    warning = check_weights(state_dict)
    if warning:
        notes.append(f'warning: {warning}')
    return key or 'bare state dict', state_dict, notes


def check_weights(state_dict: StateDict) -> Optional[str]:
    """Return a sentence on tensors that hold NaN or infinite numbers, or None.

    Raises:
        CheckpointError: a weight is of a type that no layer computes with, such as bool, int8 or complex64.
    """
    odd = [name for name, tensor in state_dict.items() if _WEIGHT.search(name) and not tensor.is_floating_point()]
    if odd:
        kind = str(state_dict[odd[0]].dtype).replace('torch.', '')
        raise CheckpointError(
            f'{len(odd)} weights are not floating-point numbers ({list_some(odd)}, the first of type {kind}): save the '
            'state_dict of a model in fp32, fp16 or bf16.'
        )
    names = find_not_finite(state_dict)
    if not names:
        return None
    return f'{len(names)} tensors hold NaN or infinite numbers ({list_some(names)}), and so will what is computed.'


def find_not_finite(tensors: Mapping[str, Tensor]) -> List[str]:
    """Return the names of the floating-point tensors that hold NaN or infinite numbers."""
    return [
        name
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and not tensor.is_meta and not tensor.isfinite().all()
    ]


def require_rmt(state_dict: StateDict) -> None:
    """Raise CheckpointError if no tensor has a name of the blocks of :class:`rmt_mm.RMT`, after any prefix."""
    if not is_ours(state_dict):
        raise CheckpointError(
            f'this is not a checkpoint of RMT: none of its {len(state_dict)} tensors has such a name '
            f'(it has {list_some(list(state_dict))}).'
        )


def is_deployed(names: Iterable[str]) -> bool:
    """Tell by our names whether an RMT is in the form for inference: its BatchNorms are fused into the convolutions."""
    names = list(names)
    norms = any(re.search(r'(^|\.)(stem\.(1|4|7|10)|downsamples\.\d\.norm)\.', name) for name in names)
    return is_ours(names) and not norms and any(re.search(r'(^|\.)stem\.0\.weight$', name) for name in names)


def is_marked_deployed(checkpoint: dict) -> bool:
    """Tell whether a checkpoint is marked as the form for inference: with other norms the names do not show it."""
    return bool(as_dict(as_dict(checkpoint.get('meta')).get('rmt_mm')).get('deploy'))


def measure(state_dict: StateDict) -> Tuple[Tuple[int, ...], Tuple[int, ...]]:
    """Return channels and block counts of the stages of an RMT, by official names or ours; 0 if none are found."""
    dims: Dict[int, int] = {}
    depths: Dict[int, int] = {}
    for name, tensor in state_dict.items():
        match = _BLOCK.match(name)
        if match:
            stage, block = int(match.group(1) or match.group(2)), int(match.group(3))
            depths[stage] = max(depths.get(stage, 0), block + 1)
            if match.group(4):
                dims[stage] = tensor.numel()
    stages = range(max(depths, default=-1) + 1)
    return tuple(dims.get(stage, 0) for stage in stages), tuple(depths.get(stage, 0) for stage in stages)


def differences(wanted: Shapes, have: Shapes) -> List[str]:
    """Return a text each on missing tensors, unexpected tensors and tensors of the wrong shape; empty if all fit."""
    missing = [name for name in wanted if name not in have]
    unexpected = [name for name in have if name not in wanted]
    wrong = [name for name in have if name in wanted and tuple(have[name]) != tuple(wanted[name])]
    found = [
        f'{len(names)} {what} ({list_some(names)})'
        for names, what in ((missing, 'missing'), (unexpected, 'unexpected'))
        if names
    ]
    if wrong:
        name = wrong[0]
        found.append(
            f'{len(wrong)} of the wrong shape ({list_some([name])} is {tuple(have[name])}, not {tuple(wanted[name])})'
        )
    return found


def as_dict(value: object) -> dict:
    """Return a dict unchanged, and an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def list_some(names: List[str], count: int = 3) -> str:
    """Join the first names, shortened and escaped, since an untrusted file gives them; count the others."""
    first = [printable(name, 100) for name in names[:count]]
    return ', '.join(first) + (f' and {len(names) - count} more' if len(names) > count else '')
