"""The four published sizes of RMT, the check of a custom size, and the formulas of decay and rotation."""

import math
from typing import List, NamedTuple, Sequence, Tuple, Union

import torch
from torch import Tensor

NUM_STAGES = 4

LogDecay = Tuple[float, ...]  # log(gamma_i) of every head


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


class Arch(NamedTuple):
    """A size of RMT: one value a stage, the finest stage first."""

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

    def stages(self) -> List[Stage]:
        """Return the stages, the finest first."""
        return [Stage(*values) for values in zip(*self)]


# From the released code. The paper's text decomposes stages 1-3 of every size; the released T decomposes 1-2, and the
# published FLOPs of T agree with that.
ARCHS = {
    'tiny': Arch(
        embed_dims=(64, 128, 256, 512),
        depths=(2, 2, 8, 2),
        num_heads=(4, 4, 8, 16),
        init_values=(2, 2, 2, 2),
        heads_ranges=(4, 4, 6, 6),
        mlp_ratios=(3, 3, 3, 3),
        decomposed=(True, True, False, False),
        layer_scales=(False, False, False, False),
    ),
    'small': Arch(
        embed_dims=(64, 128, 256, 512),
        depths=(3, 4, 18, 4),
        num_heads=(4, 4, 8, 16),
        init_values=(2, 2, 2, 2),
        heads_ranges=(4, 4, 6, 6),
        mlp_ratios=(4, 4, 3, 3),
        decomposed=(True, True, True, False),
        layer_scales=(False, False, False, False),
    ),
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
}


def resolve_arch(arch: Union[str, dict]) -> Arch:
    """Turn a preset's name or a dict into a checked :class:`Arch`.

    Args:
        arch (str | dict): ``'tiny'``, ``'small'``, ``'base'``, ``'large'`` (or t, s, b, l; case does not matter), or a
            dict with every key of :class:`Arch`, four values each.

    Returns:
        Arch: the size, its values as tuples.

    Raises:
        ValueError: an unknown name, unknown or missing keys, a wrong number of values, or channels that are not an even
            multiple of the heads (the rotation works on pairs of channels).
        TypeError: ``arch`` is neither a str nor a dict.
    """
    if isinstance(arch, str):
        for name, preset in ARCHS.items():
            if arch.lower() in (name, name[0]):
                return preset
        raise ValueError(
            f'Unknown arch {arch!r}: choose one of {", ".join(ARCHS)} (or t, s, b, l), or give a dict of your own size.'
        )
    if not isinstance(arch, dict):
        raise TypeError(f'arch must be a str or a dict, got {type(arch).__name__}.')

    wanted, given = set(Arch._fields), set(arch)
    if wanted != given:
        problems = [
            f'{text} {", ".join(sorted(map(str, keys)))}'
            for text, keys in (('unknown:', given - wanted), ('missing:', wanted - given))
            if keys
        ]
        raise ValueError(f'arch has wrong keys ({"; ".join(problems)}). It takes {", ".join(Arch._fields)}.')
    for key, values in arch.items():
        if not isinstance(values, (list, tuple)) or len(values) != NUM_STAGES:
            raise ValueError(f'arch[{key!r}] must have {NUM_STAGES} values, one a stage, got {values!r}.')
    size = Arch(**{key: tuple(values) for key, values in arch.items()})

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
    if size.embed_dims[0] % 2:
        raise ValueError(f'arch: embed_dims[0] must be even (the stem starts at half of it), got {size.embed_dims[0]}.')
    for stage, (a, r) in enumerate(zip(size.init_values, size.heads_ranges)):
        if a <= 0 or a + r <= 0:
            raise ValueError(
                f'arch: the decay of stage {stage} needs init_values > 0 and '
                f'init_values + heads_ranges > 0, got {a!r} and {r!r}.'
            )
    return size


def resolve_out_indices(out_indices: Union[int, Sequence[int]]) -> Tuple[int, ...]:
    """Return the stages in ``out_indices``: from 0 to 3, sorted, each once.

    Args:
        out_indices (int | Sequence[int]): stages; negative ones are counted from the end.

    Raises:
        ValueError: ``out_indices`` is empty, or an index is no stage.
    """
    indices = (out_indices,) if isinstance(out_indices, int) else tuple(out_indices)
    if not indices:
        raise ValueError('out_indices is empty: name at least one stage, from 0 to 3.')
    for index in indices:
        if not isinstance(index, int) or not -NUM_STAGES <= index < NUM_STAGES:
            raise ValueError(
                f'out_indices must be from 0 to {NUM_STAGES - 1} (or negative, from the end), '
                f'got {index!r} in {indices}.'
            )
    return tuple(sorted({index % NUM_STAGES for index in indices}))


def log_decay(num_heads: int, init_value: float, heads_range: float) -> LogDecay:
    """Return log(gamma_i) of every head, gamma_i = 1 - 2^(-a - r * i / n).

    Args:
        num_heads (int): n.
        init_value (float): a. Head 0, the most local, decays by a factor of 1 - 2^-a per token.
        heads_range (float): r. No head has the exponent -(a + r), since i < n (released code).
    """
    return tuple(math.log1p(-(2.0 ** -(init_value + heads_range * i / num_heads))) for i in range(num_heads))


def rotary_angles(head_dim: int) -> Tensor:
    """Return the angles of the rotation, angle_j = 10000^(-j / (d/2 - 1)), j = 0..d/2 - 1: (head_dim / 2, ), fp32.

    The endpoint is included, unlike in usual rotary embeddings (released code).
    """
    # Compute on the CPU, so that all devices use the same angles: an error of one unit in the last place is multiplied
    # by an index of up to 67,200.
    return 1.0 / 10000 ** torch.linspace(0, 1, head_dim // 2, dtype=torch.float32, device='cpu')
