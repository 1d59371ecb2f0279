"""What MaSA knows of token positions: the decay of the Manhattan prior, and the rotation of queries and keys.

All tables are computed in fp32, whatever the model's dtype: token indices reach 67,200 on COCO, above fp16's maximum
and far above the integers that bf16 can tell apart.
"""
import functools
from typing import Tuple

import torch
from torch import Tensor

from ..arch import Rates, rotary_angles


def _cached(maxsize: int):
    """Cache a table function for ``maxsize`` sizes, in a way that training, inference and tracing can share.

    The tables belong to no module: they are in no state dict, and all models of a process share them.
    """

    def decorate(build):

        @functools.lru_cache(maxsize)
        def build_once(*args):
            # A tensor made in inference mode could not be used in training later.
            with torch.inference_mode(False), torch.no_grad():
                return build(*args)

        @functools.wraps(build)
        def get(*args):
            # A compiler must see the computation, and must not leave its fake tensors in the cache.
            return build(*args) if torch.compiler.is_compiling() else build_once(*args)

        get.cache_info = build_once.cache_info
        get.cache_clear = build_once.cache_clear
        return get

    return decorate


@_cached(maxsize=64)
def line_bias(rates: Rates, length: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return log D along a line, log(gamma_i) * abs(y - y'): shape (heads, length, length)."""
    index = torch.arange(length, device=device, dtype=torch.float32)
    distance = (index[:, None] - index[None, :]).abs()
    return (torch.tensor(rates, device=device)[:, None, None] * distance).to(dtype)


@_cached(maxsize=4)
def manhattan_bias(rates: Rates, height: int, width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return log D over a map, log(gamma_i) * (abs(y - y') + abs(x - x')): shape (heads, H * W, H * W)."""
    rows, columns = (line_bias(rates, length, device, torch.float32) for length in (height, width))
    bias = rows[:, :, None, :, None] + columns[:, None, :, None, :]
    return bias.flatten(3).flatten(1, 2).to(dtype)


@_cached(maxsize=4)
def sliding_bias(rates: Rates, height: int, width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return log D of the whole map as a view of a table that is H / 2 times smaller.

    log D of queries in row y and keys in row y' depends on y - y' alone, so a table over the 2H - 1 differences holds
    it, and the bias of every row of queries is a window of the table. Windows move forward with y if the rows of keys
    are counted backward, from the last.

    Returns:
        Tensor: (height, heads, width, height * width), for queries (y, ., x) and keys (H - 1 - y') * W + x'. Read only:
        its elements overlap in memory.
    """
    index = torch.arange(2 * height - 1, device=device, dtype=torch.float32)
    rows = torch.tensor(rates, device=device)[:, None] * (index - (height - 1)).abs()
    columns = line_bias(rates, width, device, torch.float32)
    table = (rows[:, None, :, None] + columns[:, :, None, :]).to(dtype)  # (heads, x, y - y' + H - 1, x')
    heads_stride, x_stride, y_stride, _ = table.stride()
    return table.as_strided((height, len(rates), width, height * width), (y_stride, heads_stride, x_stride, 1))


@_cached(maxsize=32)
def places(height: int, width: int, device: torch.device) -> Tuple[Tensor, Tensor]:
    """Return y and x of every token of the flattened map: two tensors (height * width, ), fp32."""
    y, x = torch.meshgrid(*(torch.arange(length, device=device) for length in (height, width)), indexing='ij')
    return y.flatten().float(), x.flatten().float()


@_cached(maxsize=32)
def rotary_phases(height: int, width: int, head_dim: int, device: torch.device) -> Tensor:
    """Return cosine and sine of every token's phases: shape (height, width, 1, head_dim / 2, 2), fp32.

    angle_j = 10000^(-j / (d/2 - 1)), the endpoint included, unlike usual rotary embeddings; the phase of token (y, x)
    is (y * width + x) * angle: the index in the *flattened* map, also where attention is decomposed (released code;
    the paper has no rotation). It depends on the map's width, and checkpoints need it so.
    """
    angle = rotary_angles(head_dim)
    index = torch.arange(height * width, device=device, dtype=torch.float32)
    phase = (index[:, None] * angle.to(device)).view(height, width, 1, head_dim // 2)
    return torch.stack((phase.cos(), phase.sin()), dim=-1)


def rotate(x: Tensor, phases: Tensor) -> Tensor:
    """Rotate neighbouring channel pairs: (u0, u1) -> (u0 cos - u1 sin, u1 cos + u0 sin), in fp32 or above.

    In place where no gradient is asked for: ``x`` is to be a tensor that nobody else needs.

    Args:
        x (Tensor): (B, H, W, heads, head_dim).
        phases (Tensor): from :func:`rotary_phases`.

    Returns:
        Tensor: the shape and dtype of ``x``.
    """
    pairs = x.to(torch.promote_types(x.dtype, phases.dtype)).unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():  # compilers fuse the real form, and do not know complex numbers
        (u0, u1), (cos, sin) = pairs.unbind(-1), phases.unbind(-1)
        rotated = torch.stack((u0 * cos - u1 * sin, u1 * cos + u0 * sin), dim=-1)
    else:  # one kernel, no copies
        pairs, phases = torch.view_as_complex(pairs), torch.view_as_complex(phases.to(pairs.dtype))
        rotated = torch.view_as_real(pairs * phases if x.requires_grad else pairs.mul_(phases))
    return rotated.flatten(-2).to(x.dtype)
