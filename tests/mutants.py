"""Break the code on purpose, one edit at a time, and check that the tests fail.

    python tests/mutants.py                 all of support/mutants.py, two at a time
    python tests/mutants.py -k attention    those whose name or file contains the word
    python tests/mutants.py --resume        without those killed in earlier runs on the same files
    python tests/mutants.py --tests-pass    faster, after `make test` and `make test-slow` on the same files

Every edit is made in a copy of the working tree, and only the tests of its row are run. A mutant survives if they pass.
The exit status is 1 if one survives, if an edit no longer applies, or if the tests fail without the edit.
"""

import argparse
import hashlib
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Dict, List, Tuple

from support import ROOT
from support.mutants import MUTANTS, Mutant
from support.scripts import ForkServer

RECORD = ROOT / 'work_dirs/mutants.json'
KILLED, SURVIVED, BROKEN = 'killed', 'SURVIVED', 'BROKEN'
TESTS_PASSED, TESTS_FAILED = 0, 1  # pytest's exit statuses
TIME_LIMIT = 1800
RUN_PYTEST = 'run_pytest.py'  # beside the package, which Python then finds there
# Imported once, and not for every row. They import no rmt_mm, and start no threads, which no fork takes along.
LIBRARIES = ('mmdet.models', 'mmseg.models', 'mmpretrain.models', 'plotly.graph_objects', 'gradio')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('-k', metavar='WORD', default='', help='only mutants whose name or file has this word')
    parser.add_argument('-n', type=int, default=2, metavar='N', help='run N at a time (default: 2)')
    parser.add_argument('--resume', action='store_true', help='leave out what was killed before in the same files')
    parser.add_argument('--tests-pass', action='store_true', help='do not run the tests without an edit first')
    parser.add_argument('--list', action='store_true', help='check that the edits apply, and run nothing')
    return parser.parse_args()


def source_files() -> List[Path]:
    """Return the files of the working tree, those not yet committed included, relative to its root."""
    command = ['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard']
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split('\0')
    return sorted(Path(name) for name in names if name and (ROOT / name).is_file())


def fingerprint(files: List[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(str(file).encode() + b'\0' + (ROOT / file).read_bytes())
    return digest.hexdigest()


def mutate(mutant: Mutant, root: Path) -> str:
    """Return the text of the file below ``root`` with the edit.

    Raises:
        ValueError: the file does not exist, or the old text does not occur in it exactly once.
    """
    path = root / mutant.file
    if not path.is_file():
        raise ValueError(f'there is no {mutant.file}')
    text = path.read_text()
    count = text.count(mutant.old)
    if count != 1:
        raise ValueError(f'{mutant.file} has the text {mutant.old!r} {count} times, not once')
    return text.replace(mutant.old, mutant.new)


def run_tests(tests: str, folder: Path, server: ForkServer) -> Tuple[int, str]:
    """Run pytest in a copy of the tree; return its exit status and the end of its output."""
    env = dict(os.environ, PYTHONPATH=str(folder), PYTHONDONTWRITEBYTECODE='1')
    options = ['-x', '-q', '-p', 'no:cacheprovider', '--show-capture=no', '-o', 'timeout=0']
    try:
        done = server.run([folder / RUN_PYTEST, *options, *tests.split()], folder, env, TIME_LIMIT)
    except subprocess.TimeoutExpired:
        return TESTS_FAILED, f'no end after {TIME_LIMIT} s'
    return done.returncode, done.stdout[-1500:] + done.stderr[-1500:]


def judge(mutant: Mutant, folder: Path, server: ForkServer) -> Tuple[str, str]:
    """Return the verdict on a mutant, and the output to show."""
    path = folder / mutant.file
    original = path.read_text()
    path.write_text(mutate(mutant, folder))
    try:
        status, output = run_tests(mutant.tests, folder, server)
    finally:
        path.write_text(original)
    if status == TESTS_FAILED:
        return KILLED, ''
    return (SURVIVED, '') if status == TESTS_PASSED else (BROKEN, output)


def main() -> int:
    args = parse_args()
    chosen = [m for m in MUTANTS if args.k in m.name or args.k in m.file]
    failures = []
    for mutant in chosen:
        try:
            mutate(mutant, ROOT)
        except ValueError as error:
            failures.append(f'{mutant.name}: the edit no longer applies: {error}')
    print(*failures, f'{len(chosen) - len(failures)} of {len(chosen)} edits apply', sep='\n', flush=True)
    if failures or args.list:
        return bool(failures)

    os.environ.setdefault('OMP_NUM_THREADS', '1')  # which the servers read when they import torch
    files = source_files()
    tree = fingerprint(files)
    record: Dict[str, List[str]] = json.loads(RECORD.read_text()) if RECORD.is_file() else {}
    killed = set(record.get(tree, []))
    if args.resume:
        chosen = [m for m in chosen if m.name not in killed]

    with tempfile.TemporaryDirectory(prefix='mutants-') as temporary:
        places: queue.Queue[Tuple[Path, ForkServer]] = queue.Queue()
        for i in range(args.n):
            folder = Path(temporary, str(i))
            for file in files:
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / file, folder / file)
            (folder / RUN_PYTEST).write_text('import pytest\n\nraise SystemExit(pytest.console_main())\n')
            places.put((folder, ForkServer(*LIBRARIES, own_session=True)))

        def in_a_copy(function, *arguments):
            place = places.get()
            try:
                return function(*arguments, *place)
            finally:
                places.put(place)

        with ThreadPoolExecutor(args.n) as pool:
            suites = [] if args.tests_pass else sorted({mutant.tests for mutant in chosen})
            for suite, (status, output) in zip(suites, pool.map(lambda s: in_a_copy(run_tests, s), suites)):
                print(f'unedited, pytest {suite}: {"passes" if status == TESTS_PASSED else status}', flush=True)
                if status != TESTS_PASSED:
                    print(output, flush=True)
                    failures.append(f'fails without any edit: pytest {suite}')
                    chosen = [m for m in chosen if m.tests != suite]
            for mutant, (verdict, output) in zip(chosen, pool.map(lambda m: in_a_copy(judge, m), chosen)):
                print(f'{verdict:8}  {mutant.name}  ({mutant.file})\n{output}'.rstrip(), flush=True)
                if verdict == KILLED:
                    killed.add(mutant.name)
                else:
                    failures.append(f'{verdict} {mutant.name}')
                RECORD.parent.mkdir(exist_ok=True)
                RECORD.write_text(json.dumps({tree: sorted(killed)}))
    print('all killed' if not failures else 'not killed:', *failures, sep='\n')
    return bool(failures)


if __name__ == '__main__':
    sys.exit(main())
