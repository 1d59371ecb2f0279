"""Feed-forward network with a depthwise convolution."""

from torch import Tensor, nn

from .. import ops
from .layers import ResidualDWConv


class FFN(nn.Module):
    """Feed-forward network: h = GELU(fc1(x)), h = h + 3x3 depthwise convolution(h), fc2(h).

    Args:
        dim (int): channels.
        mlp_ratio (float): hidden channels over ``dim``.
        with_cp (bool): in the backward pass, compute GELU and the depthwise convolution again. Default True.
    """

    def __init__(self, dim: int, mlp_ratio: float, with_cp: bool = True) -> None:
        super().__init__()
        self.with_cp = with_cp
        hidden = int(dim * mlp_ratio)
        self.fc1 = nn.Linear(dim, hidden)
        self.dwconv = ResidualDWConv(hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to (B, H, W, C): fc2(dwconv(GELU(fc1(x))))."""
        return ops.ffn(self.fc1, self.dwconv, self.fc2, x, self.with_cp)
