"""Run a case in a fork of this process, under limits, and say how it ended."""

import faulthandler
import json
import os
import resource
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Callable, NamedTuple

from rmt_mm.errors import RMTError

SECONDS = 60
MEMORY = 4 * 2**30
# Beyond MEMORY, so that a peak is measured rather than refused, and this machine survives.
MEMORY_LIMIT = 6 * 2**30
GOOD = ('success', 'sentence')
# A reader that starts a program runs what a file chooses; PostScript is handed to Ghostscript so.
PROGRAMS = ('subprocess.Popen', 'os.system', 'os.exec', 'os.posix_spawn', 'pty.spawn')
CANARY = 'canary'  # the file in the folder of a case that executed code creates
# What is said of memory that could not be had: on a larger machine it would have been taken.
NO_MEMORY = ('MemoryError', "can't allocate memory", 'Unable to allocate', 'bad_alloc', 'Insufficient memory')


class WrongResult(Exception):
    """A reader succeeded with other values than the file holds."""


class Verdict(NamedTuple):
    """How a case ended: 'success', 'sentence', or a fault; and the sentence, the traceback or the reason."""

    kind: str
    text: str


def judge(case: Callable[[], None], folder: Path) -> Verdict:
    """Call ``case`` in a fork, with ``folder`` as its current folder; its output goes to a file there."""
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receiver)
        verdict = _run(case, folder)
        os.write(sender, json.dumps(verdict).encode()[:60000])
        os._exit(0)
    os.close(sender)
    deadline = time.monotonic() + SECONDS
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            os.close(receiver)
            return Verdict('hang', _output(folder)[-3000:])
        time.sleep(0.002)
    with open(receiver, 'rb') as file:
        text = file.read()
    if os.WIFSIGNALED(status) or not text:
        return Verdict('signal', f'{os.WTERMSIG(status)}: {_output(folder)[-2000:]}')
    verdict = Verdict(*json.loads(text))
    if (folder / CANARY).exists():
        return Verdict('executed', verdict.text)
    return verdict


def _run(case: Callable[[], None], folder: Path) -> Verdict:
    """Run in the fork."""
    with open(folder / 'output', 'w') as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    faulthandler.enable()
    faulthandler.dump_traceback_later(SECONDS - 1, exit=False)
    os.chdir(folder)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    size = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY_LIMIT, size + MEMORY_LIMIT))
    started = []
    sys.addaudithook(lambda event, args: started.append(f'{event} {args[:2]!r}') if event in PROGRAMS else None)
    verdict = _outcome(case)
    sys.stdout.flush()
    sys.stderr.flush()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    if started:
        return Verdict('executed', started[0])
    if peak > MEMORY:
        return Verdict('memory', f'{peak / 2**30:.1f} GiB: {verdict.text}')
    if any(word in verdict.text for word in NO_MEMORY):
        return Verdict('memory', verdict.text)
    return verdict


def _outcome(case: Callable[[], None]) -> Verdict:
    try:
        case()
    except WrongResult as error:
        return Verdict('wrong result', str(error))
    except RMTError as error:
        return _sentence(str(error))
    except SystemExit as error:
        if error.code in (None, 0):
            return Verdict('success', '')
        return _sentence(str(error.code))
    except BaseException:  # to report any
        return Verdict('traceback', traceback.format_exc()[-6000:])
    return Verdict('success', '')


def _sentence(text: str) -> Verdict:
    good = len(text.splitlines()) == 1 and text.isprintable() and len(text) < 5000 and 'Traceback' not in text
    return Verdict('sentence' if good else 'no sentence', text[:5000])


def _output(folder: Path) -> str:
    return (folder / 'output').read_text(errors='replace').split('Extension modules:')[0]  # of faulthandler
