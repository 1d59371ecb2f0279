"""Work in a process of its own."""

import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from rmt_mm.tools.cli.isolation import run_isolated


def test_a_result(tmp_path):
    assert run_isolated(functools.partial(max, 1, 2), tmp_path / 'log', 60) == dict(result=2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    'work, failure',
    [
        (functools.partial(torch.empty, 2**50), 'out of memory'),
        (os.abort, 'ended by signal 6'),
        (functools.partial(int, 'x'), "ValueError: invalid literal for int() with base 10: 'x' (log)"),
        (functools.partial(os._exit, 0), 'it wrote nothing (log)'),
    ],
    ids=['memory', 'crash', 'error', 'exit'],
)
def test_a_failure(work, failure, tmp_path):
    assert run_isolated(work, tmp_path / 'log', 60) == dict(failure=failure)
    assert (tmp_path / 'log').exists()


def test_time_runs_out(tmp_path):
    start = time.monotonic()
    assert run_isolated(functools.partial(time.sleep, 60), tmp_path / 'log', 0.1) is None
    assert time.monotonic() - start < 50


def test_a_process_may_use_the_gpu(tmp_path):
    """torch refuses CUDA in a process that was forked after anything had asked whether there is a GPU."""
    assert run_isolated(torch.cuda._is_in_bad_fork, tmp_path / 'log', 60) == dict(result=False)


def is_running(pid):
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except FileNotFoundError:
        return False


def test_it_ends_with_a_caller_that_is_killed(tmp_path):
    pid_file = tmp_path / 'pid'
    work = f'import os, time; open({str(pid_file)!r}, "w").write(str(os.getpid()) + "."); time.sleep(3000)'
    code = (
        'import functools, pathlib\n'
        'from rmt_mm.tools.cli.isolation import run_isolated\n'
        f'run_isolated(functools.partial(exec, {work!r}), pathlib.Path({str(tmp_path / "log")!r}), 3000)'
    )
    caller = subprocess.Popen([sys.executable, '-c', code])
    # No limit but pytest's, which ends a test that hangs: a loaded machine takes minutes to start a process.
    while not (pid_file.exists() and pid_file.read_text().endswith('.')):
        assert caller.poll() is None, 'the caller ended before its child began'
        time.sleep(0.1)
    pid = int(pid_file.read_text()[:-1])
    caller.send_signal(signal.SIGKILL)
    caller.wait()
    while is_running(pid):
        time.sleep(0.1)
