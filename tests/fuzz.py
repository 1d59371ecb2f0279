"""Read damaged, forged and odd files, each in a process of its own, and count how it ends.

    python tests/fuzz.py [--cases 1000] [--seed 0] [--only KIND] [--case NUMBER]

A case ends in success or in one sentence. Faults are a traceback, several lines, a signal, 60 seconds, 4 GiB of memory,
a program or code that was run, and a wrong result. The exit status is 1 after a fault; --only with --case repeats it.
"""

import argparse
import gc
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import cv2
import torch

from support.fuzz.isolated import GOOD, judge
from support.fuzz.kinds import KINDS


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--cases', type=int, default=1000)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--only', choices=list(KINDS))
    parser.add_argument('--case', type=int, metavar='NUMBER', help='this one of --only alone')
    return parser.parse_args()


def run_case(kind, name, seed, number, folder):
    """Run a case: every second one is of those that the kind lists, in an order by the seed."""
    generator = random.Random(f'{seed} {name} {number}')
    order = random.Random(f'{seed} {name}').sample(kind.systematic, len(kind.systematic))
    case = order[number // 2] if number % 2 == 0 and number // 2 < len(order) else kind.at_random
    folder.mkdir()
    try:
        return judge(lambda: case(generator), folder)
    finally:
        shutil.rmtree(folder)


def main():
    args = parse_args()
    torch.set_num_threads(1)  # threads do not survive a fork
    cv2.setNumThreads(0)
    faults, total = 0, 0
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        for name, (build, share) in KINDS.items():
            if args.only not in (None, name):
                continue
            files = Path(temporary, name)
            files.mkdir()
            kind = build(files)
            gc.collect()
            gc.freeze()  # a fork need not look through what is there
            (files / 'good').mkdir()
            verdict = judge(kind.good, files / 'good')
            if verdict.kind != 'success':
                sys.exit(f'{name}: good files end in {verdict.kind}: {verdict.text}')
            started, counts = time.monotonic(), Counter()
            count = args.cases if args.only else round(args.cases * share)
            for number in range(count) if args.case is None else [args.case]:
                verdict = run_case(kind, name, args.seed, number, Path(temporary, f'{name}-{number}'))
                counts[verdict.kind] += 1
                if args.case is not None:
                    print(verdict.text)
                if verdict.kind not in GOOD or args.case is not None:
                    last = (verdict.text.strip().splitlines() or [''])[-1]
                    print(f'{verdict.kind} in --only {name} --case {number}: {last[:300]}', flush=True)
            total += sum(counts.values())
            faults += sum(number for kind, number in counts.items() if kind not in GOOD)
            shown = ', '.join(f'{number} {kind}' for kind, number in sorted(counts.items()))
            print(f'{name}: {sum(counts.values())} cases, {shown} ({time.monotonic() - started:.0f} s)', flush=True)
    print(f'{total} cases, {faults} faults ({time.monotonic() - began:.0f} s, seed {args.seed})')
    return bool(faults)


if __name__ == '__main__':
    sys.exit(main())
