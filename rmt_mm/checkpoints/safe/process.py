"""Which types and functions ``torch.load(weights_only=True)`` may use: for one file, or in the whole process."""

import contextlib
import os
import pickle
import tarfile
import threading
import types
from typing import Any, Callable, Iterator, Sequence

import torch
from mmengine.runner import checkpoint

from .types import STAND_INS
from .unpickler import Unpickler, safe_globals, set_safe_globals

_LIST_IN_USE = threading.Lock()  # torch has one list for all threads


@contextlib.contextmanager
def allowing_only(entries: Sequence[Callable]) -> Iterator[None]:
    """Put just these on torch's list for a while, with a reader that obeys it."""
    with _LIST_IN_USE:
        before, reader = safe_globals(), torch._weights_only_unpickler.Unpickler
        set_safe_globals(entries)
        _obey_list()
        try:
            yield
        finally:
            set_safe_globals(before)
            torch._weights_only_unpickler.Unpickler = reader  # type: ignore[misc]


def allow_mmengine_checkpoints() -> None:
    """Let ``torch.load(weights_only=True)`` read the files that mmengine itself writes.

    mmengine keeps its message hub in a checkpoint: HistoryBuffers, NumPy arrays and scalars. mmengine 0.10.7 loads with
    torch's default, which since torch 2.6 refuses those types, and so refuses to resume its own files. They are allowed
    here, as the stand-ins of :mod:`rmt_mm.checkpoints.safe.types`; nothing else of the safety is switched off.

    onedl-mmengine allows the types itself, while it loads. The stand-ins are not added there: torch's list is a set, so
    which of two entries of one name counts is chance, and a type does not work with a stand-in.
    """
    if not hasattr(checkpoint, 'get_torch_safe_globals'):
        set_safe_globals([*safe_globals(), *STAND_INS])


def force_safe_loading() -> None:
    """Make every ``torch.load`` of this process, and of those it starts, refuse to execute what a file holds.

    mmengine 0.10.7 leaves ``weights_only`` to torch, whose default is False before torch 2.6. onedl-mmengine falls back
    to False when safe loading fails. torch.hub (checkpoints from the web) passes False. torch's own switch, which this
    function sets, overrides them all. It also replaces functions of torch before 2.6, and onedl-mmengine's list of
    allowed types. Call it in programs, not in libraries: it changes the whole process.
    """
    os.environ.pop('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', None)  # torch accepts one of the two only
    os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] = '1'
    set_safe_globals([*safe_globals(), *STAND_INS])
    if hasattr(checkpoint, 'get_torch_safe_globals'):
        # Emptied rather than filled with the stand-ins: the end of its load takes what is on it off torch's list.
        checkpoint.get_torch_safe_globals = list
    _obey_list()
    _refuse_programs()


def _obey_list() -> None:
    """Make ``torch.load(weights_only=True)`` obey the list, on a torch that does not."""
    if not hasattr(torch.serialization, 'safe_globals'):  # torch < 2.5
        torch._weights_only_unpickler.Unpickler = Unpickler  # type: ignore[misc, assignment]


def _refuse_programs() -> None:
    """Make every ``torch.load`` of this process refuse TorchScript programs and tar files.

    Before torch 2.6, the readers of these formats can be made to run programs, with ``weights_only`` too
    (CVE-2025-32434).
    """
    if torch.__version__ < (2, 6):  # type: ignore[operator]  # a TorchVersion
        torch.serialization._is_torchscript_zip = _refuse_torchscript  # type: ignore[attr-defined]
        torch.serialization.tarfile = types.SimpleNamespace(  # type: ignore[attr-defined, assignment]
            open=_open_no_tar, TarError=tarfile.TarError, PAX_FORMAT=tarfile.PAX_FORMAT
        )


def _refuse_torchscript(archive: Any) -> bool:
    if 'constants.pkl' in archive.get_all_records():
        raise pickle.UnpicklingError('the file holds a TorchScript program')
    return False


def _open_no_tar(**_: Any) -> None:
    raise tarfile.TarError  # torch then tries its later formats, and finds none of them
