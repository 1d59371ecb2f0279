"""The authors' checkpoints: the names and shapes of their tensors, and our names for them."""

import re
from typing import Dict, Iterable, List, Optional, Pattern, Tuple

import torch
from torch import Tensor

from ..arch import Arch, log_decay, rotary_angles
from ..errors import printable

Shapes = Dict[str, Tuple[int, ...]]

# Official name, and ours: # stands for a number, * for the rest.
_NAMES = [
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
    ('proj.*', 'head.proj.*'),
    ('norm.*', 'head.norm.*'),
    ('head.*', 'head.fc.*'),
    ('aux_head.*', 'head.aux_fc.*'),
]
# Three official tensors are concatenated into one of ours.
_QKV = re.compile(r'layers\.(\d+)\.blocks\.(\d+)\.retention\.([qkv])_proj\.(weight|bias)')
_QKV_OURS = re.compile(r'stages\.(\d+)\.(\d+)\.attn\.qkv\.(weight|bias)')
POSITION_BUFFER = re.compile(r'layers\.\d+\.Relpos\.(angle|decay)')


def _renames(names: Iterable[Tuple[str, str]]) -> List[Tuple[Pattern, str]]:
    """Return, for pairs of old and new template, a pattern of the old one and a format string of the new one."""
    return [
        (re.compile(re.escape(old).replace(r'\#', r'(\d+)').replace(r'\*', '(.+)')), re.sub('[#*]', '{}', new))
        for old, new in names
    ]


_TO_OURS = _renames(_NAMES)
_TO_OFFICIAL = _renames((ours, theirs) for theirs, ours in _NAMES)


def _rename(name: str, renames: Iterable[Tuple[Pattern, str]]) -> Optional[str]:
    for pattern, new in renames:
        match = pattern.fullmatch(name)
        if match:
            return new.format(*match.groups())
    return None


def is_official(names: Iterable[str]) -> bool:
    """Tell whether tensor names are those of an official RMT, after any prefix."""
    return any(re.search(r'(^|\.)layers\.\d+\.blocks\.\d+\.retention\.q_proj\.weight$', name) for name in names)


def is_ours(names: Iterable[str]) -> bool:
    """Tell whether tensor names are those of :class:`rmt_mm.RMT`, after any prefix."""
    return any(re.search(r'(^|\.)stages\.\d+\.\d+\.attn\.qkv\.weight$', name) for name in names)


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
        ValueError: names that no official RMT has, or a block without one of its three projections.
    """
    converted: Dict[str, Tensor] = {}
    qkv: Dict[str, Dict[str, Tensor]] = {}  # our name -> the three parts of the projection
    unknown = []
    for name, tensor in state_dict.items():
        match = _QKV.fullmatch(name)
        if match:
            stage, block, which, kind = match.groups()
            qkv.setdefault(f'stages.{stage}.{block}.attn.qkv.{kind}', {})[which] = tensor
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
    for name, parts in qkv.items():
        missing = [which for which in 'qkv' if which not in parts]
        if missing:
            lacks = ', '.join(f'{which}_proj' for which in missing)
            raise ValueError(f'{printable(name, 100)}: the checkpoint has no {lacks}.')
        converted[name] = torch.cat([parts[which] for which in 'qkv'])
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
        ValueError: names that neither the backbone nor its classification heads have.
    """
    reverted, unknown = {}, []
    for name, tensor in state_dict.items():
        name = name[len('backbone.') :] if name.startswith('backbone.') else name
        match = _QKV_OURS.fullmatch(name)
        if match:
            stage, block, kind = match.groups()
            for which, part in zip('qkv', tensor.chunk(3)):
                # Clone: saving a view would save the whole tensor.
                reverted[f'layers.{stage}.blocks.{block}.retention.{which}_proj.{kind}'] = part.clone()
            continue
        new = _rename(name, _TO_OFFICIAL)
        if new is None:
            unknown.append(name)
        else:
            reverted[new] = tensor
    if unknown:
        raise ValueError(
            f'{len(unknown)} names are not those of an RMT of this package, '
            f'such as {", ".join(printable(name, 100) for name in unknown[:3])}.'
        )
    return reverted


def backbone_shapes(arch: Arch, in_channels: int = 3, out_norms: bool = True) -> Shapes:
    """Return names and shapes of an official backbone's tensors, in the order of the released files.

    Args:
        arch (Arch): the size.
        in_channels (int): channels of the input image. Default 3.
        out_norms (bool): include the norms of dense prediction. Default True.
    """
    dims, shapes = arch.embed_dims, {}
    widths = (in_channels, dims[0] // 2, dims[0] // 2, dims[0], dims[0])
    for i in range(4):
        shapes.update(layer(f'patch_embed.proj.{3 * i}', widths[i + 1], widths[i], 3, 3))
        shapes.update(batch_norm(f'patch_embed.proj.{3 * i + 1}', widths[i + 1]))
    for i, stage in enumerate(arch.stages()):
        dim, stage_name, hidden = stage.dim, f'layers.{i}', int(stage.dim * stage.mlp_ratio)
        shapes[f'{stage_name}.Relpos.angle'] = (dim // stage.num_heads,)
        shapes[f'{stage_name}.Relpos.decay'] = (stage.num_heads,)
        for j in range(stage.depth):
            block = f'{stage_name}.blocks.{j}'
            if stage.layer_scale:
                shapes.update({f'{block}.gamma_{k}': (1, 1, 1, dim) for k in (1, 2)})
            shapes.update(layer_norm(f'{block}.retention_layer_norm', dim))
            for which in 'qkv':
                shapes.update(layer(f'{block}.retention.{which}_proj', dim, dim))
            shapes.update(layer(f'{block}.retention.lepe.conv', dim, 1, 5, 5))
            shapes.update(layer(f'{block}.retention.out_proj', dim, dim))
            shapes.update(layer_norm(f'{block}.final_layer_norm', dim))
            shapes.update(layer(f'{block}.ffn.fc1', hidden, dim))
            shapes.update(layer(f'{block}.ffn.fc2', dim, hidden))
            shapes.update(layer(f'{block}.ffn.dwconv.conv', hidden, 1, 3, 3))
            shapes.update(layer(f'{block}.pos.conv', dim, 1, 3, 3))
        if i + 1 < len(dims):
            shapes.update(layer(f'{stage_name}.downsample.reduction', dims[i + 1], dim, 3, 3))
            shapes.update(batch_norm(f'{stage_name}.downsample.norm', dims[i + 1]))
    if out_norms:
        for i, dim in enumerate(dims):
            shapes.update(layer_norm(f'extra_norms.{i}', dim))
    return shapes


def classifier_head_shapes(arch: Arch, num_classes: int = 1000, token_label: bool = False) -> Shapes:
    """Return names and shapes of an official classification head's tensors."""
    dim, hidden = arch.embed_dims[-1], 1024
    shapes = {**layer('proj', hidden, dim), **batch_norm('norm', hidden), **layer('head', num_classes, hidden)}
    if token_label:
        shapes.update(layer('aux_head', num_classes, dim))
    return shapes


def layer(name: str, *weight: int) -> Shapes:
    """Return the shapes of a Linear or convolution with bias, given that of its weight."""
    return {f'{name}.weight': weight, f'{name}.bias': weight[:1]}


def layer_norm(name: str, dim: int) -> Shapes:
    """Return the shapes of a LayerNorm."""
    return {f'{name}.weight': (dim,), f'{name}.bias': (dim,)}


def batch_norm(name: str, dim: int) -> Shapes:
    """Return the shapes of a BatchNorm."""
    return {
        **layer_norm(name, dim),
        f'{name}.running_mean': (dim,),
        f'{name}.running_var': (dim,),
        f'{name}.num_batches_tracked': (),
    }


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
        buffers[f'layers.{i}.Relpos.angle'] = rotary_angles(stage.dim // stage.num_heads).repeat_interleave(2)
        decay = log_decay(stage.num_heads, stage.init_value, stage.heads_range)
        buffers[f'layers.{i}.Relpos.decay'] = torch.tensor(decay, dtype=torch.float32)
    return buffers
