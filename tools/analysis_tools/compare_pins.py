"""Compare kernels within a whole model, in one process: the time with each of several pins.

    python tools/analysis_tools/compare_pins.py --arch small --shape 800 1344 default attend=plain dwconv=plain plain

Passes with the pins (see rmt_mm.ops.use; `default` pins nothing) take turns. Prints, for each, the median of its times,
and the median of the ratios to the first pin's time in the same round, with their middle half.
"""

import argparse
import statistics
import time
from typing import Callable, Dict, List

import torch

from rmt_mm import ops
from rmt_mm.ops.dispatch import read_pins
from rmt_mm.tools.cli.measure import Case, make_step


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('pins', nargs='+', help='default, plain, or operator=kernel,operator=kernel')
    parser.add_argument('--arch', default='small', help='preset (default: small)')
    parser.add_argument('--shape', type=int, nargs=2, default=(224, 224), metavar=('H', 'W'), help='default: 224 224')
    parser.add_argument('--batch', type=int, default=1, help='images (default: 1)')
    parser.add_argument('--mode', choices=('infer', 'train'), default='infer', help='default: infer')
    parser.add_argument('--dtype', choices=('fp32', 'bf16'), default='fp32', help='bf16 is autocast (default: fp32)')
    parser.add_argument('--rounds', type=int, default=5, help='default: 5')
    return parser.parse_args()


def measure(step: Callable[[], object], pins: List[str], rounds: int) -> Dict[str, List[float]]:
    """Return seconds of each pin, after one pass of each that is not counted."""
    seconds: Dict[str, List[float]] = {text: [] for text in pins}
    for round_ in range(rounds + 1):
        for text in pins:
            with ops.use(**({} if text == 'default' else read_pins(text))):
                start = time.perf_counter()
                step()
                if round_:
                    seconds[text].append(time.perf_counter() - start)
    return seconds


def main() -> None:
    args = parse_args()
    ops.keep_freed_memory()
    case = Case(args.arch, tuple(args.shape), args.batch, args.mode, 'cpu', args.dtype)
    seconds = measure(make_step('rmt_mm', case), args.pins, args.rounds)
    first = seconds[args.pins[0]]
    print(f'{args.arch}, {args.batch} x {args.shape[0]} x {args.shape[1]}, {args.mode}, {args.dtype}, '
          f'{torch.get_num_threads()} threads')  # fmt: skip
    for text, times in seconds.items():
        ratios = sorted(a / b for a, b in zip(times, first))
        low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
        print(f'{text:<32} {statistics.median(times):.4f} s  {statistics.median(ratios):.3f} ({low:.3f} to {high:.3f})')


if __name__ == '__main__':
    main()
