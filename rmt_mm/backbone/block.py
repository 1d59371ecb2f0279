"""A block of RMT, and a stage of blocks."""

from typing import Iterable, Optional, cast

import torch
from mmcv.cnn.bricks import DropPath
from torch import Tensor, nn

from .. import ops
from ..arch import Stage
from .attention import MaSA
from .ffn import FFN
from .layers import ResidualDWConv


def scale(gamma: Optional[Tensor], x: Tensor) -> Tensor:
    """Apply LayerScale, if there is one."""
    return x if gamma is None else gamma * x


class RMTBlock(nn.Module):
    """CPE, then MaSA and FFN, each after a LayerNorm and on a residual branch.

    Args:
        stage (Stage): the sizes of the block.
        drop_path (float): probability of dropping a residual branch for a sample, in training. Default 0.
        layer_scale_init (float): initial value of LayerScale, if the stage has it. Default 1e-6.
        ffn_with_cp (bool): recompute the FFN's activations in the backward pass. Default True.
    """

    def __init__(
        self, stage: Stage, drop_path: float = 0.0, layer_scale_init: float = 1e-6, ffn_with_cp: bool = True
    ) -> None:
        super().__init__()
        dim = stage.dim
        self.cpe = ResidualDWConv(dim) if stage.cpe else nn.Identity()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = MaSA(
            dim,
            stage.num_heads,
            stage.init_value,
            stage.heads_range,
            stage.decomposed,
            stage.lce,
            stage.rotation,
            stage.decay,
            stage.distance,
        )
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.ffn = FFN(dim, stage.mlp_ratio, ffn_with_cp)
        self.drop_path2 = DropPath(drop_path)
        self.gamma1 = self.gamma2 = None
        if stage.layer_scale:
            # Four dimensions, as in the released code: the ImageNet recipe exempts 1-D parameters from weight decay,
            # but not LayerScale.
            self.gamma1, self.gamma2 = (
                nn.Parameter(torch.full((1, 1, 1, dim), float(layer_scale_init))) for _ in range(2)
            )

    def forward(self, x: Tensor, tables: Optional[ops.PositionTables] = None) -> Tensor:
        """Map (B, H, W, C) to (B, H, W, C), with the position tables of its stage (computed by default)."""
        x = self.cpe(x)
        x = x + self.drop_path1(scale(self.gamma1, self.attn(self.norm1(x), tables)))
        return x + self.drop_path2(scale(self.gamma2, self.ffn(self.norm2(x))))


class RMTStage(nn.ModuleList):
    """Blocks of one size: (B, H, W, C) to (B, H, W, C).

    Args:
        blocks (Iterable[RMTBlock]): the blocks.
        with_cp (bool): recompute the blocks' activations in the backward pass. Default False.
    """

    def __init__(self, blocks: Iterable[RMTBlock], with_cp: bool = False) -> None:
        super().__init__(blocks)
        self.with_cp = with_cp

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to (B, H, W, C)."""
        tables = cast(RMTBlock, self[0]).attn.position_tables(x)
        for block in self:
            x = ops.recompute(block, x, tables) if self.with_cp else block(x, tables)
        return x
