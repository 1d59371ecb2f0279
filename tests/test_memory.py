"""Freed memory is reused: blocks of up to 32 MiB once a backbone is built, larger ones in the tools."""

import platform
import subprocess
import sys

import pytest

from rmt_mm import RMT
from rmt_mm.ops import memory
from rmt_mm.ops.memory import keep_freed_memory
from rmt_mm.backbone import rmt

from support.archs import SMALL_ARCH

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


COUNT_MAPPED_BLOCKS = """
import ctypes, runpy, sys
class MallInfo(ctypes.Structure):  # mallinfo(3)
    names = 'arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost'
    _fields_ = [(name, ctypes.c_int) for name in names.split()]
libc = ctypes.CDLL(None)
libc.mallinfo.restype, libc.malloc.restype, libc.malloc.argtypes = MallInfo, ctypes.c_void_p, [ctypes.c_size_t]
def is_mapped(size=2**25 - 2**17):
    before = libc.mallinfo().hblks
    libc.malloc(size)
    return libc.mallinfo().hblks - before
before = is_mapped()
runpy.run_path(sys.argv[1])['raise_dynamic_threshold']()
print(before, is_mapped())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='the allocator is not that of glibc')
def test_blocks_of_up_to_32_mib_are_no_longer_mapped():
    def mapped_before_and_after(**env):
        command = [sys.executable, '-c', COUNT_MAPPED_BLOCKS, memory.__file__]
        return subprocess.run(command, capture_output=True, text=True, env=env, check=True).stdout.split()

    assert mapped_before_and_after() == ['1', '0']
    assert mapped_before_and_after(MALLOC_MMAP_THRESHOLD_=str(2**17)) == ['1', '1']  # the user's setting stays


def test_building_a_backbone_raises_the_threshold(monkeypatch):
    calls = []
    monkeypatch.setattr(rmt, 'raise_dynamic_threshold', lambda: calls.append(1))
    RMT(SMALL_ARCH)
    assert calls == [1]


def test_the_users_settings_stay(monkeypatch):
    monkeypatch.setenv('MALLOC_TOP_PAD_', '0')
    assert not keep_freed_memory()
