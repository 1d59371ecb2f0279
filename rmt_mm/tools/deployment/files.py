"""Write files whole or not at all, and name the extra that brings a runtime."""

import contextlib
import importlib
import os.path as osp
from typing import Any, Iterator

from ...atomic import replacing
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
    """Yield a path to write to, as :func:`rmt_mm.atomic.replacing` does.

    Raises:
        UsageError: the folder of ``path`` does not exist or cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            temporary = stack.enter_context(replacing(path))
        except OSError as error:
            raise UsageError(f'{path} cannot be written: {error.strerror}.') from error
        yield temporary


def check_target(path: str, force: bool) -> None:
    """Raise UsageError if ``path`` is a folder, or exists and must not be replaced."""
    if osp.isdir(path):
        raise UsageError(f'{path} is a folder: name a file.')
    if osp.exists(path) and not force:
        raise UsageError(f'{path} exists already: name another file with --out, or replace it with --force.')
