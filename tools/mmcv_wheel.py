"""Make or check mmcv's wheel with compiled operators, for tools/setup_env.sh. Run by the environment's Python.

    python tools/mmcv_wheel.py key                         name of this torch, Python and accelerator
    python tools/mmcv_wheel.py build mmcv==2.1.0 FOLDER    compile it into FOLDER, or take what FOLDER has
    python tools/mmcv_wheel.py check FILE 'mmcv>=2.0'      is it that package, for this Python, with operators
    python tools/mmcv_wheel.py try FILE                    do its operators run with this torch
    python tools/mmcv_wheel.py installed 'mmcv>=2.0'       is it installed, and do its operators run
    python tools/mmcv_wheel.py tools                       is there what compiling needs, apart from room on the disk

`build` runs mmcv's own setup.py. What makes it quick: no debug information, and torch's headers, which every file
includes, parsed once (a precompiled header, where the compiler is GCC). The objects stay in FOLDER until the wheel is
whole, so an interrupted build continues with the files that are missing.
"""

import argparse
import contextlib
import fcntl
import glob
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Callable, Dict, List, Optional, Tuple

# What every file of mmcv includes first. All of torch/extension.h, which one file includes, makes a header so large
# that reading it costs more than it saves.
HEADER_NAME = 'torch_header.h'
HEADER = '#include <torch/types.h>\n'
FLAGS = '-g0'  # after Python's own, such as -O3 -g: -O2 saves no time and slows operators
# Called by the build as the compiler: see compile_one.
COMPILER = '#!/bin/sh\nexec "{python}" -S -E "{tool}" cxx "{compiler}" "{header}" "$@"\n'
BUILD = 'import sys; from setuptools import build_meta; build_meta.__legacy__.build_wheel(sys.argv[1])'
TRY = """
import torch
from mmcv.ops import RoIAlign, nms
boxes = torch.tensor([[0., 0., 4., 4.], [0., 0., 4., 3.9], [5., 5., 9., 9.]])
kept = nms(boxes, torch.tensor([.9, .8, .7]), .5)[1]
assert kept.tolist() == [0, 2], kept
rois = torch.cat([torch.zeros(3, 1), boxes], 1)
assert RoIAlign(2)(torch.ones(1, 1, 16, 16), rois).eq(1).all()
"""
PYTHON_TAG = 'cp{}{}'.format(*sys.version_info)
JOB_MEMORY = 2 << 30  # bytes that one compiler takes at most, on mmcv's largest file


def fail(sentence: str) -> None:
    sys.exit(f'setup: {sentence}')


def build_key() -> str:
    """Name what a compiled operator depends on: a wheel made for one key crashes or fails to load with another."""
    import torch

    accelerator = f'cu{torch.version.cuda}' if compiles_for_gpu() else 'cpu'
    # Builds of torch before 2.7 came with either of two C++ ABIs.
    abi = '' if torch.compiled_with_cxx11_abi() else '-oldabi'
    return f'torch{torch.__version__.split("+")[0]}-{PYTHON_TAG}-{accelerator}{abi}'


def wheel_in(folder: Path, requirement: str) -> Optional[Path]:
    name, version = requirement.split('==')
    return next(iter(sorted(folder.glob(f'{name.replace("-", "_")}-{version}-*.whl'))), None)


# The compiler, as the build calls it ---------------------------------------------------------------------------------


def header_command(command: List[str], header: Path, output: Path) -> List[str]:
    """Return the command that precompiles `header` with the flags of `command`, which compiles a source."""
    flags, rest = [], iter(command)
    for argument in rest:
        if argument in ('-o', '-MF', '-include'):
            next(rest, None)
        elif argument not in ('-c', '-MMD', '-MD') and not argument.endswith(('.cpp', '.cc')):
            flags.append(argument)
    return [*flags, '-x', 'c++-header', str(header), '-o', str(output)]


def compile_one(command: List[str], header: Path) -> None:
    """Become the compiler; before that, precompile the header if no other process has begun to.

    GCC takes a precompiled header only with the flags it was made with, and a compile command is where they stand.
    Files that are compiled meanwhile parse the header as ever, and so does every file if precompiling it fails.
    """
    if '-c' in command:
        with contextlib.suppress(FileExistsError):
            os.close(os.open(f'{header}.begun', os.O_CREAT | os.O_EXCL))
            part = Path(f'{header}.part')
            done = subprocess.run(header_command(command, header, part), stderr=subprocess.DEVNULL)
            if done.returncode == 0:
                part.rename(f'{header}.gch')
            else:
                part.unlink(missing_ok=True)
    os.execvp(command[0], command)


def is_gcc(compiler: str) -> bool:
    """Tell GCC from clang, which precompiles headers in another way."""
    macros = subprocess.run([compiler, '-dM', '-E', '-x', 'c++', os.devnull], capture_output=True, text=True)
    return macros.returncode == 0 and '__GNUC__' in macros.stdout and '__clang__' not in macros.stdout


# The build -----------------------------------------------------------------------------------------------------------


def find_missing_tool() -> Optional[str]:
    """Say what compiling lacks here, or return None."""
    compiler = os.environ.get('CXX', 'c++')
    if not shutil.which(compiler):
        return (
            f'compiling mmcv needs a C++ compiler, and {compiler} is not found: install one (Debian: g++), '
            'or name a finished wheel with MMCV_WHEEL=FILE'
        )
    if not Path(sysconfig.get_path('include'), 'Python.h').exists():
        return (
            f"compiling mmcv needs Python's headers, and {sysconfig.get_path('include')}/Python.h is missing: install "
            f'them (Debian: python{sysconfig.get_python_version()}-dev), or name a finished wheel with MMCV_WHEEL=FILE'
        )
    return None


def compiles_for_gpu() -> bool:
    """Tell whether mmcv's setup.py will compile CUDA operators, by its own rule."""
    import torch

    return bool(torch.version.cuda) and (torch.cuda.is_available() or os.environ.get('FORCE_CUDA') == '1')


def find_missing_cuda() -> Optional[str]:
    """Say what compiling for the GPU lacks, or return None."""
    if not compiles_for_gpu():
        return None
    import torch
    from torch.utils.cpp_extension import CUDA_HOME

    if CUDA_HOME and Path(CUDA_HOME, 'bin', 'nvcc').exists():
        return None
    return (
        f'compiling mmcv for the GPU needs nvcc, which is not found: install the CUDA toolkit {torch.version.cuda} '
        'and set CUDA_HOME, or set CUDA_VISIBLE_DEVICES= for operators on the CPU alone'
    )


def count_jobs() -> int:
    """Return MAX_JOBS, or as many compilers as the processors and the free memory take."""
    if os.environ.get('MAX_JOBS'):
        return int(os.environ['MAX_JOBS'])
    memory = re.search(r'MemAvailable:\s+(\d+) kB', Path('/proc/meminfo').read_text())
    fit = int(memory.group(1)) * 1024 // JOB_MEMORY if memory else 2
    return max(1, min(len(os.sched_getaffinity(0)), fit))


def read_progress(log: str, total: int) -> Optional[Tuple[int, int, int]]:
    """Return (files done, files in all, files done by this run) from ninja's log, or None before its first file.

    Args:
        log (str): what the build wrote, with ninja's `[3/77] command` after every finished file.
        total (int): files in all, of which ninja counts only those that an earlier run left; 0 if unknown.
    """
    counts = re.findall(r'^\s*\[(\d+)/(\d+)\] ', log, re.MULTILINE)
    if not counts:
        return None
    now, wanted = map(int, counts[-1])
    total = max(total, wanted)
    return total - wanted + now, total, now


def count_files(source: Path) -> int:
    """Count the files of the build that torch wrote for ninja."""
    return sum(path.read_text().count('\nbuild ') for path in source.glob('build/temp.*/build.ninja'))


def follow(process: subprocess.Popen, log: Path, source: Path, header: Path, say: Callable[[str], None]) -> int:
    """Show the progress of a running build until it ends: one line on a terminal, a line every tenth in a log.

    The minutes left are those of the files since the header was ready: before that, each takes several times as long.
    """
    terminal, shown, base = sys.stdout.isatty(), -1, None
    while True:
        code = process.poll()
        progress = read_progress(log.read_text(errors='replace'), count_files(source))
        if progress:
            done, total, now = progress
            if base is None and (header.exists() or now > 8):
                base = (now, time.monotonic())
            text = f'{done} of {total} files'
            if done == total:
                text += ', linking'
            elif base and now > base[0]:
                minutes = (time.monotonic() - base[1]) / (now - base[0]) * (total - done) / 60
                text += f', {max(minutes, 0.1):.1f} minutes left'
            if terminal:
                print(f'\r  {text:<60}', end='', flush=True)
            elif done * 10 // total > shown:
                shown = done * 10 // total
                say(text)
        if code is not None:
            if terminal and progress:
                print()
            return code
        time.sleep(1)


def explain_failure(log: str) -> str:
    """Say in one sentence why a build failed, as far as its log tells."""
    if 'No space left on device' in log:
        return 'the disk is full: make room, then run the same command, which continues where it was'
    if re.search(r'Killed signal|signal terminated program|std::bad_alloc|virtual memory exhausted', log):
        return 'the memory did not suffice: run the same command with MAX_JOBS=1, which continues where it was'
    return 'compiling failed, with the errors above'


def fetch_source(requirement: str, work: Path) -> Path:
    """Download and unpack the source distribution, or return what is unpacked already."""
    source = work / 'source'
    if not source.exists():
        with tempfile.TemporaryDirectory(dir=work) as temporary:
            name = requirement.split('==')[0]
            command = [sys.executable, '-m', 'pip', '--disable-pip-version-check', 'download', '-q', '--no-deps']
            command += ['--no-build-isolation', '--no-binary', name, '-d', temporary, requirement]
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            if done.returncode:
                sys.exit(f'{done.stdout}\nsetup: pip could not download the source of {requirement}: see above')
            (archive,) = glob.glob(f'{temporary}/*.tar.gz')
            shutil.unpack_archive(archive, f'{temporary}/unpacked')
            (folder,) = Path(temporary, 'unpacked').iterdir()
            folder.rename(source)
    return source


def prepare(requirement: str, work: Path) -> Tuple[Path, Dict[str, str]]:
    """Return the source folder and the environment variables of the build, with what an earlier build left.

    Objects are kept only for the same Python, torch and compiler: ninja sees changed commands, but not a changed torch
    at the same place.
    """
    compiler = os.environ.get('CXX', 'c++')
    gcc = is_gcc(compiler)
    version = subprocess.run([compiler, '--version'], capture_output=True, text=True).stdout
    state = json.dumps([sys.executable, build_key(), compiler, version, HEADER, FLAGS])
    stamp = work / 'made_with.json'
    if work.exists() and (not stamp.exists() or stamp.read_text() != state):
        shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    stamp.write_text(state)

    flags, header = FLAGS, work / HEADER_NAME
    variables = dict(os.environ, MMCV_WITH_OPS='1', MAX_JOBS=str(count_jobs()))
    # torch looks for ninja on the PATH, and compiles file after file without it.
    variables['PATH'] = os.pathsep.join([sysconfig.get_path('scripts'), os.environ.get('PATH', '')])
    variables['CXX'] = compiler
    if gcc and ' ' not in str(work):  # torch writes the compiler's name unquoted
        if not header.exists() or header.read_text() != HEADER:  # a new date would make every object old
            header.write_text(HEADER)
        for name in ('begun', 'part'):
            Path(f'{header}.{name}').unlink(missing_ok=True)
        if Path(f'{header}.gch').exists():
            Path(f'{header}.begun').touch()
        wrapper = work / 'c++'
        wrapper.write_text(
            COMPILER.format(python=sys.executable, tool=Path(__file__).resolve(), compiler=compiler, header=header)
        )
        wrapper.chmod(0o755)
        variables['CXX'] = str(wrapper)
        flags += f' -include {header}'
    # CFLAGS takes the place of Python's own flags, among them -DNDEBUG.
    variables['CFLAGS'] = f'{os.environ.get("CFLAGS", sysconfig.get_config_var("CFLAGS") or "")} {flags}'
    return fetch_source(requirement, work), variables


def build(requirement: str, folder: Path) -> Path:
    """Return the wheel of `requirement` in `folder`; compile it if it is not there.

    Two builds at once share one compilation: the lock is handed to the build's processes, so that it is held until the
    last of them has ended, even when this process was killed.
    """
    began = time.monotonic()

    def say(text: str) -> None:
        print(f'[mmcv, {time.monotonic() - began:3.0f}s] {text}', flush=True)

    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / '.lock', 'w') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say('another set-up is compiling: waiting for it')
            fcntl.flock(lock, fcntl.LOCK_EX)
        found = wheel_in(folder, requirement)
        if found:
            return found
        problem = find_missing_tool() or find_missing_cuda()
        if problem:
            fail(problem)

        work, log = (
            folder / f'{requirement.replace("==", "-")}.build',
            folder / f'build-{requirement.split("==")[0]}.log',
        )
        source, variables = prepare(requirement, work)
        say(f'compiling {requirement} with {variables["MAX_JOBS"]} processes (log: {log})')
        shutil.rmtree(work / 'wheel', ignore_errors=True)
        with open(log, 'w') as output:
            process = subprocess.Popen(
                [sys.executable, '-c', BUILD, str(work / 'wheel')],
                cwd=source,
                env=variables,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=[lock.fileno()],
            )
        try:
            code = follow(process, log, source, work / f'{HEADER_NAME}.gch', say)
        except KeyboardInterrupt:
            process.wait()  # ninja removes the objects that are half written
            sys.exit(130)
        text = log.read_text(errors='replace')
        made = wheel_in(work / 'wheel', requirement)
        if code or not made:
            errors = [line for line in text.splitlines() if re.search(r'\berror\b|No space left|Killed', line)]
            print('\n'.join((errors or text.splitlines())[-10:]), file=sys.stderr)
            fail(f'{requirement}: {explain_failure(text)}; the whole log is {log}')
        wheel = made.rename(folder / made.name)  # in one file system: the wheel is there whole or not at all
        shutil.rmtree(work)
        say(f'{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB')
        return wheel


# A wheel or an mmcv that the user has --------------------------------------------------------------------------------


def find_wheel_problem(path: Path, requirement: str) -> Optional[str]:
    """Say in one sentence why a wheel cannot serve as `requirement` in this Python, or return None."""
    from packaging.requirements import Requirement
    from packaging.tags import sys_tags
    from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

    wanted = Requirement(requirement)
    if not path.is_file():
        return f'MMCV_WHEEL={path}: there is no such file'
    try:
        name, version, _, tags = parse_wheel_filename(path.name)
    except InvalidWheelFilename:
        return (
            f'MMCV_WHEEL={path}: this is not the name of a wheel, such as mmcv-2.1.0-cp311-cp311-linux_x86_64.whl: '
            'name the file as it was downloaded'
        )
    if name != canonicalize_name(wanted.name) or version not in wanted.specifier:
        return f'MMCV_WHEEL={path}: this is {name} {version}, and {wanted} is wanted'
    if tags.isdisjoint(sys_tags()):
        return (
            f'MMCV_WHEEL={path}: this wheel is for another Python or platform: {PYTHON_TAG} is wanted, on this machine'
        )
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError):
        return f'MMCV_WHEEL={path}: this file is damaged: download it again'
    if not any(name.startswith('mmcv/_ext.') for name in names):
        return f'MMCV_WHEEL={path}: this wheel has no compiled operators (mmcv/_ext): take one of the full mmcv'
    return None


def find_operator_problem(wheel: Optional[Path] = None) -> Optional[str]:
    """Run two operators in a fresh process, of the wheel or of what is installed; return its last words, or None."""
    with tempfile.TemporaryDirectory() as folder:
        variables = dict(os.environ)
        if wheel:
            shutil.unpack_archive(str(wheel), folder, 'zip')
            variables['PYTHONPATH'] = folder
        done = subprocess.run([sys.executable, '-c', TRY], env=variables, cwd=folder, capture_output=True, text=True)
    if done.returncode == 0:
        return None
    return (done.stderr.strip().splitlines() or [f'it ended with {done.returncode}'])[-1]


def find_installed_problem(requirement: str) -> Optional[str]:
    """Say why the installed package cannot serve as `requirement`, or return None."""
    from importlib.metadata import PackageNotFoundError, version

    from packaging.requirements import Requirement

    wanted = Requirement(requirement)
    try:
        there = version(wanted.name)
    except PackageNotFoundError:
        return f'{wanted.name} is not installed'
    if there not in wanted.specifier:
        return f'{wanted.name} {there} is installed, and {wanted} is wanted'
    words = find_operator_problem()
    return words and f'the operators of {wanted.name} {there} do not run ({words})'


def find_try_problem(path: Path) -> Optional[str]:
    """Say why the operators of a wheel of the user do not run here, or return None."""
    words = find_operator_problem(path)
    return words and (
        f'MMCV_WHEEL={path}: its operators do not run with the torch in {sys.prefix} ({words}): '
        'take the wheel that was made for this torch, or leave MMCV_WHEEL out to compile one'
    )


def main(arguments: List[str]) -> None:
    if arguments[:1] == ['cxx']:  # as the build calls it, with the compiler's own arguments
        compile_one([arguments[1], *arguments[3:]], Path(arguments[2]))
    # Command -> what it runs, and the names of its arguments. What returns a text returns a problem.
    commands: Dict[str, Tuple[Callable, Tuple[str, ...]]] = {
        'key': (lambda: print(build_key()), ()),
        'tools': (find_missing_tool, ()),
        'build': (build, ('requirement', 'path')),
        'check': (find_wheel_problem, ('path', 'requirement')),
        'try': (find_try_problem, ('path',)),
        'installed': (find_installed_problem, ('requirement',)),
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    subparsers = parser.add_subparsers(dest='command', required=True)
    for command, (_, names) in commands.items():
        added = subparsers.add_parser(command)
        for name in names:
            added.add_argument(name, type=Path if name == 'path' else str)
    args = parser.parse_args(arguments)
    function, names = commands[args.command]
    problem = function(*(getattr(args, name) for name in names))
    if isinstance(problem, str):
        fail(problem)


if __name__ == '__main__':
    main(sys.argv[1:])
