#!/usr/bin/env python3
"""Run the tests under several versions of torch, Python and NumPy, each in an environment of its own.

    python tools/compat_matrix.py                    all rows of ROWS, one after the other; a row takes 10 to 20 minutes
    python tools/compat_matrix.py --only torch2.1    one row
    python tools/compat_matrix.py --resume           the rows without a result, or with failures
    python tools/compat_matrix.py --table            no tests: the tables again, from the results

An environment is made of packages from the registry, in $RMT_MM_CACHE/envs (default ~/.cache/rmt-mm/envs). It takes 5
to 8 GB, and is removed after its run unless --keep is given. Results go to docs/compatibility.json, and from there into
the table of docs/compatibility.md.
"""

import argparse
import datetime
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import List, NamedTuple, Optional

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / 'docs/compatibility.json'
PAGES = ('docs/compatibility.md',)
MARKS = '<!-- compatibility -->\n', '<!-- end of compatibility -->\n'
# Nothing to compile: mmcv-lite has no operators, and mmpretrain needs none. Tests of mmdet and mmseg skip themselves.
LITE = ('mmcv-lite==2.1.0', 'mmengine==0.10.7', 'mmpretrain==1.2.0', 'setuptools==80.9.0', 'safetensors', 'requests')
TOOLS = ('pytest>=8', 'pytest-timeout', 'hypothesis>=6', 'scikit-learn', 'onnx')
TESTS = (
    'tests/backbone',
    'tests/ops',
    'tests/checkpoints',
    'tests/training',
    'tests/classification/test_classification_usage.py',  # trains, resumes and tests
    'tests/test_imports.py',
)


class Row(NamedTuple):
    """An environment.

    Args:
        python (str): such as ``'3.9'``.
        versions (tuple[str]): requirements of torch, torchvision and NumPy. Empty: the environment of `make setup`.
        stack (str): ``'lite'``, or which stack `make setup` installs: ``'openmmlab'``, ``'onedl'``.
    """

    python: str
    versions: tuple = ()
    stack: str = 'lite'


ROWS = {
    'torch2.1': Row('3.11', ('torch==2.1.2', 'torchvision==0.16.2', 'numpy==1.26.4')),
    'torch2.1-python3.9': Row('3.9', ('torch==2.1.2', 'torchvision==0.16.2', 'numpy==1.26.4')),
    'torch2.3': Row('3.10', ('torch==2.3.1', 'torchvision==0.18.1', 'numpy==1.26.4')),
    'torch2.4': Row('3.12', ('torch==2.4.1', 'torchvision==0.19.1', 'numpy>=2')),
    'torch2.6': Row('3.13', ('torch==2.6.0', 'torchvision==0.21.0', 'numpy>=2')),
    'torch2.9': Row('3.12', ('torch==2.9.1', 'torchvision==0.24.1', 'numpy>=2')),
    'torch2.13': Row('3.13', ('torch==2.13.0', 'torchvision==0.28.0', 'numpy>=2')),
    'openmmlab': Row('3.11', stack='openmmlab'),
    'onedl': Row('3.11', stack='onedl'),
}
FACTS = (
    'import json, platform, torch, numpy; '
    'print(json.dumps([torch.__version__, platform.python_version(), numpy.__version__]))'
)


def find_python(version: str) -> str:
    """Return an interpreter of a version such as 3.9: of PATH, else of pyenv."""
    pyenv = Path(os.environ.get('PYENV_ROOT', Path.home() / '.pyenv')) / 'versions'
    places = [shutil.which(f'python{version}'), *sorted(map(str, pyenv.glob(f'{version}.*/bin/python')))]
    for python in filter(None, places):
        asked = subprocess.run([python, '-c', 'import sys; print(*sys.version_info[:2], sep=".")'], capture_output=True)
        if asked.stdout.decode().strip() == version:
            return python
    sys.exit(f'error: there is no Python {version}: install it, or put python{version} on PATH.')


def pip(python: Path, *args: str) -> None:
    command = [str(python), '-m', 'pip', '--disable-pip-version-check', 'install', '-q', '--progress-bar', 'off', *args]
    done = subprocess.run(command, cwd=ROOT)
    if done.returncode:
        sys.exit(f'error: pip could not install {" ".join(args)} (see above); without it nothing was tested.')


def make_environment(name: str, row: Row, envs: Path) -> Path:
    """Return the Python of a row's environment, which is made unless it is there as it should be."""
    if row.stack != 'lite':
        subprocess.run([ROOT / 'tools/setup_env.sh', row.stack], cwd=ROOT, check=True)
        return ROOT / ('.venv' if row.stack == 'openmmlab' else '.venv-onedl') / 'bin/python'
    folder, wanted = envs / name, hashlib.sha256(repr((row, LITE, TOOLS)).encode()).hexdigest()
    python, stamp = folder / 'bin/python', folder / 'ready'
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f'{name}: making {folder}', flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([find_python(row.python), '-m', 'venv', str(folder)], check=True)
        pip(python, '--no-cache-dir', *row.versions, *LITE, *TOOLS)
        stamp.write_text(wanted)
    pip(python, '--no-deps', '--no-build-isolation', '-e', '.')
    return python


def run_tests(python: Path, paths: List[str], report: Path) -> dict:
    """Run tests and count what became of them."""
    report.unlink(missing_ok=True)
    subprocess.run([str(python), '-m', 'pytest', '-q', f'--junitxml={report}', *paths], cwd=ROOT)
    if not report.exists():
        sys.exit('error: pytest ended before it wrote its report.')
    suite = ElementTree.parse(report).getroot().find('testsuite')
    tests, failed, errors, skipped = (int(suite.get(key)) for key in ('tests', 'failures', 'errors', 'skipped'))
    return dict(passed=tests - failed - errors - skipped, skipped=skipped, failed=failed + errors)


def test_row(name: str, envs: Path, keep: bool, paths: Optional[List[str]]) -> dict:
    row = ROWS[name]
    python = make_environment(name, row, envs)
    facts = subprocess.run([str(python), '-c', FACTS], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    result = dict(zip(('torch', 'python', 'numpy'), json.loads(facts.splitlines()[-1])))
    result.update(stack=row.stack, date=datetime.date.today().isoformat())
    result.update(run_tests(python, paths or list(TESTS), envs / f'{name}.xml'))
    if row.stack == 'lite' and not keep:
        shutil.rmtree(envs / name)
    return result


def table(results: dict) -> str:
    lines = [
        '| torch | Python | NumPy | OpenMMLab packages | Date | Passed | Skipped | Failed |\n',
        '| --- | --- | --- | --- | --- | ---: | ---: | ---: |\n',
    ]
    stacks = dict(lite='mmcv-lite, mmengine, mmpretrain', openmmlab='all', onedl='all, the continuation')
    for name in ROWS:
        if name in results:
            r = results[name]
            cells = (r['torch'], r['python'], r['numpy'], stacks[r['stack']], r['date'])
            lines.append(f'| {" | ".join(cells)} | {r["passed"]} | {r["skipped"]} | {r["failed"]} |\n')
    return ''.join(lines)


def read_results() -> dict:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def write_tables(results: dict) -> None:
    for page in PAGES:
        text = (ROOT / page).read_text()
        start, end = map(re.escape, MARKS)
        new = re.sub(f'(?<={start}).*(?={end})', lambda _: table(results), text, flags=re.DOTALL)
        (ROOT / page).write_text(new)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('tests', nargs='*', help='run these alone, and write no result')
    parser.add_argument('--only', choices=ROWS, help='one row')
    parser.add_argument('--resume', action='store_true', help='leave out the rows that have a result without failures')
    parser.add_argument('--keep', action='store_true', help='keep the environments')
    parser.add_argument('--table', action='store_true', help='run nothing, write the tables')
    args = parser.parse_args()
    cache = Path(
        os.environ.get('RMT_MM_CACHE') or Path(os.environ.get('XDG_CACHE_HOME', Path.home() / '.cache'), 'rmt-mm')
    )
    envs = cache / 'envs'
    envs.mkdir(parents=True, exist_ok=True)
    failed = []
    for name in () if args.table else (args.only,) if args.only else ROWS:
        if args.resume and read_results().get(name, {}).get('failed') == 0:
            continue
        result = test_row(name, envs, args.keep, args.tests)
        print(f'{name}: {json.dumps(result)}', flush=True)
        failed += [name] if result['failed'] or not result['passed'] else []
        if not args.tests:
            # Read again: another run may have ended meanwhile.
            RESULTS.write_text(json.dumps({**read_results(), name: result}, indent=2) + '\n')
    if not args.tests:
        write_tables(read_results())
    if failed:
        sys.exit(f'error: tests failed in {", ".join(failed)}.')


if __name__ == '__main__':
    main()
