"""Build the C++ operators of rmt_mm/ops/csrc, and find and load what was built.

    python -m rmt_mm.build_ops

It needs a C++ compiler: $CXX, else g++, c++ or clang++. The library is kept in $RMT_MM_CACHE/ops (default
~/.cache/rmt-mm/ops), in a folder named after torch, the machine and a digest of the sources: another torch or another
version of the sources never loads it. It holds code for several processors of one kind (AVX2, AVX-512 with and without
its bfloat16, any other) and chooses at run time, so a cache may be shared between machines. $CXXFLAGS is added to the
compiler's flags.
"""

import contextlib
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Dict, List, Optional, Tuple

import torch

BUILD_COMMAND = 'python -m rmt_mm.build_ops'
NOT_BUILT = f'the kernel is not built: `{BUILD_COMMAND}` builds it'
SOURCES = Path(__file__).parent / 'csrc'
# What every source is compiled with. Not -ffast-math: NaN and infinity must propagate.
FLAGS = ('-O3', '-fPIC', '-fvisibility=hidden', '-fno-math-errno', '-fno-trapping-math', '-ffp-contract=fast', '-w')
OPERATORS = ('masa', 'dwconv')  # X.cpp holds an operator, and X_kernel.cpp its arithmetic
# The arithmetic is compiled once for each instruction set: lanes of a vector, and vectors that are summed in registers
# at a time, beside the operands.
BASE = ('-DRMT_LANES=4', '-DRMT_SUMS=12')  # 16 registers of 16 bytes (x86), or 32 (arm64)
AVX512 = (
    *('-DRMT_LANES=16', '-DRMT_SUMS=24', '-mavx512f', '-mavx512bw', '-mavx512vl', '-mavx512dq', '-mfma'),
    '-mprefer-vector-width=512',
)
X86 = {
    'avx2': ('-DRMT_LANES=8', '-DRMT_SUMS=12', '-mavx2', '-mfma'),
    'avx512': AVX512,
    'avx512_bf16': (*AVX512, '-DRMT_PAIRS', '-mavx512bf16'),  # for tensors of bfloat16 alone
}

_lock = threading.Lock()
_loaded = False


class BuildError(RuntimeError):
    """Says in one sentence why the operators could not be built."""


def is_x86() -> bool:
    return platform.machine().lower() in ('x86_64', 'amd64')


def instruction_sets() -> Dict[str, Tuple[str, ...]]:
    """Return the flags of every instruction set of this kind of machine."""
    return {'base': BASE, **(X86 if is_x86() else {})}


@functools.lru_cache(1)  # where the library is not built, every call of an operator looks for it
def library_name() -> str:
    """Return the name of the folder for the library of this torch and these sources."""
    digest = hashlib.sha256(repr((FLAGS, instruction_sets())).encode())
    for source in sorted(SOURCES.iterdir()):
        if source.suffix in ('.cpp', '.h'):
            digest.update(source.read_bytes())
    abi = '' if torch.compiled_with_cxx11_abi() else '-oldabi'
    return f'torch{torch.__version__}{abi}-{sys.platform}-{platform.machine()}-{digest.hexdigest()[:12]}'


def library_path() -> Path:
    """Return where the library of this torch and these sources is, or would be."""
    default = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'rmt-mm'
    cache = Path(os.environ.get('RMT_MM_CACHE') or default).expanduser()
    return cache / 'ops' / library_name() / 'rmt_mm_ops.so'


def find_library() -> Optional[Path]:
    """Return the path of the library if it is built."""
    path = library_path()
    return path if path.is_file() else None


def is_loaded() -> bool:
    """Load the library if it is built, once in a process; tell whether it is loaded."""
    global _loaded
    if not _loaded:
        with _lock:
            path = None if _loaded else find_library()
            if path is not None:
                torch.ops.load_library(str(path))
                _loaded = True
    return _loaded


# torch.compile cannot trace what loads a library: it calls this function and takes the answer for a constant. The
# decorator for it, torch.compiler.assume_constant_result, sets this attribute, but imports all of torch's compiler.
is_loaded._dynamo_marked_constant = True  # type: ignore[attr-defined]


def operator(name: str) -> torch._ops.OpOverload:
    """Return an operator of the library.

    Raises:
        RuntimeError: the library is not built.
    """
    if not is_loaded():
        raise RuntimeError(NOT_BUILT)
    return getattr(torch.ops.rmt_mm, name).default


def find_compiler() -> List[str]:
    """Return the command of the C++ compiler.

    Raises:
        BuildError: there is none.
    """
    given = os.environ.get('CXX')
    for command in [given] if given else ['g++', 'c++', 'clang++']:
        words = shlex.split(command)
        if words and shutil.which(words[0]):
            return words
    if given:
        raise BuildError(f'CXX={given}: there is no such program')
    raise BuildError('there is no C++ compiler: install one (Debian, Ubuntu: apt install g++; conda: gxx)')


def torch_flags() -> Tuple[List[str], List[str]]:
    """Return flags that compile and flags that link against the installed torch."""
    from torch.utils import cpp_extension

    version = tuple(int(number) for number in torch.__version__.split('.')[:2])
    compiling = [f'-isystem{path}' for path in cpp_extension.include_paths()]
    compiling += [f'-std=c++{20 if version >= (2, 10) else 17}']
    compiling += [f'-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}']
    linking = [f'-L{path}' for path in cpp_extension.library_paths()]
    return compiling, [*linking, '-ltorch_cpu', '-lc10']


def compile_all(folder: Path) -> Path:
    """Compile and link in `folder`.

    Returns:
        Path: the library.

    Raises:
        BuildError: a compiler's error; its words are in `folder`/log.
    """
    compiler = [*find_compiler(), *FLAGS, *shlex.split(os.environ.get('CXXFLAGS', ''))]
    compiling, linking = torch_flags()
    flags = [*compiling, *(['-DRMT_X86'] if is_x86() else []), '-O1']  # slow to compile, and no arithmetic
    jobs = [(f'{name}.o', f'{name}.cpp', flags) for name in OPERATORS]
    for isa, of_isa in reversed(instruction_sets().items()):  # the slowest first
        flags = ['-std=c++17', f'-DRMT_ISA={isa}', *of_isa]
        jobs += [(f'{name}-{isa}.o', f'{name}_kernel.cpp', flags) for name in OPERATORS]

    def run(command: List[str]) -> str:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder)
        return f'{shlex.join(command)}\n{done.stdout}' if done.returncode else ''

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        errors = list(pool.map(lambda job: run([*compiler, *job[2], '-c', str(SOURCES / job[1]), '-o', job[0]]), jobs))
    if not any(errors):
        errors = [run([*compiler, '-shared', *(job[0] for job in jobs), '-o', 'library.so', *linking])]
    if any(errors):
        (folder / 'log').write_text('\n'.join(errors))
        raise BuildError('the C++ compiler failed')
    return folder / 'library.so'


def build() -> Path:
    """Build the library, unless it is there.

    Returns:
        Path: the library.

    Raises:
        BuildError: there is no compiler, or it fails.
        OSError: the cache cannot be written.
    """
    path = library_path()
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    # Two processes may build at once: each in a folder of its own, and the last one's library stays.
    with tempfile.TemporaryDirectory(dir=path.parent) as name:
        folder = Path(name)
        try:
            os.replace(compile_all(folder), path)
        except BuildError as error:
            with contextlib.suppress(FileNotFoundError):
                os.replace(folder / 'log', path.parent / 'log')
                raise BuildError(f'{error}: see {path.parent / "log"}') from None
            raise
    return path


def main() -> None:
    began = time.monotonic()
    try:
        path = find_library()
        if path is None:
            print('rmt-mm: compiling the C++ operators, a minute or two ...', flush=True)
            path = build()
    except (BuildError, OSError) as error:
        sys.exit(f'rmt-mm: the C++ operators were not built: {error}')
    seconds = time.monotonic() - began
    print(f'rmt-mm: the C++ operators are in {path}' + (f' ({seconds:.0f} s)' if seconds > 1 else ''))
