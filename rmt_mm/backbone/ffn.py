"""Feed-forward network with a depthwise convolution."""

from typing import Optional

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .depthwise import ResidualDWConv
from ..ops.recorders import is_plain, is_recorded, may_call_opaque, may_overwrite, opaque_to_compilers
from .linear import channels_last_linear, linear_by_convolution, to_image, uses_onednn
from .strips import strip_rows, strips

STRIP_BYTES = 2**22


@opaque_to_compilers
def ffn_in_strips(
    x: Tensor,
    weight1: Tensor,
    bias1: Optional[Tensor],
    depthwise_weight: Tensor,
    depthwise_bias: Optional[Tensor],
    weight2: Tensor,
    bias2: Optional[Tensor],
    residual: bool,
    rows: int,
) -> Tensor:
    """Compute the forward pass of :class:`FFN` in strips of rows of an image, or of as many whole images as make them.

    The depthwise convolution needs one more row on either side, so two strips compute the rows at their border.

    Args:
        x (Tensor): (B, H, W, C).
        weight1, bias1, depthwise_weight, depthwise_bias, weight2, bias2 (Tensor): the parameters of the FFN's layers.
        residual (bool): the depthwise convolution adds its input.
        rows (int): rows of a strip.

    Returns:
        Tensor: (B, H, W, C).
    """
    out: Optional[Tensor] = None
    for part, top in strips(len(x), x.shape[1], rows):
        start = max(0, top - 1)
        hidden = linear_by_convolution(x[part, start : top + rows + 1], weight1, bias1)
        hidden = to_image(F.gelu(hidden, out=hidden))  # type: ignore[call-arg]  # torch's stub lacks `out`
        mixed = F.conv2d(hidden, depthwise_weight, depthwise_bias, padding=1, groups=len(depthwise_weight))
        mixed = (mixed.add_(hidden) if residual else mixed).permute(0, 2, 3, 1)
        strip = linear_by_convolution(mixed[:, top - start : top - start + rows], weight2, bias2)
        if out is None:  # autocast decides its dtype
            out = strip.new_empty(x.shape)
        out[part, top : top + rows] = strip
    assert out is not None
    return out


class FFN(nn.Module):
    """Feed-forward network with a depthwise convolution between its two Linear layers.

    Args:
        dim (int): channels.
        mlp_ratio (float): hidden channels over ``dim``.
        with_cp (bool): in the backward pass, compute GELU and the depthwise convolution again. Default True.
    """

    _KINDS = dict(fc1=nn.Linear, dwconv=ResidualDWConv, fc2=nn.Linear)

    def __init__(self, dim: int, mlp_ratio: float, with_cp: bool = True) -> None:
        super().__init__()
        self.with_cp = with_cp
        hidden = int(dim * mlp_ratio)
        self.fc1 = nn.Linear(dim, hidden)
        self.dwconv = ResidualDWConv(hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to (B, H, W, C)."""
        if uses_onednn(x) and may_call_opaque() and self._are_plain(*self._KINDS):
            row_bytes = x.shape[2] * self.fc1.out_features * x.element_size()
            rows = strip_rows(x.shape[0] * x.shape[1], row_bytes, STRIP_BYTES)
            if rows:
                parameters = [p for layer in (self.fc1, self.dwconv, self.fc2) for p in (layer.weight, layer.bias)]
                return ffn_in_strips(x, *parameters, self.dwconv.residual, rows)
        x = channels_last_linear(self.fc1, x)
        # The hidden maps take most of a training step's memory. Keep only fc1's output; the backward pass computes GELU
        # and the depthwise convolution again, but not fc2, whose result it does not need. Hooks would run in the second
        # computation too: with hooks, keep everything.
        if self.with_cp and x.requires_grad and not is_recorded() and self._are_plain('dwconv', 'fc2'):
            return checkpoint(self._activate_and_project, x, use_reentrant=False, preserve_rng_state=False)
        return self._activate_and_project(x)

    def _activate_and_project(self, x: Tensor) -> Tensor:
        in_place = not x.requires_grad and may_overwrite(self.fc1, nn.Linear)
        x = F.gelu(x, out=x if in_place else None)  # type: ignore[call-arg]  # torch's stub lacks `out`
        return channels_last_linear(self.fc2, self.dwconv(x))

    def _are_plain(self, *names: str) -> bool:
        return all(is_plain(getattr(self, name), self._KINDS[name]) for name in names)
