"""Report whether RMT works here: versions, operators, attention kernels, speed, parity, and how to fix problems.

    rmt-doctor

`python -m rmt_doctor` is the same, and so is `python -m rmt_mm` where rmt_mm can be imported. The exit status is 0 if
everything that is installed works, otherwise 1. Put the output into bug reports.

This module lies beside the package, because importing rmt_mm raises an error where the doctor is needed most: where
mmcv or mmengine are missing or too old.
"""

import argparse
import importlib
import os
import platform
import sys
import time
from importlib import metadata
from typing import List, Optional

# The task that needs each package. RMT itself needs none of them.
TASKS = {'mmdet': 'detection', 'mmseg': 'segmentation', 'mmpretrain': 'classification'}
# Packages that another one imports and does not require.
ALSO = {'mmseg': ' ftfy regex'}
OPERATORS = (
    'compile mmcv for this torch: `ENV=DIR make setup` in a checkout of rmt-mm does it for the environment in DIR, and '
    'docs/install.md says where wheels are'
)
OLD_TRANSFORMERS = 'mmpretrain does not import beside a newer transformers: `pip install "transformers<4.50"`'
# Errors that an installed package raises at import when it does not fit another package or the machine.
IMPORT_ERRORS = (ImportError, AssertionError, AttributeError, OSError, RuntimeError, TypeError, ValueError)
PARITY_LIMIT = 1e-5
SIZES = ((224, 224), (800, 1344))


class Report:
    """Print each result at once, since later checks may take seconds or end the process. Collect the problems."""

    def __init__(self) -> None:
        self.problems: List[str] = []

    def fact(self, name: str, value: object) -> None:
        print(f'{name:<12} {value}', flush=True)

    def absent(self, name: str, wanted_for: str, remedy: str) -> None:
        """Report that an optional package is not installed."""
        self.fact(name, f'not installed; for {wanted_for}: {remedy}')

    def problem(self, name: str, text: str, remedy: str) -> None:
        self.fact(name, f'PROBLEM: {text}')
        self.problems.append(f'{name}: {remedy}')


def import_error(module: str) -> Optional[str]:
    """Import a module; return its error in one line, or None."""
    try:
        importlib.import_module(module)
    except IMPORT_ERRORS as error:
        return ' '.join(f'{type(error).__name__}: {error}'.split())
    return None


def check_torch(report: Report) -> bool:
    """Report torch and its devices."""
    error = import_error('torch')
    if error:
        report.problem('torch', error, 'install torch for your machine, such as `pip install torch torchvision`')
        return False
    import torch

    report.fact('torch', f'{torch.__version__}, {torch.get_num_threads()} threads')
    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        report.fact('GPU', ', '.join(f'{p.name} ({p.total_memory / 2**30:.0f} GiB)' for p in devices))
    else:
        built = f'torch is built for CUDA {torch.version.cuda}' if torch.version.cuda else 'torch is built without CUDA'
        report.fact('GPU', f'none: {built}')
    return True


def check_numpy_and_torchvision(report: Report) -> None:
    for name in ('numpy', 'torchvision'):
        try:
            report.fact(name, metadata.version(name))
        except metadata.PackageNotFoundError:
            remedy = f'`pip install {name}`'
            if name == 'numpy':
                report.problem(name, 'not installed', remedy)
            else:
                report.absent(name, 'mmdet and mmpretrain', remedy)


def check_stack(report: Report) -> bool:
    """Report this package and the OpenMMLab packages; return whether they can work together and this one imports."""
    failure = import_error('rmt_mm')
    # Python keeps what a failing import has loaded, and rmt_mm loads these two before it can fail.
    compat, version = sys.modules['rmt_mm.compat'], sys.modules['rmt_mm.version']
    report.fact('rmt_mm', f'{version.__version__} in {os.path.dirname(os.path.abspath(version.__file__ or ""))}')
    found = compat.find_installed()
    for package, (distribution, number) in found.items():
        if package != 'torch':  # already reported
            report.fact(package, number if distribution == package else f'{number} ({distribution})')
    problem = compat.find_stack_problem(found)
    if problem:
        report.problem('stack', problem, problem.rpartition(': ')[2])
        return False
    is_onedl = found['mmcv'][0].startswith('onedl-')
    report.fact('stack', 'onedl (the maintained continuation)' if is_onedl else 'OpenMMLab')
    operators = import_error('mmcv.ops')
    if operators:
        name, text = 'operators', f'mmcv has no compiled ones that work here ({operators})'
        if 'mmdet' in found:
            report.problem(name, f'{text}, and mmdet needs them', OPERATORS)
        else:
            report.fact(name, f'{text}; for detection: {OPERATORS}')
    else:
        report.fact('operators', "mmcv's compiled operators work")
    requirements = compat.read_requirements()
    for package, task in TASKS.items():
        distribution = compat.DISTRIBUTIONS[package][is_onedl]
        remedy = f'`pip install "{requirements.get(distribution, distribution)}"{ALSO.get(package, "")}`'
        if package not in found:
            report.absent(package, task, remedy)
        elif not (operators and package == 'mmdet'):  # already reported
            error = import_error(f'{package}.models')
            if error:
                if 'NoneType takes no arguments' in error:  # mmpretrain's multimodal models, which mmdet imports too
                    remedy = OLD_TRANSFORMERS
                report.problem(package, f'is installed, and does not import ({error})', remedy)
    if failure and not report.problems:  # otherwise one of them is why
        report.problem('rmt_mm', f'does not import ({failure})', 'open an issue with this output')
    return not failure


def check_model(report: Report) -> None:
    """Report kernels, seconds and parity of RMT-T."""
    import torch

    from rmt_mm import RMT, ops
    from rmt_mm.arch import ARCHS
    from rmt_mm.tools.golden import parity_error

    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    for height, width in SIZES:
        choices = []
        for stride, stage in zip(ARCHS['tiny'].strides(), ARCHS['tiny'].stages()):
            size, head_dim = (height // stride, width // stride), stage.dim // stage.num_heads
            q = torch.empty(1, *size, stage.num_heads, head_dim, device=device)
            tables = ops.PositionTables((-1.0,) * stage.num_heads, *size, head_dim, q.device)
            choice = ops.choose(
                'attend', ops.Call.of(q), q.new_empty(1, *size, 3 * stage.dim), tables, stage.decomposed
            )
            if choice.kernel == 'plain':
                operator, dim = ('attend_lines', [2]) if stage.decomposed else ('attend_map', [])
                part = ops.choose(operator, ops.Call.of(q), q, q, q, tables, *dim)
                choice = part._replace(reasons=choice.reasons + part.reasons)
            choices.append(choice)
        kernels = ', '.join(f'{operator}={kernel}' for operator, kernel, _ in choices)
        report.fact('attention', f'RMT-T at {height} x {width}, stages 1 to 4: {kernels}')
    for name, reason in choices[0].reasons:
        report.fact('', f'not {name}: {reason}')

    model = RMT('tiny').to(device)
    image = torch.zeros(1, 3, 224, 224, device=device)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        sum(out.sum() for out in model(image)).backward()
        if device == 'cuda':
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    report.fact('speed', f'RMT-T, 1 x 3 x 224 x 224, fp32, {device}: forward and backward in {min(seconds):.3f} s')

    error = parity_error()
    text = f'RMT-T differs from the original by {error:.1e} of its output (cpu, fp32; right below {PARITY_LIMIT:.0e})'
    if error < PARITY_LIMIT:
        report.fact('parity', text)
    else:
        report.problem('parity', text, 'this torch computes something wrongly: open an issue with this output')


def main(argv: Optional[List[str]] = None) -> int:
    """Print the report; return 0, or 1 if something does not work."""
    parser = argparse.ArgumentParser(
        prog='rmt-doctor', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args(argv)
    report = Report()
    report.fact('Python', f'{platform.python_version()}, {platform.platform()}')
    has_torch = check_torch(report)
    check_numpy_and_torchvision(report)
    if check_stack(report) and has_torch:
        check_model(report)
    print()
    for problem in report.problems:
        print(f'to mend: {problem}')
    print(f'{len(report.problems)} problems' if report.problems else 'everything that is installed works')
    return min(1, len(report.problems))


if __name__ == '__main__':  # python -m rmt_doctor
    sys.exit(main())
