"""The errors of this package: each message states in one sentence what was wrong and what to do."""

import contextlib
from typing import Iterator, Type

# What code of others raises for what it is given: the classes of a config while they are built, a config file, a model
# that is run on an image, a package at import. None of these documents its errors, and a misspelt argument, an odd
# size or a broken file can raise nearly every class. Left out are errors that no input causes, such as SystemError.
# Where the errors are known, name them instead.
FOREIGN_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    NameError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)


LONGEST = 4000  # characters of a message


def printable(text: object, limit: int = 0) -> str:
    """Return ``text`` for a terminal, with unprintable characters escaped, such as ``\\x1b`` and ``\\u202e``.

    Use it for names from a file or a command line, which may hold control characters and marks that reverse the line.

    Args:
        text (object): converted by ``str``.
        limit (int): maximum of characters to show; the number of the others is added. Default 0, which shows all.
    """
    text = str(text)
    more = len(text) - limit if limit else 0
    if more > 0:
        text = text[:limit]
    text = ''.join(c if c.isprintable() else c.encode('unicode_escape').decode('ascii') for c in text)
    return f'{text}... ({more} characters more)' if more > 0 else text


def shorten(text: str) -> str:
    """Return a message, without its middle if it is very long: a file may hold names of any length."""
    more = len(text) - LONGEST
    return text if more <= 0 else f'{text[: LONGEST // 2]}... ({more} characters) ...{text[-LONGEST // 2 :]}'


class RMTError(Exception):
    """A mistake that the user can correct. The command-line tools print its text as one sentence, without a traceback.

    Args:
        text (str): what was wrong, and what to do. Unprintable characters are escaped, line breaks are not. A text of
            more than ``LONGEST`` characters loses its middle.
        remedy (str): a key of ``rmt_mm.tools.cli.options.REMEDIES``, such as ``'convert'``, for the text that the tools
            add; the library names neither their paths nor their flags. Default ``''``: the tools add nothing.
        **facts: values that fill the remedy's text, such as ``channels=4``.
    """

    def __init__(self, text: str, remedy: str = '', **facts: object) -> None:
        # A DataLoader raises an error of its workers again, with a traceback in front of the text.
        text = str(text).rsplit(f'{type(self).__name__}: ', 1)[-1].strip()
        super().__init__(shorten('\n'.join(map(printable, text.split('\n')))))
        self.remedy = remedy
        self.facts = facts

    def at(self, place: str) -> 'RMTError':
        """Return the same error with ``place``, such as a file's name, in front of its text."""
        return type(self)(f'{place}: {self}', self.remedy, **self.facts)


def in_one_line(error: BaseException) -> str:
    """Return the class and the text of an error that is not ours, without line breaks."""
    return ' '.join(f'{type(error).__name__}: {error}'.split()).rstrip(':')


@contextlib.contextmanager
def as_sentence(kind: Type[RMTError], text: str, *more: Type[Exception]) -> Iterator[None]:
    """Raise ``kind`` for what code of others raises in the block: ``text``, a colon, and the error in one line.

    Our own errors pass unchanged. ``more`` are further classes that this code raises.
    """
    try:
        yield
    except RMTError:
        raise
    except (*FOREIGN_ERRORS, *more) as error:  # type: ignore[misc]  # mypy does not support starred handlers
        raise kind(f'{text}: {in_one_line(error)}') from error


class UsageError(RMTError):
    """A command line or config that cannot be run."""


class DataError(RMTError, ValueError):
    """A data set or annotation file that cannot be used with the config."""


class CheckpointError(RMTError, ValueError):
    """A checkpoint that cannot be used."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint file that is not whole, or none at all."""


class DivergenceError(RMTError):
    """A training whose loss or weights are no longer finite."""


class MissingCheckpointError(CheckpointError, FileNotFoundError):
    """A checkpoint file that does not exist."""


class TokenLabelError(RMTError, ValueError):
    """Label maps that cannot be used, or a wrong use of token labels."""
