"""The authors' checkpoints: the names of their tensors, our names for them, and the buffers that we compute."""

import re
from typing import Dict, Iterable, List, Match, Optional, Pattern, Tuple

import torch
from torch import Tensor

from ..arch import Arch, log_decay, rotary_angles
from ..errors import CheckpointError, printable
from .shapes import Shapes, backbone_shapes

# Official name, and ours: # stands for a number, * for the rest.
_BACKBONE_NAMES = [
    ('patch_embed.proj.*', 'stem.*'),
    ('layers.#.downsample.reduction.*', 'downsamples.#.conv.*'),
    ('layers.#.downsample.norm.*', 'downsamples.#.norm.*'),
    ('layers.#.blocks.#.pos.conv.*', 'stages.#.#.cpe.*'),
    ('layers.#.blocks.#.retention_layer_norm.*', 'stages.#.#.norm1.*'),
    ('layers.#.blocks.#.retention.lepe.conv.*', 'stages.#.#.attn.lce.*'),
    ('layers.#.blocks.#.retention.out_proj.*', 'stages.#.#.attn.proj.*'),
    ('layers.#.blocks.#.final_layer_norm.*', 'stages.#.#.norm2.*'),
    ('layers.#.blocks.#.ffn.dwconv.conv.*', 'stages.#.#.ffn.dwconv.*'),
    ('layers.#.blocks.#.ffn.fc1.*', 'stages.#.#.ffn.fc1.*'),
    ('layers.#.blocks.#.ffn.fc2.*', 'stages.#.#.ffn.fc2.*'),
    ('layers.#.blocks.#.gamma_#', 'stages.#.#.gamma#'),
    ('extra_norms.#.*', 'norm#.*'),
]
_HEAD_NAMES = [
    ('proj.*', 'head.proj.*'),
    ('norm.*', 'head.norm.*'),
    ('head.*', 'head.fc.*'),
    ('aux_head.*', 'head.aux_fc.*'),
]
# Three official tensors are concatenated into one of ours.
_QKV = re.compile(r'layers\.(\d+)\.blocks\.(\d+)\.retention\.([qkv])_proj\.(weight|bias)')
_QKV_OURS = re.compile(r'stages\.(\d+)\.(\d+)\.attn\.qkv\.(weight|bias)')
POSITION_BUFFER = re.compile(r'layers\.\d+\.Relpos\.(angle|decay)')
# Names of a classifier's tensors outside the backbone.
CLASSIFIER_HEAD = re.compile(r'(proj|norm|head|aux_head)\.')


def _renames(names: Iterable[Tuple[str, str]]) -> List[Tuple[Pattern, str]]:
    """Return, for pairs of old and new template, a pattern of the old one and a format string of the new one."""
    return [
        (re.compile(re.escape(old).replace(r'\#', r'(\d+)').replace(r'\*', '(.+)')), re.sub('[#*]', '{}', new))
        for old, new in names
    ]


_TO_OURS = _renames([*_BACKBONE_NAMES, *_HEAD_NAMES])
_TO_OFFICIAL = _renames((ours, theirs) for theirs, ours in [*_BACKBONE_NAMES, *_HEAD_NAMES])
_OWN = ('stages.#.#.attn.log_rate', '')  # of a learned decay, which no official file has
_OF_BACKBONE = [pattern for pattern, _ in _renames([_OWN, *((ours, theirs) for theirs, ours in _BACKBONE_NAMES)])]


def _rename(name: str, renames: Iterable[Tuple[Pattern, str]]) -> Optional[str]:
    for pattern, new in renames:
        match = pattern.fullmatch(name)
        if match:
            return new.format(*match.groups())
    return None


def _official_projections(match: Match) -> List[str]:
    """Return the names of the query, key and value projections, given a match of _QKV_OURS."""
    stage, block, kind = match.groups()
    return [f'layers.{stage}.blocks.{block}.retention.{which}_proj.{kind}' for which in 'qkv']


def is_official(names: Iterable[str]) -> bool:
    """Tell whether tensor names are those of an official RMT, after any prefix."""
    return any(re.search(r'(^|\.)layers\.\d+\.blocks\.\d+\.retention\.q_proj\.weight$', name) for name in names)


def is_ours(names: Iterable[str]) -> bool:
    """Tell whether tensor names are those of :class:`rmt_mm.RMT`, after any prefix."""
    return any(re.search(r'(^|\.)stages\.\d+\.\d+\.attn\.qkv\.weight$', name) for name in names)


def is_backbone_tensor(name: str) -> bool:
    """Tell whether a tensor of this name belongs to :class:`rmt_mm.RMT` of some size; a subclass may add others."""
    return any(pattern.fullmatch(name) for pattern in (_QKV_OURS, *_OF_BACKBONE))


def convert_official_state_dict(state_dict: Dict[str, Tensor]) -> Dict[str, Tensor]:
    """Convert an official RMT state dict to the names and shapes of this package.

    Args:
        state_dict (dict[str, Tensor]): the state dict of an official backbone (dense layout), classifier or
            token-label classifier, without prefix: the contents of ``model`` in the released files.

    Returns:
        dict[str, Tensor]: backbone tensors under the names of :class:`rmt_mm.RMT`; a classifier's tensors under the
        names of an mmpretrain ``ImageClassifier``, that is, with ``backbone.`` and ``head.`` in front. Query, key and
        value projections are concatenated into one; position buffers are dropped, since the model computes them.

    Raises:
        ValueError: names that no official RMT has, or a block whose three projections are not complete or do not fit.
    """
    converted: Dict[str, Tensor] = {}
    qkv: Dict[Tuple[str, str, str], Dict[str, Tensor]] = {}  # stage, block, kind -> the three projections
    unknown = []
    for name, tensor in state_dict.items():
        match = _QKV.fullmatch(name)
        if match:
            stage, block, which, kind = match.groups()
            qkv.setdefault((stage, block, kind), {})[which] = tensor
            continue
        if POSITION_BUFFER.fullmatch(name):
            continue
        new = _rename(name, _TO_OURS)
        if new is None:
            unknown.append(name)
        else:
            converted[new] = tensor
    if unknown:
        raise ValueError(
            f'{len(unknown)} names are not those of an official RMT checkpoint, '
            f'such as {", ".join(printable(name, 100) for name in unknown[:3])}.'
        )
    for (stage, block, kind), parts in qkv.items():
        where = printable(f'layers.{stage}.blocks.{block}.retention', 100)
        missing = [which for which in 'qkv' if which not in parts]
        if missing:
            raise ValueError(f'{where} has no {", ".join(f"{which}_proj.{kind}" for which in missing)}.')
        shapes = [tuple(parts[which].shape) for which in 'qkv']
        if len(set(shapes)) > 1 or () in shapes:
            texts = ', '.join(f'{which}_proj.{kind} is {shape}' for which, shape in zip('qkv', shapes))
            raise ValueError(f'{where} has projections of the wrong shape: {texts}.')
        converted[f'stages.{stage}.{block}.attn.qkv.{kind}'] = torch.cat([parts[which] for which in 'qkv'])
    if any(name.startswith('head.') for name in converted):
        converted = {name if name.startswith('head.') else f'backbone.{name}': t for name, t in converted.items()}
    return converted


def revert_to_official_state_dict(state_dict: Dict[str, Tensor]) -> Dict[str, Tensor]:
    """Convert a state dict of this package to the names and shapes of an official one, without position buffers.

    Args:
        state_dict (dict[str, Tensor]): of :class:`rmt_mm.RMT`, or of a classifier (``backbone.`` and ``head.``).

    Returns:
        dict[str, Tensor]: the inverse of :func:`convert_official_state_dict`.

    Raises:
        ValueError: names that neither the backbone nor its classification heads have, or a projection without rows.
    """
    reverted, unknown = {}, []
    for name, tensor in state_dict.items():
        name = name[len('backbone.') :] if name.startswith('backbone.') else name
        match = _QKV_OURS.fullmatch(name)
        if match:
            if not tensor.dim():
                raise ValueError(f'{printable(name, 100)} is a single number.')
            for new, part in zip(_official_projections(match), tensor.chunk(3)):
                reverted[new] = part.clone()  # saving a view would save the whole tensor
            continue
        renamed = _rename(name, _TO_OFFICIAL)
        if renamed is None:
            unknown.append(name)
        else:
            reverted[renamed] = tensor
    if unknown:
        raise ValueError(
            f'{len(unknown)} names are not those of an RMT of this package, '
            f'such as {", ".join(printable(name, 100) for name in unknown[:3])}.'
        )
    return reverted


def official_shapes(shapes: Shapes) -> Shapes:
    """Return names and shapes under official names, given those of a backbone's tensors; leave unknown names."""
    official: Shapes = {}
    for name, shape in shapes.items():
        match = _QKV_OURS.fullmatch(name)
        if match and shape:
            official.update({part: (shape[0] // 3, *shape[1:]) for part in _official_projections(match)})
        else:
            official[_rename(name, _TO_OFFICIAL) or name] = shape
    return official


def position_buffers(arch: Arch) -> Dict[str, Tensor]:
    """Return the position buffers of official checkpoints, which this package computes.

    Args:
        arch (Arch): the size.

    Returns:
        dict[str, Tensor]: for every stage, the rotation's angles, each twice, (head_dim, ), and the logarithm of the
        heads' decay, (heads, ), fp32.
    """
    buffers = {}
    for i, stage in enumerate(arch.stages()):
        angles = rotary_angles(stage.dim // stage.num_heads).repeat_interleave(2)
        buffers[f'layers.{i}.Relpos.angle'] = angles * stage.rotation
        decay = log_decay(stage.num_heads, stage.init_value, stage.heads_range, stage.decay)
        buffers[f'layers.{i}.Relpos.decay'] = torch.tensor(decay, dtype=torch.float32)
    return buffers


def official_backbone_shapes(arch: Arch, in_channels: int = 3, out_norms: bool = True) -> Shapes:
    """Return :func:`backbone_shapes` under official names, and the position buffers."""
    buffers = {name: tuple(buffer.shape) for name, buffer in position_buffers(arch).items()}
    return {**official_shapes(backbone_shapes(arch, in_channels, out_norms)), **buffers}


def check_position_buffers(state_dict: Dict[str, Tensor], arch: Arch) -> None:
    """Raise CheckpointError if a file was trained with another decay or rotation than the model computes.

    Args:
        state_dict (dict[str, Tensor]): tensors of an official backbone; position buffers may be missing.
        arch (Arch): the size of the model.
    """
    for name, ours in position_buffers(arch).items():
        theirs = state_dict.get(name)
        # The tolerance admits files in half precision; another decay range differs by tens of per cent.
        if theirs is not None and not (
            theirs.shape == ours.shape and theirs.float().cpu().allclose(ours, rtol=5e-3, atol=1e-5)
        ):
            first, wanted = ([round(value, 4) for value in buffer.flatten()[:3].tolist()] for buffer in (theirs, ours))
            raise CheckpointError(
                f'{name} starts with {first}, and that of the model with {wanted}: the file was trained with another '
                'decay or rotation and would not work with this model.'
            )
