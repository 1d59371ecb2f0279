"""Time mmcv's operators of two environments against each other, such as two builds of mmcv with one torch.

    python tools/analysis_tools/compare_ops.py OLD/bin/python NEW/bin/python [--rounds 9]

A process of each environment runs every operator in turn on the same inputs, on one thread: old, new, old, new. The
table gives the medians in milliseconds, and new / old with the smallest and largest ratio of one round. Only the
ratios mean something, and only within one run.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Dict, Iterator

OPERATORS = (
    'RoIAlign',
    'RoIAlign backward',
    'NMS',
    'soft NMS',
    'rotated NMS',
    'ModulatedDeformConv2d',
    'ModulatedDeformConv2d backward',
)


def serve() -> None:
    """Run operators as their names come in, and answer with seconds."""
    import time

    import torch
    from mmcv.ops import ModulatedDeformConv2dPack, RoIAlign, nms, nms_rotated, soft_nms

    torch.manual_seed(0)
    torch.set_num_threads(1)
    size = 200
    corners = torch.rand(2000, 2) * size * 4
    boxes = torch.cat([corners, corners + 8 + torch.rand(2000, 2) * 120], 1)
    scores = torch.rand(2000)
    rotated = torch.cat([corners, 8 + torch.rand(2000, 2) * 120, torch.rand(2000, 1) * 3], 1)
    features = torch.randn(1, 64, size, size, requires_grad=True)
    rois = torch.cat([torch.zeros(256, 1), boxes[:256]], 1)
    align = RoIAlign(7, spatial_scale=0.25, sampling_ratio=2)
    image = torch.randn(1, 32, 64, 64, requires_grad=True)
    deform = ModulatedDeformConv2dPack(32, 32, 3, padding=1)
    aligned, deformed = align(features, rois).sum(), deform(image).sum()
    run = {
        'RoIAlign': lambda: align(features.detach(), rois),
        'RoIAlign backward': lambda: aligned.backward(retain_graph=True),
        'NMS': lambda: nms(boxes, scores, 0.5),
        'soft NMS': lambda: soft_nms(boxes[:500], scores[:500], 0.5),
        'rotated NMS': lambda: nms_rotated(rotated[:1000], scores[:1000], 0.5),
        'ModulatedDeformConv2d': lambda: deform(image.detach()),
        'ModulatedDeformConv2d backward': lambda: deformed.backward(retain_graph=True),
    }
    print(json.dumps({'torch': torch.__version__}), flush=True)
    for name in sys.stdin:
        began = time.perf_counter()
        run[name.strip()]()
        print(time.perf_counter() - began, flush=True)


class Environment:
    def __init__(self, python: str):
        command = [python, str(Path(__file__).resolve()), '--serve']
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        answer = self.process.stdout.readline()
        if not answer:
            sys.exit(f'{python} could not load or run the operators: see above')
        self.torch = json.loads(answer)['torch']

    def time(self, operator: str) -> float:
        self.process.stdin.write(operator + '\n')
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def measure(old: Environment, new: Environment, rounds: int) -> Iterator[Dict[str, object]]:
    for operator in OPERATORS:
        old.time(operator), new.time(operator)  # the first run makes buffers
        pairs = [(old.time(operator), new.time(operator)) for _ in range(rounds)]
        ratios = [after / before for before, after in pairs]
        before, after = (statistics.median(side) * 1e3 for side in zip(*pairs))
        yield {
            'operator': operator,
            'old': before,
            'new': after,
            'ratio': statistics.median(ratios),
            'range': (min(ratios), max(ratios)),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('old', help="the one environment's Python")
    parser.add_argument('new', help="the other's")
    parser.add_argument('--rounds', type=int, default=9, help='timed rounds of each operator (default 9)')
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error('--rounds takes a positive number')
    environments = [Environment(python) for python in (args.old, args.new)]
    print(f'torch {environments[0].torch} and {environments[1].torch}, one thread, {args.rounds} rounds')
    print('| Operator | old ms | new ms | new / old | of one round |\n| --- | ---: | ---: | ---: | ---: |')
    for row in measure(*environments, args.rounds):
        print(
            f'| {row["operator"]} | {row["old"]:.2f} | {row["new"]:.2f} | {row["ratio"]:.2f} '
            f'| {row["range"][0]:.2f} to {row["range"][1]:.2f} |',
            flush=True,
        )
    for environment in environments:
        environment.close()


if __name__ == '__main__':
    if sys.argv[1:] == ['--serve']:
        serve()
    else:
        main()
