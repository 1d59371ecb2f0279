"""Time attention by the C++ kernel against torch's fused attention, on the shapes of RMT, without the rest of RMT.

    python tools/analysis_tools/compare_kernels.py [--rounds 9] [--threads 1] [--dtype float32] [--only 800x1344]

Both run in turn in one process on the same tensors, which are views of one projection, as in the model. The table gives
medians in milliseconds, torch / kernel, and the kernel's rate by the multiply-adds of its products (2 in the forward
pass, 7 in both). Only the ratios mean something, and only within one run. Build the kernel first:
python -m rmt_mm.ops.build.
"""

import argparse
import statistics
import sys
import time
from typing import Callable, List, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rmt_mm.ops.masa import attend_lines, attend_map, why_not
from rmt_mm.ops.tables import line_bias, manhattan_bias, manhattan_bias_by_row

MAX_BIAS = 2**24  # elements; a larger bias is held one row of queries at a time


class Case(NamedTuple):
    where: str
    batch: int
    height: int
    width: int
    heads: int
    head_dim: int
    is_map: bool
    trains: bool = True


CASES = (
    Case('S 8x224 stage 1', 8, 56, 56, 4, 16, False),
    Case('S 8x224 stage 2', 8, 28, 28, 4, 32, False),
    Case('S 8x224 stage 3', 8, 14, 14, 8, 32, False),
    Case('S 8x224 stage 4', 8, 7, 7, 16, 32, True),
    Case('T 8x224 stage 3', 8, 14, 14, 8, 32, True),
    Case('S 800x1344 stage 1', 1, 200, 336, 4, 16, False),
    Case('S 800x1344 stage 2', 1, 100, 168, 4, 32, False),
    Case('S 800x1344 stage 3', 1, 50, 84, 8, 32, False),
    Case('S 800x1344 stage 4', 1, 25, 42, 16, 32, True),
    Case('T 800x1344 stage 3', 1, 50, 84, 8, 32, True),
    Case('S 512 stage 1', 1, 128, 128, 4, 16, False),
    Case('S 512 stage 2', 1, 64, 64, 4, 32, False),
    Case('S 512 stage 3', 1, 32, 32, 8, 32, False),
    Case('S 512 stage 4', 1, 16, 16, 16, 32, True),
)


def by_torch(q: Tensor, k: Tensor, v: Tensor, log_decay: tuple, is_map: bool) -> Tensor:
    """Attend by scaled_dot_product_attention with a bias."""
    _, height, width, heads, _ = q.shape
    place = (q.device, q.dtype)
    if not is_map:
        return torch_lines(
            *(t.transpose(1, 2) for t in (q, k, torch_lines(q, k, v, line_bias(log_decay, width, *place)))),
            line_bias(log_decay, height, *place),
        ).transpose(1, 2)
    if heads * (height * width) ** 2 <= MAX_BIAS:
        q, k, v = (t.flatten(1, 2).transpose(1, 2) for t in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, manhattan_bias(log_decay, height, width, *place).unsqueeze(0))
        return out.transpose(1, 2).unflatten(1, (height, width))
    bias = manhattan_bias_by_row(log_decay, height, width, *place)
    k, v = (t.flip(1).flatten(1, 2).transpose(1, 2) for t in (k, v))
    rows = [
        F.scaled_dot_product_attention(q[:, y].transpose(1, 2), k, v, bias[y].unsqueeze(0)).transpose(1, 2)
        for y in range(height)
    ]
    return torch.stack(rows, 1)


def torch_lines(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    batch_and_lines = q.shape[:2]
    q, k, v = (t.flatten(0, 1).transpose(1, 2) for t in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, bias.unsqueeze(0))
    return out.transpose(1, 2).unflatten(0, batch_and_lines)


def by_kernel(q: Tensor, k: Tensor, v: Tensor, log_decay: tuple, is_map: bool) -> Tensor:
    """Attend by the kernel."""
    if is_map:
        return attend_map(q, k, v, log_decay)
    return attend_lines(q, k, attend_lines(q, k, v, log_decay, 2), log_decay, 1)


def measure(case: Case, dtype: torch.dtype, trains: bool, rounds: int) -> List[List[float]]:
    """Return seconds of each round by torch and by the kernel."""
    shape = (case.batch, case.height, case.width, 3, case.heads, case.head_dim)
    projection = torch.randn(shape).to(dtype).requires_grad_(trains)
    q, k, v = projection.unbind(3)
    log_decay = tuple(-0.29 / (head + 1) for head in range(case.heads))
    grad = torch.randn(shape[:3] + shape[4:]).to(dtype)

    def run(attend: Callable[..., Tensor]) -> float:
        began = time.perf_counter()
        with torch.set_grad_enabled(trains):
            out = attend(q, k, v, log_decay, case.is_map)
        if trains:
            torch.autograd.grad(out, (q, k, v), grad)
        return time.perf_counter() - began

    run(by_torch), run(by_kernel)  # the first run makes tables and buffers
    return [list(side) for side in zip(*((run(by_torch), run(by_kernel)) for _ in range(rounds)))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=9, help='runs of each, in turn (default 9)')
    parser.add_argument('--threads', type=int, default=1, help='threads of torch (default 1)')
    parser.add_argument('--dtype', choices=('float32', 'bfloat16'), help='default: both')
    parser.add_argument('--only', default='', metavar='TEXT', help='cases whose name holds this text')
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    reason = why_not(*3 * [torch.zeros(1, 1, 1, 1, 8)])
    if reason:
        sys.exit(f'compare_kernels: {reason}')
    print(f'torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {args.threads} threads, ms')
    print(f'{"":20} {"":8} {"":8} {"torch":>8} {"kernel":>8} {"ratio":>6} {"GFLOP/s":>8}')
    for name in [args.dtype] if args.dtype else ['float32', 'bfloat16']:
        for trains in (False, True):
            for case in CASES:
                if args.only not in case.where:
                    continue
                seconds = measure(case, getattr(torch, name), trains, args.rounds)
                torch_ms, kernel_ms = (statistics.median(side) * 1e3 for side in seconds)
                ratio = statistics.median(old / new for old, new in zip(*seconds))
                keys = case.height * case.width if case.is_map else case.height + case.width
                products = case.batch * case.height * case.width * keys * case.heads * case.head_dim
                rate = 2 * (7 if trains else 2) * products / kernel_ms / 1e6
                what = 'training' if trains else 'forward'
                print(f'{case.where:20} {name:8} {what:8} {torch_ms:8.2f} {kernel_ms:8.2f} {ratio:6.2f} {rate:8.1f}')


if __name__ == '__main__':
    main()
