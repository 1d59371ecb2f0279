"""What one token receives from every other one in MaSA, for each head: the decay, the softmax of the scores alone, and
the attention that results.
"""

from typing import Any, Callable, NamedTuple, Tuple, cast

import torch
from torch import Tensor, nn

from ... import ops
from ...backbone import RMT
from ...backbone.attention import MaSA
from ...backbone.rmt import RMTBlock, RMTStage


class AttentionMaps(NamedTuple):
    """Maps of one query token, each (heads, H, W) over the tokens of its stage, fp32."""

    decay: Tensor  # gamma^(abs(y - y') + abs(x - x')): 1 at the query
    softmax: Tensor  # attention weights if there were no decay; they sum to 1
    attention: Tensor  # attention weights; they sum to 1


class Recorded(NamedTuple):
    """A MaSA's input and output for one image, (H, W, C), and the backbone's input, (in_channels, height, width)."""

    masa: MaSA
    x: Tensor
    out: Tensor
    image: Tensor


def find_backbone(model: nn.Module) -> RMT:
    """Return the RMT of a model.

    Raises:
        ValueError: there is none.
    """
    for module in model.modules():
        if isinstance(module, RMT):
            return module
    backbone = type(getattr(model, 'backbone', model)).__name__
    raise ValueError(f"the backbone is a {backbone}: attention with a Manhattan prior is RMT's alone.")


def record(backbone: RMT, run: Callable[[], Any], stage: int, block: int) -> Recorded:
    """Record what a MaSA computes while ``run`` passes one image through the model.

    Args:
        backbone (RMT): the backbone.
        run (Callable): computes a prediction of one image.
        stage (int): stage from 0 to 3, negative ones counted from the end.
        block (int): block of the stage, counted likewise.

    Raises:
        IndexError: there is no such stage or block, or the model does not compute it (``out_indices``).
        ValueError: ``run`` calls the backbone several times, or with several images.
    """
    count = len(backbone.stages)
    if not -count <= stage < count:
        raise IndexError(f'stage {stage}: stages are from 0 to {count - 1}, or from -{count} to -1.')
    blocks, name = cast(RMTStage, backbone.stages[stage]), f'stage {stage % count}'
    if not -len(blocks) <= block < len(blocks):
        raise IndexError(f'{name} has {len(blocks)} blocks, which count from 0: there is no block {block}.')
    masa = cast(RMTBlock, blocks[block]).attn
    images, calls = [], []
    handles = [
        backbone.register_forward_pre_hook(lambda module, args: images.append(args[0].detach().clone())),
        masa.register_forward_hook(
            lambda module, args, out: calls.append((args[0].detach().clone(), out.detach().clone()))
        ),
    ]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    if len(images) != 1 or len(images[0]) != 1:
        raise ValueError(
            f'the backbone was called {len(images)} times: attention is shown of one pass over one image, without '
            "windows (a segmentor's test_cfg.mode='slide') or test-time augmentation."
        )
    if not calls:
        raise IndexError(f'{name} is not computed: the last of out_indices is {backbone.out_indices[-1]}.')
    [(x, out)] = calls
    return Recorded(masa, x[0], out[0], images[0][0])


@torch.no_grad()
def attention_maps(masa: MaSA, x: Tensor, query: Tuple[int, int]) -> AttentionMaps:
    """Compute what the token ``query`` receives from each token of a map.

    Decomposed MaSA attends along rows and then along columns of the result. The token (y, x) receives the value of
    (y', x') by way of (y', x): the weight of y' for y in column x, times the weight of x' for x in row y'.

    Args:
        masa (MaSA): the attention.
        x (Tensor): its input, (H, W, C).
        query (tuple[int, int]): row and column of a token.

    Raises:
        IndexError: the map has no such token.
        ValueError: the attention is of a form that these formulas are not for (:class:`rmt_mm.ops.Prior`).
    """
    reason = masa.position_tables(x[None]).why_plain()
    if reason:
        raise ValueError(f"attention maps are for the released form of MaSA, and of this model's {reason}.")
    height, width, _ = x.shape
    row, column = query
    if not (0 <= row < height and 0 <= column < width):
        raise IndexError(f'the map has {height} rows and {width} columns of tokens: there is no token {query}.')
    q, k, _ = queries_keys_values(masa, x)
    log_decay = torch.tensor(masa.log_decay, dtype=torch.float32, device=x.device)[:, None, None]
    to_rows = log_decay * (torch.arange(height, device=x.device) - row).abs()[:, None]  # (heads, H, 1)
    to_columns = log_decay * (torch.arange(width, device=x.device) - column).abs()  # (heads, 1, W)
    decay = (to_rows + to_columns).exp()
    if masa.decomposed:
        along_rows = torch.einsum('yhd,yxhd->hyx', q[:, column], k)
        along_column = torch.einsum('hd,yhd->hy', q[row, column], k[:, column])[..., None]

        def weights(row_bias: Any, column_bias: Any) -> Tensor:
            return (along_rows + row_bias).softmax(2) * (along_column + column_bias).softmax(1)

        return AttentionMaps(decay, weights(0, 0), weights(to_columns, to_rows))
    scores = torch.einsum('hd,yxhd->hyx', q[row, column], k)
    alone, with_decay = (s.flatten(1).softmax(1).view_as(s) for s in (scores, scores + to_rows + to_columns))
    return AttentionMaps(decay, alone, with_decay)


@torch.no_grad()
def attend_by_map(masa: MaSA, x: Tensor, attention: Tensor, query: Tuple[int, int]) -> Tensor:
    """Compute MaSA's output at one token from its attention map.

    Args:
        masa (MaSA): the attention.
        x (Tensor): its input, (H, W, C).
        attention (Tensor): of :func:`attention_maps` for ``query``, (heads, H, W).
        query (tuple[int, int]): row and column of the token.

    Returns:
        Tensor: (C, ). It differs from MaSA's own output at ``query`` by rounding alone, if the map is right.
    """
    _, _, v = queries_keys_values(masa, x)
    received = torch.einsum('hyx,yxhd->hd', attention, v).flatten()
    if masa.lce is not None:
        received = received + masa.lce(ops.to_image(v.flatten(2)[None]))[0, :, query[0], query[1]]
    return masa.proj(received.to(x.dtype))


def queries_keys_values(masa: MaSA, x: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
    """Return rotated queries, divided by the square root of their length, rotated keys, and values: (H, W, heads,
    head_dim) each.
    """
    q, k, v = (t[0] for t in ops.split_qkv(ops.linear(masa.qkv, x[None]), masa.position_tables(x[None])))
    return q.float() * masa.head_dim**-0.5, k.float(), v.float()
