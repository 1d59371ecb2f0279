"""Position tables of MaSA: the log-decay of the Manhattan prior, and the rotation of queries and keys.

All tables are computed in fp32, with any dtype of the model and any default dtype: token indices reach 67,200 on
COCO, above fp16's maximum and far above the integers that bf16 can represent.
"""

import functools
from typing import Any, Callable, Dict, NamedTuple, Optional, Tuple, Union

import torch
from torch import Tensor

from ..arch import LogDecay, rotary_angles
from .recorders import makes_values


def _cached(maxsize: int):
    """Cache a table function for ``maxsize`` sizes, for training, inference and all models of a process.

    The tables belong to no module, so no state dict holds them. A call that is recorded (compiled, traced, transformed)
    or runs under a mode (FakeTensorMode) computes its own tables: the recorder must record the computation, and its
    tensors must not enter the cache. So does a call with a learned decay, whose gradients pass through the table.
    """

    def decorate(build):
        @functools.lru_cache(maxsize)
        def build_once(*args):
            # A tensor made in inference mode could not be used in training later.
            with torch.inference_mode(False), torch.no_grad():
                return build(*args)

        @functools.wraps(build)
        def get(*args):
            learned = isinstance(args[0], Tensor)
            return build_once(*args) if makes_values() and not learned else build(*args)

        get.cache_info = build_once.cache_info
        get.cache_clear = build_once.cache_clear
        return get

    return decorate


class Prior(NamedTuple):
    """How position enters MaSA (:class:`rmt_mm.backbone.attention.MaSA`). The defaults are the released code's."""

    rotation: bool = True
    decay: str = 'inside'
    distance: str = 'manhattan'


def _column(log_decay: Union[LogDecay, Tensor], device: torch.device) -> Tensor:
    """Return log(gamma) of every head, (heads, 1), fp32."""
    return torch.as_tensor(log_decay, dtype=torch.float32, device=device)[:, None]


@_cached(maxsize=64)
def line_bias(log_decay: LogDecay, length: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return log D along a line, log(gamma_i) * abs(y - y'): shape (heads, length, length)."""
    index = torch.arange(length, dtype=torch.float32, device=device)
    distance = (index[:, None] - index[None, :]).abs()
    return (_column(log_decay, device)[:, :, None] * distance).to(dtype)


@_cached(maxsize=4)
def manhattan_bias(log_decay: LogDecay, height: int, width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return log D over a map, log(gamma_i) * (abs(y - y') + abs(x - x')): shape (heads, H * W, H * W)."""
    rows, columns = (line_bias(log_decay, length, device, torch.float32) for length in (height, width))
    bias = rows[:, :, None, :, None] + columns[:, None, :, None, :]
    return bias.flatten(3).flatten(1, 2).to(dtype)


@_cached(maxsize=4)
def distance_bias(
    log_decay: LogDecay, height: int, width: int, norm: float, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Return log D over a map in another distance, the ``norm`` of (y - y', x - x'): shape (heads, H * W, H * W)."""
    position = torch.stack(coordinates(height, width, device), dim=-1)
    distance = torch.linalg.vector_norm(position[:, None] - position[None, :], norm, dim=-1)
    return (_column(log_decay, device)[:, :, None] * distance).to(dtype)


@_cached(maxsize=4)
def manhattan_bias_by_row(
    log_decay: LogDecay, height: int, width: int, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Return log D over a map for each row of queries, as a view of a table that is H / 2 times smaller.

    log D of queries in row y and keys in row y' depends on y - y' alone. A table over the 2H - 1 differences holds it,
    and the bias of every row of queries is a window of the table. The window moves forward with y because the rows of
    keys are in reverse order.

    Returns:
        Tensor: (height, heads, width, height * width), for queries (y, ., x) and keys (H - 1 - y') * W + x'. Do not
        write to it: its elements overlap in memory.
    """
    index = torch.arange(2 * height - 1, dtype=torch.float32, device=device)
    rows = _column(log_decay, device) * (index - (height - 1)).abs()
    columns = line_bias(log_decay, width, device, torch.float32)
    table = (rows[:, None, :, None] + columns[:, :, None, :]).to(dtype)  # (heads, x, y - y' + H - 1, x')
    heads_stride, x_stride, y_stride, _ = table.stride()
    return table.as_strided((height, len(log_decay), width, height * width), (y_stride, heads_stride, x_stride, 1))


@_cached(maxsize=32)
def coordinates(height: int, width: int, device: torch.device) -> Tuple[Tensor, Tensor]:
    """Return y and x of every token of the flattened map: two tensors (height * width, ), fp32."""
    axes = (torch.arange(length, dtype=torch.float32, device=device) for length in (height, width))
    y, x = torch.meshgrid(*axes, indexing='ij')
    return y.flatten(), x.flatten()


@_cached(maxsize=32)
def rotary_phases(height: int, width: int, head_dim: int, device: torch.device) -> Tensor:
    """Return cosine and sine of every token's phases: shape (height, width, 1, head_dim / 2, 2), fp32.

    The phase of token (y, x) is (y * width + x) * angle_j, with :func:`rmt_mm.arch.rotary_angles`: the index in the
    *flattened* map, also where attention is decomposed (released code; the paper has no rotation). It depends on the
    map's width, as checkpoints were trained.
    """
    index = torch.arange(height * width, dtype=torch.float32, device=device)
    phase = (index[:, None] * rotary_angles(head_dim).to(device)).view(height, width, 1, head_dim // 2)
    return torch.stack((phase.cos(), phase.sin()), dim=-1)


class PositionTables:
    """The position tables of one map size. A stage makes one instance and passes it to its blocks.

    Each table is computed at its first use, so that a compiled graph holds it once per stage. Later calls of the same
    size take it from the cache of the table functions.

    Args:
        log_decay (tuple[float] | Tensor): log(gamma) of every head.
        height (int): height of the map, in tokens.
        width (int): width of the map, in tokens.
        head_dim (int): channels of a head.
        device (torch.device): device of the tables.
        prior (Prior): how position enters attention. Default: as in the released code.
    """

    def __init__(
        self,
        log_decay: Union[LogDecay, Tensor],
        height: int,
        width: int,
        head_dim: int,
        device: torch.device,
        prior: Prior = Prior(),
    ) -> None:
        self.log_decay: Any = log_decay  # a Tensor if it is learned
        self.height, self.width, self.head_dim = height, width, head_dim
        self.device, self.prior = device, prior
        self._tables: Dict[str, Tensor] = {}

    def why_plain(self) -> Optional[str]:
        """Say why plain torch alone computes this attention; None if other kernels do."""
        _, decay, distance = self.prior
        if decay in ('outside', 'learned'):
            return f'the decay is {decay}' + (' the softmax' if decay == 'outside' else '')
        return None if distance == 'manhattan' else f'the distance is {distance}'

    def phases(self) -> Tensor:
        """Return :func:`rotary_phases`, (H, W, 1, head_dim / 2, 2), fp32."""
        if 'phases' not in self._tables:
            self._tables['phases'] = rotary_phases(self.height, self.width, self.head_dim, self.device)
        return self._tables['phases']

    def line(self, dim: int, dtype: torch.dtype) -> Tensor:
        """Return :func:`line_bias` of a row (dim 2), (heads, W, W), or of a column (dim 1), (heads, H, H)."""
        name, length = ('row', self.width) if dim == 2 else ('column', self.height)
        return self._bias(name, dtype, line_bias, length)

    def whole(self, dtype: torch.dtype) -> Tensor:
        """Return :func:`manhattan_bias`, or the same in another distance: (heads, H * W, H * W)."""
        if self.prior.distance != 'manhattan':
            norm = 2 if self.prior.distance == 'euclidean' else float('inf')
            return self._bias('whole', dtype, distance_bias, self.height, self.width, norm)
        return self._bias('whole', dtype, manhattan_bias, self.height, self.width)

    def by_row(self, dtype: torch.dtype) -> Tensor:
        """Return :func:`manhattan_bias_by_row`, (H, heads, W, H * W)."""
        return self._bias('by_row', dtype, manhattan_bias_by_row, self.height, self.width)

    def _bias(self, name: str, dtype: torch.dtype, build: Callable[..., Tensor], *size: float) -> Tensor:
        if name not in self._tables or self._tables[name].dtype != dtype:
            self._tables[name] = build(self.log_decay, *size, self.device, dtype)
        return self._tables[name]
