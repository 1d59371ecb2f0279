"""Freed memory is reused in programs that ask for it, and nothing is changed in others."""

import platform
import subprocess
import sys

import pytest

from rmt_mm.ops import memory
from rmt_mm.ops.memory import keep_freed_memory

from support.scripts import run_script

COUNT_FAULTS = """
import resource, runpy, sys, torch
torch.set_num_threads(1)
kept = sys.argv[1] == 'keep' and runpy.run_path(sys.argv[2])['keep_freed_memory']()
faults = []  # the allocator needs some rounds until a freed block is large enough for the next, with its alignment
for _ in range(20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(2**24).add_(1)  # 64 MiB
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(kept, sorted(faults[10:])[5])
"""


def run(choice):
    done = subprocess.run(
        [sys.executable, '-c', COUNT_FAULTS, choice, memory.__file__],
        capture_output=True,
        text=True,
        env={'PATH': ''},
        check=True,
    )
    kept, faults = done.stdout.split()
    return kept == 'True', int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='the allocator is not that of glibc')
def test_large_tensors_reuse_memory():
    kept, faults = run('keep')
    assert kept and faults < 100
    kept, faults_without = run('leave')
    # Huge pages of 2 MiB would make few faults.
    assert not kept and faults_without >= 2**26 / 2**21 > faults


def test_building_a_backbone_changes_nothing_of_the_process(tmp_path):
    """Settings of malloc are for programs to choose: only documented calls change them."""
    (tmp_path / 'script.py').write_text("""
import ctypes
from rmt_mm import RMT
calls = []
real = ctypes.CDLL
ctypes.CDLL = lambda *args, **kwargs: calls.append(args) or real(*args, **kwargs)
RMT('tiny').eval()
print(calls)
""")
    done = run_script(tmp_path / 'script.py')
    assert done.stdout.strip() == '[]'


def test_the_users_settings_stay(monkeypatch):
    monkeypatch.setenv('MALLOC_TOP_PAD_', '0')
    assert not keep_freed_memory()
