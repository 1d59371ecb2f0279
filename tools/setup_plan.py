"""Decide what pip installs, for tools/setup_env.sh. Run by the environment's Python, without other packages.

    python tools/setup_plan.py ENV openmmlab|onedl [--torch VERSION] [--keep]

Writes ENV/.requirements.txt, what to install beside mmcv, and ENV/.constraints.txt, what must stay as it is. Prints
the version of torch that the environment will have. With --keep the environment is the user's: torch, torchvision,
NumPy and mmcv stay, and only packages that are missing are installed.
"""

import argparse
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Dict, List, Optional, Tuple

ROOT = Path(__file__).resolve().parents[1]
REQUIREMENTS = ROOT / 'requirements'
# Distributions of the same files: two of them in one environment overwrite each other.
MMCV = ('mmcv', 'mmcv-full', 'mmcv-lite', 'onedl-mmcv')


def read_requirements(*names: str) -> Dict[str, str]:
    lines = [line.strip() for name in names for line in (REQUIREMENTS / f'{name}.txt').read_text().splitlines()]
    return {re.split('[=><]', line)[0]: line for line in lines if line and not line.startswith('#')}


def find_installed(names: List[str]) -> Dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def numbers(release: str) -> Tuple[int, ...]:
    return tuple(map(int, release.split('.')[:2]))


def read_oldest_torch() -> str:
    """Return the oldest torch that the package's own metadata take."""
    return re.search(r'^ +torch>=([\d.]+)', (ROOT / 'setup.cfg').read_text(), re.MULTILINE).group(1)


def plan(
    wanted: Dict[str, str], installed: Dict[str, str], torch: Optional[str], keep: bool, oldest: str = '0.0'
) -> Tuple[str, List[str], List[str]]:
    """Return the version of torch, the requirements without mmcv, and the constraints.

    Args:
        wanted (dict): name -> requirement, as the requirements files state them.
        installed (dict): name -> version of what the environment holds.
        torch (str | None): another version of torch than the pinned one.
        keep (bool): leave what is installed.
        oldest (str): oldest torch that will do.

    Raises:
        ValueError: one sentence, if the options and the environment contradict each other.
    """
    wanted = dict(wanted)
    mmcv = next(name for name in MMCV if name in wanted)
    del wanted[mmcv]
    other = next((name for name in MMCV if name != mmcv and name in installed), None)
    if other:
        raise ValueError(f'it holds {other}, whose files {mmcv} would overwrite: name another folder with ENV')
    if torch:
        wanted.update(torch=f'torch=={torch}', torchvision='torchvision')  # torchvision names the torch that it needs
    constraints = []
    if keep:
        there = installed.get('torch', '').split('+')[0]
        if there and torch and there != torch:
            raise ValueError(f'it holds torch {there}: leave TORCH={torch} out to keep that, or name another folder')
        if there:
            wanted.update(torch=f'torch=={there}', torchvision='torchvision')
        constraints = [
            f'{name}=={installed[name]}' for name in ('torch', 'torchvision', 'numpy', mmcv) if name in installed
        ]
    torch = wanted['torch'].split('==')[1]
    if numbers(torch) < numbers(oldest):
        raise ValueError(f'torch {torch} is too old, torch {oldest} or later is wanted: choose one with TORCH=VERSION')
    if numbers(torch) < (2, 3):
        constraints.append('numpy<2')  # what these releases were compiled with
    return torch, [line for name, line in wanted.items() if not (keep and name in installed)], constraints


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('env', type=Path, help="the environment's folder")
    parser.add_argument('stack', choices=('openmmlab', 'onedl'))
    parser.add_argument('--torch', metavar='VERSION')
    parser.add_argument('--keep', action='store_true')
    args = parser.parse_args()
    wanted = read_requirements('torch', args.stack, 'dev')
    try:
        torch, requirements, constraints = plan(
            wanted, find_installed([*wanted, *MMCV, 'numpy']), args.torch, args.keep, read_oldest_torch()
        )
    except ValueError as error:
        sys.exit(f'setup: {args.env} cannot be used: {error}')
    (args.env / '.requirements.txt').write_text('\n'.join(requirements) + '\n')
    (args.env / '.constraints.txt').write_text('\n'.join(constraints) + '\n')
    print(torch)


if __name__ == '__main__':
    main()
