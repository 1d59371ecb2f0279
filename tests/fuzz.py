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


def run_kind(name, args, temporary):
    """Run the cases of a kind, after its good files; return how many ended in which way."""
    build, share = KINDS[name]
    files = Path(temporary, name)
    (files / 'good').mkdir(parents=True)
    kind = build(files)
    gc.collect()
    gc.freeze()  # a fork need not look through what is there
    verdict = judge(kind.good, files / 'good')
    if verdict.kind != 'success':
        sys.exit(f'{name}: good files end in {verdict.kind}: {verdict.text}')
    began, counts = time.monotonic(), Counter()
    count = args.cases if args.only else round(args.cases * share)
    for number in range(count) if args.case is None else [args.case]:
        verdict = run_case(kind, name, args.seed, number, Path(temporary, f'{name}-{number}'))
        counts[verdict.kind] += 1
        if args.case is not None:
            print(verdict.text)
        if verdict.kind not in GOOD or args.case is not None:
            last = (verdict.text.strip().splitlines() or [''])[-1]
            print(f'{verdict.kind} in --only {name} --case {number}: {last[:300]}', flush=True)
    shown = ', '.join(f'{number} {kind}' for kind, number in sorted(counts.items()))
    print(f'{name}: {sum(counts.values())} cases, {shown} ({time.monotonic() - began:.0f} s)', flush=True)
    return counts


def main():
    args = parse_args()
    torch.set_num_threads(1)  # threads do not survive a fork
    cv2.setNumThreads(0)
    began, counts = time.monotonic(), Counter()
    with tempfile.TemporaryDirectory() as temporary:
        for name in [args.only] if args.only else KINDS:
            counts += run_kind(name, args, temporary)
    faults = sum(number for kind, number in counts.items() if kind not in GOOD)
    seconds = time.monotonic() - began
    print(f'{sum(counts.values())} cases, {faults} faults ({seconds:.0f} s, seed {args.seed})')
    return bool(faults)


if __name__ == '__main__':
    sys.exit(main())
