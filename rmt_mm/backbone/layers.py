"""Small layers of a block."""

from torch import Tensor, nn

from .. import ops


@ops.known
class ResidualDWConv(nn.Conv2d):
    """x + 3x3 depthwise convolution(x): CPE of a block, and the convolution in its FFN.

    Args:
        dim (int): channels.

    Attributes:
        residual (bool): whether x is added; False once the addition is fused into the kernel.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim, 3, padding=1, groups=dim)
        self.residual = True

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to (B, H, W, C)."""
        return ops.dwconv(self, x, self.residual)


class LCE(nn.Conv2d):
    """5x5 depthwise convolution of MaSA's values: local context enhancement.

    Args:
        dim (int): channels.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim, 5, padding=2, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map a channels-last image (B, C, H, W) to the same: a layer for Grad-CAM, which expects this order."""
        # Not to_map, which would copy the values that are a slice of the projection.
        return ops.to_image(ops.dwconv(self, x.permute(0, 2, 3, 1)))
