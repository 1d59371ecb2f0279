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
        x = ops.to_image(x)
        out = super().forward(x)
        # Add in place to the convolution's own result, not to a view of it: a view's backward would copy the map.
        return ops.to_map(out.add_(x) if self.residual else out)
