"""Time the backbones of two checkouts against each other, or of one under two environments, in one run.

    python tools/analysis_tools/compare_checkouts.py ../before . --arch small --shape 800 1344
    python tools/analysis_tools/compare_checkouts.py . . --env THP_MEM_ALLOC_ENABLE=1 --arch small --batch 8

Each runs in a process of its own, and their repeats take turns, so that what else the machine does affects both alike.
As our tools do, the workers let malloc keep what is freed (rmt_mm.ops.keep_freed_memory), unless a MALLOC_* variable is
set. Prints medians of seconds, and the median of the repeats' ratios of the second to the first. Peak memory is that of
the whole process.
"""

import argparse
import json
import os
import subprocess
import sys
from typing import List

import numpy as np

# Uses nothing of a checkout but RMT: older checkouts lack rmt_mm.tools.cli.measure.
WORKER = """
import json, resource, sys, time
import torch
import rmt_mm
from rmt_mm import RMT
keep = getattr(getattr(rmt_mm, 'ops', None), 'keep_freed_memory', None)  # older checkouts do it when they build RMT
if keep:
    keep()
arch, batch, height, width, mode, threads = json.loads(sys.argv[1])
torch.set_num_threads(threads)
torch.manual_seed(0)
model, x = RMT(arch).train(mode == 'train'), torch.randn(batch, 3, height, width)
if mode == 'compile':
    model = torch.compile(model)
def step():
    start = time.perf_counter()
    with torch.inference_mode(mode != 'train'):
        outs = model(x)
    if mode == 'train':
        sum(out.square().mean() for out in outs).backward()
    return time.perf_counter() - start
step(), step()
for line in sys.stdin:
    print(json.dumps([step(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]), flush=True)
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('first', help='folder of a checkout')
    parser.add_argument('second', help='folder of another one, or the same')
    parser.add_argument('--arch', default='small', help='default: small')
    parser.add_argument('--batch', type=int, default=1, help='default: 1')
    parser.add_argument('--shape', type=int, nargs=2, default=[224, 224], metavar=('H', 'W'), help='default: 224 224')
    parser.add_argument('--mode', choices=['infer', 'compile', 'train'], default='infer', help='default: infer')
    parser.add_argument('--repeat', type=int, default=5, help='default: 5')
    parser.add_argument('--threads', type=int, default=len(os.sched_getaffinity(0)), help='default: one a processor')
    parser.add_argument('--env', nargs='+', default=[], metavar='NAME=VALUE', help='environment of the second alone')
    args = parser.parse_args()
    for folder in (args.first, args.second):
        if not os.path.isdir(os.path.join(folder, 'rmt_mm')):
            parser.error(f'{folder} is not a checkout: it has no folder rmt_mm.')
    for pair in args.env:
        if '=' not in pair:
            parser.error(f'--env {pair}: write NAME=VALUE.')
    return args


def start(folder: str, variables: List[str], args: argparse.Namespace) -> subprocess.Popen:
    """Start a worker, which takes a step for every line that it reads."""
    job = json.dumps([args.arch, args.batch, *args.shape, args.mode, args.threads])
    env = dict(os.environ, PYTHONPATH=os.path.abspath(folder), **dict(pair.split('=', 1) for pair in variables))
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    # In a folder without a package: Python puts the current one first.
    return subprocess.Popen([sys.executable, '-c', WORKER, job], env=env, cwd=os.path.dirname(sys.executable), **pipes)


def main() -> None:
    args = parse_args()
    workers = [start(args.first, [], args), start(args.second, args.env, args)]
    results: List[List[List[float]]] = [[], []]
    for _ in range(args.repeat):
        for worker, result in zip(workers, results):
            try:
                worker.stdin.write('step\n')
                worker.stdin.flush()
                result.append(json.loads(worker.stdout.readline()))
            except (BrokenPipeError, json.JSONDecodeError):
                sys.exit('error: a worker ended: see its output above.')
    for worker in workers:
        worker.stdin.close()
        worker.wait()
    medians = [np.median([seconds for seconds, _ in result]) for result in results]
    for name, result, median in zip(('first', 'second'), results, medians):
        print(f'{name:<7} {median:.3f} s   {result[-1][1]:.0f} MB')
    # A repeat's two steps are neighbours in time: their ratio suffers less from a machine that slows down than the
    # ratio of the medians does.
    ratios = [second / first for (first, _), (second, _) in zip(*results)]
    low, ratio, high = np.quantile(ratios, (0.25, 0.5, 0.75))
    print(f'second / first: {ratio:.3f} (middle half of the repeats: {low:.3f} to {high:.3f})')


if __name__ == '__main__':
    main()
