"""What the tests of the kernels in C++ share."""

import os
import subprocess
import sys

import pytest
import torch

from rmt_mm.ops import build

from support import ROOT

ERRORS = {torch.float32: (1e-6, 1e-5), torch.bfloat16: (4e-3, 1e-2)}  # of values, of gradients
FOLDERS = [str(ROOT / 'tests/ops'), str(ROOT / 'tests')]  # of the tests, and of this package


def error(found, expected):
    found, expected = found.detach().double(), expected.detach()
    return float((found - expected).norm() / expected.norm().clamp_min(1e-12))


def run_cases(code, silent=False, **environment):
    """Run code in another process, which can import the tests; `silent`: it must print nothing."""
    path = os.pathsep.join([*FOLDERS, str(ROOT)])
    env = {**os.environ, 'PYTHONPATH': path, 'OMP_NUM_THREADS': '1', **environment}
    done = subprocess.run([sys.executable, '-c', code], env=env, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert not (silent and done.stdout + done.stderr), done.stdout + done.stderr


def run_wide_cases(code, cache):
    """Run code with the kernels for 16 lanes compiled for AVX2, which every x86 machine of today can run."""
    if not build.is_x86():
        pytest.skip('the flags are those of x86')
    wide = """
from rmt_mm.ops import build
build.X86['avx2'] = (*build.X86['avx512'][:2], '-mavx2', '-mfma')
build.build()
"""
    run_cases(wide + code, RMT_MM_CACHE=str(cache), ATEN_CPU_CAPABILITY='avx2')
