"""The feed-forward network of a block, and the depthwise convolution with its identity."""
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .linear import Linear


class ResidualDWConv(nn.Conv2d):
    """x + 3x3 depthwise convolution(x), of a (B, H, W, C) map."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim, 3, padding=1, groups=dim)
        self.residual = True

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 3, 1, 2)
        out = super().forward(x)
        if self.residual:
            # In place on the convolution's own result, not on a view of it: a view's backward would copy the map.
            out = out.add_(x)
        return out.permute(0, 2, 3, 1)

    @torch.no_grad()
    def fold_identity(self) -> None:
        """Make x part of the convolution: one more at the kernel's centre. For good."""
        if self.residual:
            self.weight[:, :, 1, 1] += 1
            self.residual = False


class FFN(nn.Module):
    """Feed-forward network with a depthwise convolution between its two Linear layers.

    Args:
        dim (int): channels.
        mlp_ratio (float): hidden channels over ``dim``.
    """

    def __init__(self, dim: int, mlp_ratio: float) -> None:
        super().__init__()
        hidden = int(dim * mlp_ratio)
        self.fc1 = Linear(dim, hidden)
        self.dwconv = ResidualDWConv(hidden)
        self.fc2 = Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to (B, H, W, C)."""
        x = self.fc1(x)
        if x.requires_grad and not torch.compiler.is_compiling():
            # The hidden maps are most of what a training step holds. Only fc1's is kept; GELU and the depthwise
            # convolution are computed again in the backward pass, without fc2, since its result is not needed there.
            return checkpoint(self._activate_and_project, x, use_reentrant=False, preserve_rng_state=False)
        return self._activate_and_project(x)

    def _activate_and_project(self, x: Tensor) -> Tensor:
        in_place = not (x.requires_grad or torch.compiler.is_compiling())  # fc1's result is nobody else's
        x = F.gelu(x, out=x if in_place else None)
        return self.fc2(self.dwconv(x))
