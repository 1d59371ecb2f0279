"""Manhattan self-attention (MaSA): attention whose logits carry the log of a decay in the Manhattan distance.

The paper's Eq. 5 multiplies the softmax by the decay D and does not renormalise. The released code, and so every
checkpoint, adds log D to the logits *before* the softmax, which equals Eq. 5 followed by a renormalisation (the author
says so in the official repository's issue 21). This module computes the released form:

    MaSA(X) = softmax(Q K^T / sqrt(d) + log D) V,    D = gamma^(abs(y - y') + abs(x - x'))

with rotated Q and K. Decomposed, it attends along every row and then along every column, with the same Q and K.
"""

from typing import Optional

from torch import Tensor, nn

from .. import ops
from ..arch import log_decay


class MaSA(nn.Module):
    """Manhattan self-attention with local context enhancement (LCE).

    Args:
        dim (int): channels C.
        num_heads (int): heads n; C / n must be an even integer.
        init_value (float): a of the decay gamma_i = 1 - 2^(-a - r * i / n).
        heads_range (float): r of the same formula.
        decomposed (bool): attend along rows, then columns, instead of over the whole map.
    """

    def __init__(self, dim: int, num_heads: int, init_value: float, heads_range: float, decomposed: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.log_decay = log_decay(num_heads, init_value, heads_range)
        self.decomposed = decomposed
        self.qkv = nn.Linear(dim, 3 * dim)
        self.lce = nn.Conv2d(dim, dim, 5, padding=2, groups=dim)
        self.proj = nn.Linear(dim, dim)

    def position_tables(self, x: Tensor) -> ops.PositionTables:
        """Return the tables for a map (B, H, W, C). All blocks of a stage may share them."""
        _, height, width, _ = x.shape
        return ops.PositionTables(self.log_decay, height, width, self.head_dim, x.device)

    def forward(self, x: Tensor, tables: Optional[ops.PositionTables] = None) -> Tensor:
        """Attend over a map.

        Args:
            x (Tensor): (B, H, W, C).
            tables (PositionTables, optional): position tables of the map. Default: those of :meth:`position_tables`.

        Returns:
            Tensor: (B, H, W, C).
        """
        tables = tables or self.position_tables(x)
        q, k, v = ops.project_qkv(self.qkv, x, tables)  # (B, H, W, heads, head_dim)
        if self.decomposed:
            rows = ops.attend_lines(q, k, v, tables, dim=2)
            out = ops.attend_lines(q, k, rows, tables, dim=1)
        else:
            out = ops.attend_map(q, k, v, tables)
        lce = self.lce(ops.to_image(v.flatten(3)))
        return ops.linear(self.proj, ops.to_map(lce) + out.flatten(3))

    def multiply_adds(self, height: int, width: int) -> int:
        """Return the multiply-adds of the products of queries with keys and of weights with values, for one map.

        The count does not depend on the kernel. It leaves out the projections and LCE.
        """
        keys = height + width if self.decomposed else height * width  # per query
        return 2 * height * width * self.num_heads * self.head_dim * keys
