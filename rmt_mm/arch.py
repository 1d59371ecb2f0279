"""The sizes of RMT and of its relatives, the check of a custom size, and the formulas of decay and rotation."""

import math
from typing import Any, List, NamedTuple, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor

NUM_STAGES = 4  # of the published sizes

LogDecay = Tuple[float, ...]  # log(gamma_i) of every head

# Convolutions of a stem: out channels / the first stage's channels, kernel, stride. A norm follows each, GELU all but
# the last.
STEMS = {
    'conv': ((0.5, 3, 2), (0.5, 3, 1), (1, 3, 2), (1, 3, 1)),  # RMT
    'swin': ((0.5, 3, 2), (1, 3, 2)),  # RMT-Swin, released code
    'patch4': ((1, 4, 4),),  # one convolution, as ViT and Swin embed patches
    'patch16': ((1, 16, 16),),
}
# How the decay D enters attention. The paper's Eq. 5 is 'outside'; the released code is 'inside'.
DECAYS = ('inside', 'outside', 'learned', 'none')
DISTANCES = ('manhattan', 'euclidean', 'chebyshev')


class Stage(NamedTuple):
    """One stage of an :class:`Arch`."""

    dim: int
    depth: int
    num_heads: int
    init_value: float
    heads_range: float
    mlp_ratio: float
    decomposed: bool
    layer_scale: bool
    cpe: bool
    lce: bool
    rotation: bool
    decay: str
    distance: str


class Arch(NamedTuple):
    """A size of RMT: one value a stage, the finest stage first, and how all stages compute."""

    embed_dims: Tuple[int, ...]  # channels
    depths: Tuple[int, ...]  # blocks
    num_heads: Tuple[int, ...]  # attention heads
    # Parameters of the decay gamma_i = 1 - 2^(-a - r * i / n), named as in the released code. init_values is not the
    # initial value of LayerScale, which has that name in other backbones.
    init_values: Tuple[float, ...]  # a
    heads_ranges: Tuple[float, ...]  # r
    mlp_ratios: Tuple[float, ...]  # hidden channels / embedding channels in the FFN
    decomposed: Tuple[bool, ...]  # MaSA along rows, then columns; otherwise over the whole map
    layer_scales: Tuple[bool, ...]  # whether the blocks have LayerScale
    # For relatives and ablations: one value for all stages.
    stem: str = 'conv'  # a name in STEMS
    cpe: bool = True  # conditional position encoding: the depthwise convolution at the start of a block
    lce: bool = True  # local context enhancement: the depthwise convolution of the values
    rotation: bool = True  # of queries and keys, by their tokens' indices
    decay: str = 'inside'  # a name in DECAYS
    distance: str = 'manhattan'  # a name in DISTANCES

    def stages(self) -> List[Stage]:
        """Return the stages, the finest first."""
        each, common = self[: -len(SCALARS)], self[-len(SCALARS) + 1 :]
        return [Stage(*values, *common) for values in zip(*each)]

    def strides(self) -> Tuple[int, ...]:
        """Return the strides of the stages."""
        first = math.prod(stride for _, _, stride in STEMS[self.stem])
        return tuple(first * 2**i for i in range(len(self.depths)))


SCALARS = tuple(Arch._field_defaults)  # the fields with one value for all stages, the stem first

_SMALL = Arch(
    embed_dims=(64, 128, 256, 512),
    depths=(3, 4, 18, 4),
    num_heads=(4, 4, 8, 16),
    init_values=(2, 2, 2, 2),
    heads_ranges=(4, 4, 6, 6),
    mlp_ratios=(4, 4, 3, 3),
    decomposed=(True, True, True, False),
    layer_scales=(False, False, False, False),
)
_SWIN = Arch(
    embed_dims=(96, 192, 384, 768),
    depths=(2, 2, 6, 2),
    num_heads=(3, 6, 12, 24),
    init_values=(1, 1, 1, 1),
    heads_ranges=(3, 3, 3, 3),
    mlp_ratios=(3, 3, 3, 3),
    decomposed=(True, True, False, False),
    layer_scales=(False, False, False, False),
    stem='swin',
)
# From the released code. The paper's text decomposes stages 1-3 of every size; the released T decomposes 1-2, and the
# published FLOPs of T agree with that.
ARCHS = {
    'tiny': _SMALL._replace(
        depths=(2, 2, 8, 2),
        mlp_ratios=(3, 3, 3, 3),
        decomposed=(True, True, False, False),
    ),
    'small': _SMALL,
    'base': Arch(
        embed_dims=(80, 160, 320, 512),
        depths=(4, 8, 25, 8),
        num_heads=(5, 5, 10, 16),
        init_values=(2, 2, 2, 2),
        heads_ranges=(5, 5, 6, 6),
        mlp_ratios=(4, 4, 3, 3),
        decomposed=(True, True, True, False),
        layer_scales=(False, False, True, True),
    ),
    'large': Arch(
        embed_dims=(112, 224, 448, 640),
        depths=(4, 8, 25, 8),
        num_heads=(7, 7, 14, 20),
        init_values=(2, 2, 2, 2),
        heads_ranges=(6, 6, 6, 6),
        mlp_ratios=(4, 4, 3, 3),
        decomposed=(True, True, True, False),
        layer_scales=(False, False, True, True),
    ),
    'swin-tiny': _SWIN,
    # The paper names RMT-Swin-S; the released class has the depths of T alone. These are Swin-S's.
    'swin-small': _SWIN._replace(depths=(2, 2, 18, 2)),
    # In no release: DeiT-S's skeleton with the decay that the paper prints. The rest is ours (docs/relatives.md).
    'deit-small': Arch(
        embed_dims=(384,),
        depths=(12,),
        num_heads=(6,),
        init_values=(2,),
        heads_ranges=(8,),
        mlp_ratios=(4,),
        decomposed=(False,),
        layer_scales=(False,),
        stem='patch16',
    ),
}


def short_name(name: str) -> str:
    """Return the short name of a preset: 't' of 'tiny', 'swin-t' of 'swin-tiny'."""
    family, dash, size = name.rpartition('-')
    return family + dash + size[0]


def find_preset(name: str) -> Optional[Arch]:
    """Return the preset of a name or short name, in any case; None if there is none."""
    return next((arch for preset, arch in ARCHS.items() if name.lower() in (preset, short_name(preset))), None)


def resolve_arch(arch: Union[str, dict], options: Optional[dict] = None) -> Arch:
    """Turn a preset's name or a dict into a checked :class:`Arch`.

    Args:
        arch (str | dict): a name in :data:`ARCHS` or its short name (t, s, b, l, swin-t, swin-s, deit-s; case does not
            matter), or a dict with the fields of :class:`Arch`, one value a stage. A default may be left out.
        options (dict, optional): fields that differ from ``arch``, such as ``dict(lce=False)``. Default None.

    Returns:
        Arch: the size, its values as tuples.

    Raises:
        ValueError: an unknown name, unknown or missing keys, a wrong number of values, channels that are not an even
            multiple of the heads (the rotation works on pairs of channels), or options that exclude each other.
        TypeError: ``arch`` is neither a str nor a dict, or ``options`` is no dict.
    """
    if isinstance(arch, str):
        preset = find_preset(arch)
        if preset is None:
            names = ', '.join(ARCHS)
            raise ValueError(f'Unknown arch {arch!r}: choose one of {names}, or give a dict of your own size.')
        given = preset._asdict()
    elif isinstance(arch, dict):
        given = {**Arch._field_defaults, **arch}
    else:
        raise TypeError(f'arch must be a str or a dict, got {type(arch).__name__}.')
    if not isinstance(options, (dict, type(None))):
        raise TypeError(f'arch_options must be a dict, got {type(options).__name__}.')

    _check_keys('arch', given, Arch._fields)
    _check_keys('arch_options', options or {}, ())
    given.update(options or {})
    return _check(Arch(**{key: _values(key, value, given['embed_dims']) for key, value in given.items()}))


def _check_keys(name: str, given: dict, needed: Tuple[str, ...]) -> None:
    problems = [
        f'{text} {", ".join(sorted(map(str, keys)))}'
        for text, keys in (
            ('unknown:', set(given).difference(Arch._fields)),
            ('missing:', set(needed).difference(given)),
        )
        if keys
    ]
    if problems:
        raise ValueError(f'{name} has wrong keys ({"; ".join(problems)}). It takes {", ".join(Arch._fields)}.')


def _values(key: str, value: Any, embed_dims: Any) -> Any:
    """Return a field's values as a tuple, if it has one a stage."""
    if key in SCALARS:
        choices = dict(stem=STEMS, decay=DECAYS, distance=DISTANCES).get(key, (True, False))
        if not isinstance(value, (str, bool)) or value not in choices:
            raise ValueError(f'arch[{key!r}] must be one of {", ".join(map(str, choices))}, got {value!r}.')
        return value
    count = len(embed_dims) if isinstance(embed_dims, (list, tuple)) and embed_dims else NUM_STAGES
    if not isinstance(value, (list, tuple)) or len(value) != count:
        raise ValueError(f'arch[{key!r}] must have {count} values, one a stage, got {value!r}.')
    return tuple(value)


def _check(size: Arch) -> Arch:
    """Return a size unchanged; raise ValueError if its values do not fit each other."""
    for key in ('embed_dims', 'depths', 'num_heads'):
        for value in getattr(size, key):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f'arch[{key!r}] must hold positive integers, got {value!r}.')
    for stage, (dim, heads) in enumerate(zip(size.embed_dims, size.num_heads)):
        if dim % heads:
            raise ValueError(f'arch: {heads} heads do not divide the {dim} channels of stage {stage}.')
        if dim // heads % 2:
            raise ValueError(
                f'arch: heads of stage {stage} have {dim} / {heads} = {dim // heads} channels; '
                'an even size is needed, since the rotation works on pairs.'
            )
    for stage, (a, r) in enumerate(zip(size.init_values, size.heads_ranges)):
        if a <= 0 or a + r <= 0:
            raise ValueError(
                f'arch: the decay of stage {stage} needs init_values > 0 and '
                f'init_values + heads_ranges > 0, got {a!r} and {r!r}.'
            )
    if size.distance != 'manhattan' and any(size.decomposed):
        raise ValueError(
            f'arch: distance={size.distance!r} is for attention over the whole map (along a line all distances are '
            'equal), and decomposed is True in some stage: set decomposed to False for every stage.'
        )
    return size


def resolve_out_indices(out_indices: Union[int, Sequence[int], None], num_stages: int = NUM_STAGES) -> Tuple[int, ...]:
    """Return the stages in ``out_indices``: from 0 on, sorted, each once.

    Args:
        out_indices (int | Sequence[int], optional): stages; negative ones are counted from the end. None for all.
        num_stages (int): number of stages. Default 4.

    Raises:
        ValueError: ``out_indices`` is empty, or an index is no stage.
    """
    if out_indices is None:
        return tuple(range(num_stages))
    indices = (out_indices,) if isinstance(out_indices, int) else tuple(out_indices)
    if not indices:
        raise ValueError(f'out_indices is empty: name at least one stage, from 0 to {num_stages - 1}.')
    for index in indices:
        if not isinstance(index, int) or not -num_stages <= index < num_stages:
            raise ValueError(
                f'out_indices must be from 0 to {num_stages - 1} (or negative, from the end), '
                f'got {index!r} in {indices}.'
            )
    return tuple(sorted({index % num_stages for index in indices}))


def log_decay(num_heads: int, init_value: float, heads_range: float, decay: str = 'inside') -> LogDecay:
    """Return log(gamma_i) of every head, gamma_i = 1 - 2^(-a - r * i / n), or 0 without decay.

    Args:
        num_heads (int): n.
        init_value (float): a. Head 0, the most local, decays by a factor of 1 - 2^-a per token.
        heads_range (float): r. No head has the exponent -(a + r), since i < n (released code).
        decay (str): a name in :data:`DECAYS`. Default ``'inside'``.
    """
    if decay == 'none':
        return (0.0,) * num_heads
    return tuple(math.log1p(-(2.0 ** -(init_value + heads_range * i / num_heads))) for i in range(num_heads))


def rotary_angles(head_dim: int) -> Tensor:
    """Return the angles of the rotation, angle_j = 10000^(-j / (d/2 - 1)), j = 0..d/2 - 1: (head_dim / 2, ), fp32.

    The endpoint is included, unlike in usual rotary embeddings (released code).
    """
    # Compute on the CPU, so that all devices use the same angles: an error of one unit in the last place is multiplied
    # by an index of up to 67,200.
    return 1.0 / 10000 ** torch.linspace(0, 1, head_dim // 2, dtype=torch.float32, device='cpu')
