"""What the tests of the kernels in C++ share."""

import os
import subprocess
import sys

from support import ROOT

FOLDERS = [str(ROOT / 'tests/ops'), str(ROOT / 'tests')]  # of the tests, and of this package


def error(found, expected):
    found, expected = found.detach().double(), expected.detach()
    return float((found - expected).norm() / expected.norm().clamp_min(1e-12))


def run_cases(code, **environment):
    """Run code in another process, which can import the tests."""
    path = os.pathsep.join([*FOLDERS, str(ROOT)])
    env = {**os.environ, 'PYTHONPATH': path, 'OMP_NUM_THREADS': '1', **environment}
    done = subprocess.run([sys.executable, '-c', code], env=env, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
