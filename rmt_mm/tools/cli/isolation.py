"""Call a function in a process of its own: the caller survives its crash, and its lack of memory."""

import multiprocessing
import os
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Callable, Optional

# A child forks from a process that has imported torch, and so starts in a fraction of a second. That process must not
# import mmengine, which asks torch whether there is a GPU: no child could use the GPU afterwards.
_PROCESSES = multiprocessing.get_context('forkserver')
_PROCESSES.set_forkserver_preload(['torch', 'torch.distributed.optim'])


def run_isolated(work: Callable[[], object], log: Path, seconds: float) -> Optional[dict]:
    """Call ``work`` in a process of its own, which ends with this one even if this one is killed.

    Args:
        work (callable): takes no arguments; it and its result can be pickled.
        log (Path): where the process writes its output; removed unless it fails.
        seconds (float): after which the process is killed.

    Returns:
        dict | None: ``result``, or ``failure``: a line that says why there is none. None if time ran out.
    """
    receiver, sender = _PROCESSES.Pipe(duplex=False)
    process = _PROCESSES.Process(target=_run, args=(work, sender, log))
    process.start()
    sender.close()
    try:
        outcome = dict(result=receiver.recv()) if receiver.poll(max(seconds, 0)) else None
    except EOFError:  # it has ended without a result
        process.join()
        return dict(failure=_reason(process.exitcode, log))
    finally:
        process.kill()
        process.join()
    log.unlink(missing_ok=True)
    return outcome


def _run(work: Callable[[], object], sender: Connection, log: Path) -> None:
    with open(log, 'w') as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sender.send(work())


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _reason(exitcode: Optional[int], log: Path) -> str:
    text = log.read_text(errors='replace') if log.exists() else ''
    if 'OutOfMemoryError' in text or "can't allocate memory" in text:
        return 'out of memory'
    if exitcode is not None and exitcode < 0:
        return f'ended by signal {-exitcode}'
    return f'{(text.strip().splitlines() or ["it wrote nothing"])[-1][:200]} ({log.name})'
