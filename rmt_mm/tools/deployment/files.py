"""Write files whole or not at all, and name the extra that brings a runtime."""

import contextlib
import importlib
import os
import os.path as osp
import shutil
import tempfile
from typing import Any, Iterator

from ...errors import UsageError


def require(module: str) -> Any:
    """Import an optional package.

    Raises:
        UsageError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(f'{module} cannot be imported ({error}): pip install "rmt-mm[deploy]" installs it.') from error


@contextlib.contextmanager
def replace_file(path: str) -> Iterator[str]:
    """Yield a name in a new folder beside ``path``; at the end of the block, move every file there to its place.

    After an error, and after an interruption, the folder is deleted, and a file of an earlier export stays as it was.

    Raises:
        UsageError: the folder of ``path`` does not exist or cannot be written.
    """
    folder = osp.dirname(path) or '.'
    try:
        temporary = tempfile.mkdtemp(prefix='.export-', dir=folder)
    except OSError as error:
        raise UsageError(f'{path} cannot be written: {error.strerror}.') from error
    try:
        yield osp.join(temporary, osp.basename(path))
        for name in os.listdir(temporary):
            os.replace(osp.join(temporary, name), osp.join(folder, name))
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_target(path: str, force: bool) -> None:
    """Raise UsageError if ``path`` is a folder, or exists and must not be replaced."""
    if osp.isdir(path):
        raise UsageError(f'{path} is a folder: name a file.')
    if osp.exists(path) and not force:
        raise UsageError(f'{path} exists already: name another file with --out, or replace it with --force.')
