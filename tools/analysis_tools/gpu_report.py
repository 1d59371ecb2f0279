"""Check the backbone on a GPU and measure it there, most important first, within a budget of seconds.

    python tools/analysis_tools/gpu_report.py --out work_dirs/gpu --budget 540
    python tools/analysis_tools/gpu_report.py --out work_dirs/trial --device cpu --quick     # a trial: other sizes

Needs torch, mmengine and mmcv (mmcv-lite will do); torchvision for Swin-T and ConvNeXt-T, matplotlib for the bars.
Writes results.json and report.md after every result, report.png at the end, and a log of every measure that fails. A
second call with the same --out goes on with what is missing. A failure is a result: delete it from results.json to try
again.

Checks: outputs and gradients against rmt_mm/reference.py in fp64. A form passes if it is at most twice as far from that
as the reference in the same precision (or within 1e-4). Times are medians, memory is the allocator's peak above the
weights. A training step is forward and backward. Swin-T and ConvNeXt-T are torchvision's, up to their last map.

Every measure has a process of its own: running out of memory or crashing ends one measure, and none finds the tables
of another in memory. Each is forked from one that has imported torch and not touched the GPU, so that its start costs
a CUDA context and half a second.
"""

import argparse
import copy
import functools
import importlib.util
import json
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Callable, Dict, List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from rmt_mm import RMT, __version__, convert_official_state_dict, ops
from rmt_mm.arch import ARCHS, resolve_arch
from rmt_mm.atomic import replacing
from rmt_mm.reference import PlainRMT
from rmt_mm.tools.cli import UsageError, exit_on_error
from rmt_mm.tools.cli.isolation import run_isolated
from rmt_mm.tools.cli.measure import DTYPES, Case, make_step, matrix_rate

# What the backbone is checked in: kernels, deployed or compiled, and a precision.
PINS = {
    'Triton': dict(attend_lines='triton'),
    'FlexAttention': dict(attend_map='flex', attend_lines='plain'),
    'bias held': dict(attend='plain'),
    'by row': dict(attend_map='by_row', attend_lines='plain'),
    'deployed': {},
    'compiled': {},
    'compiled FlexAttention': dict(attend_map='flex', attend_lines='plain'),
}
CHECKS = [('Triton', 'bf16'), ('Triton', 'fp16')]
CHECKS += [(form, dtype) for form in ('FlexAttention', 'bias held') for dtype in DTYPES]
CHECKS += [('by row', 'fp32'), ('deployed', 'fp32'), ('compiled', 'fp32'), ('compiled', 'bf16')]
CHECKS += [('compiled FlexAttention', 'bf16')]
SWIN, CONVNEXT = 'torchvision.swin_t', 'torchvision.convnext_tiny'
OURS = ('rmt_mm', 'reference', 'compile')
# What is measured in each precision, most important first: compiling takes minutes.
GROUPS = (('rmt_mm', 'reference', SWIN), ('compile',), (CONVNEXT,))
COLUMNS = ('reference', 'rmt_mm', 'compile', SWIN, CONVNEXT)
FUSED = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]
ONE_BLOCK = {**ARCHS['tiny']._asdict(), 'depths': (1, 1, 1, 1)}  # every kind of attention, and little to compile
LEAST = {**ONE_BLOCK, 'embed_dims': (32, 32, 64, 64), 'num_heads': (2, 2, 4, 4)}


class Sizes(NamedTuple):
    """What the measures are taken on."""

    matrix: int
    check: Tuple[dict, Tuple[int, int]]  # arch, and a shape with odd numbers of tokens in most stages
    archs: Dict[str, object]  # by the names of the report
    images: List[Tuple[int, Tuple[int, int]]]  # batch and shape
    dtypes: Tuple[str, ...]
    steps: Tuple[int, int]  # warm-up and timed

    def rows(self, device: str) -> List[Tuple[str, Case]]:
        """Return the name and the case of every row of the table of times, most important first."""
        return [
            (f'{mode} {dtype} {batch}x{shape[0]}x{shape[1]} {name}', Case(arch, shape, batch, mode, device, dtype))
            for dtype in self.dtypes
            for mode in ('infer', 'train')
            for batch, shape in self.images
            for name, arch in self.archs.items()
        ]


FULL = Sizes(
    matrix=8192,
    check=(ONE_BLOCK, (396, 661)),
    archs={'small': 'small', 'tiny': 'tiny'},
    images=[(128, (224, 224)), (2, (800, 1344))],
    dtypes=('bf16', 'fp16'),
    steps=(3, 10),
)
QUICK = Sizes(
    matrix=256,
    check=(LEAST, (50, 71)),
    archs={'small': LEAST},
    images=[(2, (64, 64)), (1, (64, 96))],
    dtypes=('bf16',),
    steps=(1, 2),
)


class Measure(NamedTuple):
    """What to call in a process of its own, and what stands in its way, if anything does."""

    work: Callable[[], object]
    obstacle: Optional[str]


def describe(device: str) -> Dict[str, str]:
    versions = dict(torch=torch.__version__, python=platform.python_version(), rmt_mm=__version__)
    if device == 'cpu':
        return dict(device=f'CPU, {torch.get_num_threads()} threads', **versions)
    properties = torch.cuda.get_device_properties(0)
    memory = f'{properties.total_memory / 2**30:.0f} GiB'
    return dict(device=properties.name, memory=memory, cuda=torch.version.cuda, **versions)


def run_both_ways(model: nn.Module, image: Tensor, dtype: str) -> Dict[str, Tensor]:
    """Return the outputs, the gradient of the input, and those of the parameters, each in one vector of fp64."""
    x = image.clone().requires_grad_()
    with torch.autocast(image.device.type, DTYPES[dtype], enabled=dtype != 'fp32'):
        outs = model(x)
    generator = torch.Generator().manual_seed(1)
    torch.autograd.backward(outs, [torch.randn(out.shape, generator=generator).to(out) for out in outs])
    gradients = {name: p.grad for name, p in getattr(model, '_orig_mod', model).named_parameters()}
    if isinstance(model, PlainRMT):
        gradients = convert_official_state_dict(gradients)
    groups = dict(outputs=outs, input=[x.grad], weights=[gradients[name] for name in sorted(gradients)])
    return {key: torch.cat([t.detach().double().flatten() for t in tensors]) for key, tensors in groups.items()}


def check(form: str, dtype: str, arch: dict, shape: Tuple[int, int], device: str) -> dict:
    """Return errors relative to the reference in fp64, ours and its own. Settings of the process are changed."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    reference = PlainRMT(resolve_arch(arch)).to(device).eval()
    model = RMT(arch).to(device).eval()
    model.load_state_dict(convert_official_state_dict(reference.state_dict()))
    image = torch.randn(2, 3, *shape, device=device)
    exact = run_both_ways(copy.deepcopy(reference).double(), image.double(), 'fp32')
    plain = run_both_ways(reference, image, dtype)
    if form == 'deployed':
        model.switch_to_deploy()
    with sdpa_kernel(FUSED), ops.use(**PINS[form]):  # raises where torch would take its slow path
        found = run_both_ways(torch.compile(model) if 'compiled' in form else model, image, dtype)
    errors = {
        key: [float((vector - exact[key]).norm() / exact[key].norm()) for vector in (found[key], plain[key])]
        for key in ('outputs', 'input', 'weights')
        if not (key == 'weights' and form == 'deployed')  # it has others
    }
    return dict(errors=errors, passed=all(ours <= max(2 * its, 1e-4) for ours, its in errors.values()))


def measure_step(impl: str, case: Case, warm_up: int, repeat: int) -> dict:
    step = make_step(impl, case)
    on_cuda = case.device == 'cuda'
    weights = torch.cuda.memory_allocated() if on_cuda else 0
    times = []
    for i in range(warm_up + repeat):
        if i == warm_up and on_cuda:
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    seconds = statistics.median(times[warm_up:])
    return dict(
        seconds=seconds,
        spread=(max(times[warm_up:]) - min(times[warm_up:])) / seconds,
        first=times[0],  # compiling, where that is done
        peak_mb=(torch.cuda.max_memory_allocated() - weights) / 2**20 if on_cuda else None,
    )


def plan(sizes: Sizes, device: str) -> Dict[str, Measure]:
    """Return the measures by name, most important first."""

    def lacks(package: str) -> Optional[str]:
        return None if importlib.util.find_spec(package) else f'{package} is not installed'

    triton = lacks('triton') if device == 'cuda' else None
    flex = triton if device == 'cuda' else 'FlexAttention has gradients on CUDA only'
    obstacles = {'compile': triton, 'compiled': triton, 'FlexAttention': flex, 'compiled FlexAttention': flex}
    obstacles['Triton'] = triton if device == 'cuda' else 'our kernels in Triton are for CUDA'
    obstacles.update(dict.fromkeys((SWIN, CONVNEXT), lacks('torchvision')))
    measures = {}

    def add(name: str, kind: str, function: Callable, *args) -> None:
        measures[name] = Measure(functools.partial(function, *args), obstacles.get(kind))

    for dtype in DTYPES:
        add(f'rate {dtype} {sizes.matrix}', dtype, matrix_rate, device, dtype, sizes.matrix)
    height, width = sizes.check[1]

    def add_checks(compiled: bool) -> None:
        for form, dtype in CHECKS:
            if compiled == form.startswith('compiled'):
                add(f'check {form} {dtype} {height}x{width}', form, check, form, dtype, *sizes.check, device)

    add_checks(compiled=False)
    for dtype in sizes.dtypes:
        for impls in GROUPS:
            for row, case in sizes.rows(device):
                for impl in impls if case.dtype == dtype else ():
                    if impl in OURS or row.endswith('small'):  # what is as large as S
                        add(f'{row} {impl}', impl, measure_step, impl, case, *sizes.steps)
            add_checks(compiled=True)  # once: a dict keeps the place of what it has
    return measures


def write(path: Path, text: str) -> None:
    """Write a file at once or not at all."""
    with replacing(str(path)) as temporary:
        Path(temporary).write_text(text)


def read_results(path: Path) -> dict:
    if not path.exists():
        return {}
    try:
        results = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UsageError(f'{path} is not JSON ({error}): mend it, or choose another --out.') from error
    if not isinstance(results, dict) or 'about' not in results:
        raise UsageError(f'{path} does not hold results of this tool: choose another --out.')
    return results


def report(results: dict, measures: Dict[str, Measure], rows: List[Tuple[str, Case]]) -> str:
    """Return the results as Markdown."""

    def show(name: str, text: Callable[[dict], str]) -> str:
        outcome = results.get(name, dict(failure=f'not measured: {measures[name].obstacle or "no time yet"}'))
        return outcome.get('failure') or text(outcome['result'])

    def show_check(result: dict) -> str:
        errors = [f'{ours:.1e} ({its:.1e})' for ours, its in result['errors'].values()]
        return ' | '.join(['passed' if result['passed'] else '**wrong**', *errors])

    def show_step(result: dict) -> str:
        memory = '' if result['peak_mb'] is None else f', {result["peak_mb"]:.0f} MB'
        return f'{1e3 * result["seconds"]:.2f} ms{memory}'

    lines = ['# RMT measured', '', ', '.join(f'{key} {value}' for key, value in results['about'].items()), '']
    lines += ['Products of square matrices:', '']
    for name in (name for name in measures if name.startswith('rate')):
        lines.append(f'- {name[5:]}: ' + show(name, lambda gflops: f'{gflops:,.0f} GFLOP/s'))
    lines += ['', 'Errors relative to the reference in fp64, and in brackets those of the reference itself:', '']
    lines += ['| | | outputs | input gradient | weight gradients |', '| --- | --- | ---: | ---: | ---: |']
    for name in (name for name in measures if name.startswith('check')):
        lines.append(f'| {name[6:]} | {show(name, show_check)} |')
    lines += ['', 'Median time, and peak memory above the weights:', '']
    lines += [f'| | {" | ".join(COLUMNS)} |', '| --- |' + ' ---: |' * len(COLUMNS)]
    for row, _ in rows:
        cells = [show(name, show_step) if name in measures else '' for name in (f'{row} {impl}' for impl in COLUMNS)]
        lines.append(f'| {row} | {" | ".join(cells)} |')
    return '\n'.join(lines) + '\n'


def plot(results: dict, rows: List[Tuple[str, Case]], path: Path) -> None:
    """Plot images per second as bars, a panel for each mode and size."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    panels = {}
    for row, case in rows:
        panels.setdefault((case.mode, case.batch, *case.shape), []).append((row, case))
    figure, axes = plt.subplots(len(panels), 1, figsize=(9, 3 * len(panels)))
    for axis, (panel, group) in zip(axes, panels.items()):
        for i, impl in enumerate(COLUMNS):
            found = [results.get(f'{row} {impl}', {}).get('result') for row, _ in group]
            speeds = [case.batch / result['seconds'] if result else 0 for (_, case), result in zip(group, found)]
            axis.bar([x + 0.16 * (i - 2) for x in range(len(group))], speeds, 0.16, label=impl)
        axis.set_xticks(range(len(group)), [f'{row.split()[-1]} {case.dtype}' for row, case in group])
        axis.set(title='{}, {} x {} x {}'.format(*panel), ylabel='images per second')
    axes[0].legend(fontsize='small')
    figure.suptitle(f'{results["about"]["device"]} (no bar: not measured)')
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, required=True, help='folder for the results')
    parser.add_argument('--budget', type=float, default=540, help='seconds after which to stop (default 540)')
    parser.add_argument('--limit', type=float, default=180, help='seconds for one measure (default 180)')
    parser.add_argument('--device', choices=('cuda', 'cpu'), default='cuda', help='default cuda')
    parser.add_argument('--quick', action='store_true', help='a trial of the tool: small sizes')
    args = parser.parse_args()
    if args.device == 'cuda' and not torch.cuda.is_available():
        parser.error('no CUDA device is available; --device cpu --quick tries the tool without one')
    return args


def main() -> None:
    args = parse_args()
    end = time.monotonic() + args.budget
    sizes = QUICK if args.quick else FULL
    measures, rows = plan(sizes, args.device), sizes.rows(args.device)
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / 'results.json'
    results = read_results(path)
    found = run_isolated(functools.partial(describe, args.device), args.out / 'device.log', 120) or {}
    if 'result' not in found:
        raise UsageError(f'the device does not answer: {found.get("failure", "no word in time")}.')
    if results.setdefault('about', found['result']) != found['result']:
        raise UsageError(f'{path} was measured on {results["about"]}, this is {found["result"]}: choose another --out.')
    missing = [name for name, measure in measures.items() if name not in results and not measure.obstacle]
    while missing and (left := end - time.monotonic()) > 0:
        name = missing[0]
        log = args.out / f'{name.replace(" ", "-")}.log'
        outcome = run_isolated(measures[name].work, log, min(left, args.limit))
        if outcome is None and left < args.limit:
            break
        results[name] = outcome or dict(failure=f'took longer than {args.limit:.0f} s')
        write(path, json.dumps(results, indent=1))
        write(args.out / 'report.md', report(results, measures, rows))
        print(f'{name}: {results[name].get("result") or results[name]["failure"]}', flush=True)
        del missing[0]
    write(args.out / 'report.md', report(results, measures, rows))
    if importlib.util.find_spec('matplotlib'):
        plot(results, rows, args.out / 'report.png')
    if missing:
        print(f'{len(missing)} missing after {args.budget:.0f} s, for a call with the same --out: {"; ".join(missing)}')
    checks = {name: results[name] for name in measures if name.startswith('check') and name in results}
    wrong = [name for name, outcome in checks.items() if not outcome.get('result', {}).get('passed')]
    if wrong:
        sys.exit(f'Wrong, or ended without a result: {"; ".join(wrong)}')


if __name__ == '__main__':
    with exit_on_error(OSError):
        main()
