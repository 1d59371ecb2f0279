"""Measure time and memory of the backbone against the plain reference, its other forms, and other backbones.

    python tools/analysis_tools/benchmark.py --arch small --shape 800 1344 --impl reference rmt_mm deploy
    python tools/analysis_tools/benchmark.py --arch small --batch 8 --impl rmt_mm mmdet.SwinTransformer
    python tools/analysis_tools/benchmark.py --arch tiny --impl reference rmt_mm --scaling scaling.png --sizes 512 1024
    python tools/analysis_tools/benchmark.py --impl decomposed whole --scaling scaling.png --max-gmac 1000

Implementations: `reference` (rmt_mm/reference.py, the formulas with explicit matrices), `rmt_mm`, `deploy` (after
switch_to_deploy), `compile` (torch.compile), `deploy-compile`, `whole` and `decomposed` (attention of all stages), any
backbone of a registry with its default arguments, such as mmdet.SwinTransformer or mmpretrain.ConvNeXt, or one of
torchvision, such as torchvision.swin_t. Ratios are to the first implementation named.

Times are medians of interleaved repeats in one process, in which malloc keeps what is freed
(rmt_mm.ops.keep_freed_memory, for all implementations); compare only ratios within a run. Memory is the peak above the
weights: on the CPU of a fresh process (which returns freed blocks to the system at once, so that tensors are counted
and not the gaps between them), on CUDA as its allocator counts it. The floor is the time of the true multiply-adds at
the machine's rate of matrix products (torch.matmul), measured in the same run; a training step counts as three forward
passes. The rate of the same product as a 1x1 convolution is printed too, and the page faults of a step, each
of which costs the clearing of memory.
"""

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Dict, List, Tuple

import torch
from torch import nn

from rmt_mm.arch import ARCHS
from rmt_mm.ops import keep_freed_memory
from rmt_mm.tools.cli import UsageError, exit_on_error
from rmt_mm.tools.cli.measure import OURS, Case, build, make_step, matrix_rate
from rmt_mm.tools.flops import MacCounter

SCALING_SIZES = (128, 192, 256, 384, 512, 768, 1024)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--arch', default='small', choices=ARCHS, help='size of RMT (default small)')
    parser.add_argument('--shape', type=int, nargs=2, default=(224, 224), metavar=('H', 'W'), help='default 224 224')
    parser.add_argument('--batch', type=int, default=1, help='images (default 1)')
    parser.add_argument('--mode', choices=('infer', 'train'), default='infer', help='forward, or forward and backward')
    parser.add_argument('--device', default='cpu', help='cpu (default) or cuda')
    parser.add_argument('--dtype', choices=('fp32', 'bf16', 'fp16'), default='fp32', help='autocast to it (default no)')
    parser.add_argument('--impl', nargs='+', default=['reference', 'rmt_mm'], help='what to measure, baseline first')
    parser.add_argument('--repeat', type=int, default=5, help='timed repeats (default 5)')
    parser.add_argument('--json', action='store_true', help='print one JSON object')
    parser.add_argument('--scaling', metavar='PNG', help='plot time and memory over square sizes instead')
    parser.add_argument(
        '--sizes',
        type=int,
        nargs='+',
        metavar='N',
        help=f'of --scaling: sides of the squares (default {" ".join(map(str, SCALING_SIZES))})',
    )
    parser.add_argument(
        '--max-gmac',
        type=float,
        default=math.inf,
        metavar='N',
        help='of --scaling: count, but do not run, what takes more than N * 10^9 multiply-adds (default: run all)',
    )
    parser.add_argument('--memory-of', help=argparse.SUPPRESS)  # the tool starts itself with it in a fresh process
    args = parser.parse_args()
    if args.device.startswith('cuda') and not torch.cuda.is_available():
        parser.error('--device cuda: no CUDA device is available')
    if min(args.batch, args.repeat, *args.shape, *(args.sizes or ())) < 1:
        parser.error('--batch, --repeat, --shape and --sizes take positive numbers')
    if (args.sizes or args.max_gmac < math.inf) and not args.scaling:
        parser.error('--sizes and --max-gmac: name the plot with --scaling PNG')
    args.sizes = sorted(set(args.sizes or SCALING_SIZES))
    if len(args.sizes) < 2:
        parser.error('--sizes: a plot over sizes needs two of them')
    if args.mode == 'train' and any('deploy' in impl for impl in args.impl):
        parser.error('--mode train: the deploy form is for inference')
    return args


def case_of(args: argparse.Namespace) -> Case:
    return Case(*(getattr(args, field) for field in Case._fields))


def measure_times(args: argparse.Namespace) -> Tuple[Dict[str, List[float]], Dict[str, List[int]]]:
    """Return seconds and page faults of every repeat of every implementation, all with freed memory kept."""
    keep_freed_memory()
    steps = {impl: make_step(impl, case_of(args)) for impl in args.impl}
    for step in steps.values():
        step()
        step()
    times, faults = ({impl: [] for impl in steps} for _ in range(2))
    for _ in range(args.repeat):
        for impl, step in steps.items():
            faults_before, start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
            step()
            times[impl].append(time.perf_counter() - start)
            faults[impl].append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults_before)
    return times, faults


def resident_mb(field: str) -> float:
    """Return this process's resident memory now ('VmRSS') or at its peak ('VmHWM'), in MB (Linux)."""
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f'/proc/self/status has no {field}: memory on the CPU is measured on Linux.')


def measure_memory(impl: str, args: argparse.Namespace) -> float:
    """Return an implementation's peak memory above its weights in MB; on the CPU, call it in a fresh process."""
    step = make_step(impl, case_of(args))
    if args.device.startswith('cuda'):
        before = torch.cuda.memory_allocated()  # so that tables, made by the first step, count as on the CPU
        step()
        torch.cuda.reset_peak_memory_stats()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path('/proc/self/clear_refs').write_text('5')  # reset the peak of importing and building
    before = resident_mb('VmRSS')
    step()
    return resident_mb('VmHWM') - before


def memory_in_fresh_process(impl: str, args: argparse.Namespace) -> float:
    command = [
        sys.executable,
        __file__,
        '--arch',
        args.arch,
        '--shape',
        *map(str, args.shape),
        '--batch',
        str(args.batch),
        '--mode',
        args.mode,
        '--device',
        args.device,
        '--dtype',
        args.dtype,
        '--impl',
        impl,
        '--memory-of',
        impl,
    ]
    # Fix the threshold: glibc would raise it while running and keep freed blocks of up to 32 MiB in a fragmented heap.
    env = dict(os.environ, MALLOC_MMAP_THRESHOLD_=str(2**17))
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env)
    return float(done.stdout.split()[-1])


def product_by_convolution(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Compute a b^T as a 1x1 convolution, which on the CPU uses another library than a matrix product."""
    return nn.functional.conv2d(a[None, :, None].permute(0, 3, 1, 2), b[:, :, None, None])


def count_gmac(impl: str, args: argparse.Namespace) -> float:
    """Return the true multiply-adds of a forward pass over the batch, in 10^9."""
    model = build('rmt_mm' if impl in (*OURS, 'reference') else impl, case_of(args))
    model.to('meta')
    with torch.no_grad(), MacCounter(model) as counter:
        model(torch.zeros(args.batch, 3, *args.shape, device='meta'))
    return sum(counter.macs.values()) / 1e9


def measure(args: argparse.Namespace) -> dict:
    """Measure every implementation and return what ``--json`` prints."""
    size = 8192 if args.device.startswith('cuda') else 2048
    rate = matrix_rate(args.device, args.dtype, size)
    times, faults = measure_times(args)
    memory = {impl: memory_in_fresh_process(impl, args) for impl in args.impl}
    passes = 3 if args.mode == 'train' else 1
    first = args.impl[0]
    report = dict(
        arch=args.arch,
        shape=list(args.shape),
        batch=args.batch,
        mode=args.mode,
        device=args.device,
        dtype=args.dtype,
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        floor_gflops=rate,
        convolution_gflops=matrix_rate(args.device, args.dtype, size, product_by_convolution),
        gmac=count_gmac('rmt_mm', args),
        impls={},
    )
    seconds = {impl: statistics.median(values) for impl, values in times.items()}
    for impl in args.impl:
        floor = 2 * passes * count_gmac(impl, args) / rate
        report['impls'][impl] = dict(
            seconds=seconds[impl],
            spread=(max(times[impl]) - min(times[impl])) / seconds[impl],
            peak_mb=memory[impl],
            ratio=seconds[first] / seconds[impl],
            memory_ratio=memory[first] / memory[impl],
            over_floor=seconds[impl] / floor,
            page_faults=statistics.median(faults[impl]),
        )
    return report


def describe(report: dict) -> str:
    lines = [
        'RMT-{arch}, {batch} x {0} x {1}, {mode}, {device}, {dtype}, torch {torch}, {threads} threads; {gmac:.1f} GMAC '
        'forward, matrix products at {floor_gflops:.0f} GFLOP/s (as 1x1 convolutions {convolution_gflops:.0f})'.format(
            *report['shape'], **report
        ),
        f'{"":28}{"seconds":>10}{"spread":>8}{"ratio":>8}{"peak MB":>10}{"ratio":>8}'
        f'{"over floor":>12}{"page faults":>13}',
    ]
    for impl, r in report['impls'].items():
        lines.append(
            f'{impl:28}{r["seconds"]:10.3f}{r["spread"]:8.0%}{r["ratio"]:8.2f}{r["peak_mb"]:10.0f}'
            f'{r["memory_ratio"]:8.2f}{r["over_floor"]:12.1f}{r["page_faults"]:13.0f}'
        )
    return '\n'.join(lines)


def scaling(args: argparse.Namespace) -> dict:
    """Measure square sizes; plot multiply-adds, time and memory over tokens (H / 4 * W / 4), with c * tokens^exponent.

    Raises:
        UsageError: ``--max-gmac`` leaves less than two sizes of an implementation.
    """
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    import numpy as np

    tokens = [(-(-size // 4)) ** 2 for size in args.sizes]
    found = {impl: dict(tokens=tokens, gmac=[], seconds=[], peak_mb=[]) for impl in args.impl}
    squares = [argparse.Namespace(**{**vars(args), 'shape': (size, size)}) for size in args.sizes]
    for impl, values in found.items():
        values['gmac'] = [count_gmac(impl, square) for square in squares]
        if sum(gmac <= args.max_gmac for gmac in values['gmac']) < 2:
            raise UsageError(f'--max-gmac {args.max_gmac:g} leaves less than two sizes of {impl} to run.')
    for i, square in enumerate(squares):
        square.impl = [impl for impl in args.impl if found[impl]['gmac'][i] <= args.max_gmac]
        if square.impl:
            report = measure(square)
            print(describe(report), file=sys.stderr)
            for impl, measured in report['impls'].items():
                for key in ('seconds', 'peak_mb'):
                    found[impl][key].append(measured[key])
    labels = dict(gmac='multiply-adds, $10^9$', seconds='seconds', peak_mb='peak memory above the weights, MB')
    figure, axes = plt.subplots(1, len(labels), figsize=(15, 4))
    for impl, values in found.items():
        values['exponents'] = {}
        for axis, key in zip(axes, labels):
            x, y = tokens[: len(values[key])], values[key]
            half = (len(x) - 1) // 2  # fit the larger half, where constant costs are negligible
            exponent = float(np.polyfit(np.log(x[half:]), np.log(y[half:]), 1)[0])
            values['exponents'][key] = exponent
            axis.loglog(x, y, marker='o', label=f'{impl}, exponent {exponent:.2f}')
    for axis, label in zip(axes, labels.values()):
        axis.set(xlabel='tokens of the first stage', ylabel=label)
        axis.grid(alpha=0.3, which='both')
        axis.legend()
    figure.suptitle(f'RMT-{args.arch}, batch {args.batch}, {args.mode}, {args.device}, {args.dtype}')
    figure.tight_layout()
    figure.savefig(args.scaling, dpi=120)
    return found


def main() -> None:
    args = parse_args()
    if args.memory_of:
        print(measure_memory(args.memory_of, args))
    elif args.scaling:
        result = scaling(args)
        print(
            json.dumps(result)
            if args.json
            else f'Plotted in {args.scaling}; exponents of multiply-adds, time and memory over tokens: '
            + ', '.join(
                '{} {gmac:.2f}, {seconds:.2f} and {peak_mb:.2f}'.format(impl, **r['exponents'])
                for impl, r in result.items()
            )
        )
    else:
        report = measure(args)
        print(json.dumps(report) if args.json else describe(report))


if __name__ == '__main__':
    with exit_on_error():
        main()
