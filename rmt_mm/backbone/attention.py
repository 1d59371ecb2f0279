"""Manhattan self-attention (MaSA): attention whose logits carry the log of a decay in the Manhattan distance.

The paper's Eq. 5 multiplies the softmax by the decay D and does not renormalise. The released code, and so every
checkpoint, adds log D to the logits *before* the softmax, which equals Eq. 5 followed by a renormalisation (the author
says so in the official repository's issue 21). This module computes the released form:

    MaSA(X) = softmax(Q K^T / sqrt(d) + log D) V,    D = gamma^(abs(y - y') + abs(x - x'))

with rotated Q and K. Decomposed, it attends along every row and then along every column, with the same Q and K.

For ablations, each part can be left out or replaced; other forms than the released one are computed in plain torch.
"""

from typing import Optional

import torch
from torch import Tensor, nn

from .. import ops
from ..arch import log_decay
from .layers import LCE


class MaSA(nn.Module):
    """Manhattan self-attention with local context enhancement (LCE).

    Args:
        dim (int): channels C.
        num_heads (int): heads n; C / n must be an even integer.
        init_value (float): a of the decay gamma_i = 1 - 2^(-a - r * i / n).
        heads_range (float): r of the same formula.
        decomposed (bool): attend along rows, then columns, instead of over the whole map. Default False.
        lce (bool): add a 5x5 depthwise convolution of V. Default True.
        rotation (bool): rotate Q and K by their tokens' indices. Default True.
        decay (str): ``'inside'``, as above; ``'outside'``, the softmax times D, not renormalised (Eq. 5);
            ``'learned'``, as above with one trained gamma a head, which starts at the formula; ``'none'``, D = 1.
            Default ``'inside'``.
        distance (str): ``'manhattan'``, or over the whole map ``'euclidean'`` or ``'chebyshev'``. Default
            ``'manhattan'``.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        init_value: float = 2,
        heads_range: float = 4,
        decomposed: bool = False,
        lce: bool = True,
        rotation: bool = True,
        decay: str = 'inside',
        distance: str = 'manhattan',
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.log_decay = log_decay(num_heads, init_value, heads_range, decay)
        # gamma = exp(-exp(log_rate)) stays between 0 and 1.
        self.log_rate = nn.Parameter(torch.tensor(self.log_decay).neg().log()) if decay == 'learned' else None
        self.decomposed, self.prior = decomposed, ops.Prior(rotation, decay, distance)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.lce = LCE(dim) if lce else None
        self.proj = nn.Linear(dim, dim)

    def position_tables(self, x: Tensor) -> ops.PositionTables:
        """Return the tables for a map (B, H, W, C). All blocks of a stage may share them, if no decay is learned."""
        _, height, width, _ = x.shape
        decay = self.log_decay if self.log_rate is None else -self.log_rate.float().exp()
        return ops.PositionTables(decay, height, width, self.head_dim, x.device, self.prior)

    def forward(self, x: Tensor, tables: Optional[ops.PositionTables] = None) -> Tensor:
        """Attend over a map.

        Args:
            x (Tensor): (B, H, W, C).
            tables (PositionTables, optional): position tables of the map. Default: those of :meth:`position_tables`.

        Returns:
            Tensor: (B, H, W, C).
        """
        if tables is None or self.log_rate is not None:
            tables = self.position_tables(x)
        out, v = ops.attend(ops.linear(self.qkv, x), tables, self.decomposed)
        if self.lce is not None:
            out = ops.to_map(self.lce(ops.to_image(v))) + out
        return ops.linear(self.proj, out)

    def multiply_adds(self, height: int, width: int) -> int:
        """Return the multiply-adds of the products of queries with keys and of weights with values, for one map.

        The count does not depend on the kernel. It leaves out the projections and LCE.
        """
        keys = height + width if self.decomposed else height * width  # per query
        return 2 * height * width * self.num_heads * self.head_dim * keys
