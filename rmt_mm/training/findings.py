"""What a check finds, and the edge at which an error of a check is raised.

A check is a generator of findings. Whoever runs it stops at the first error, by :func:`collect` or :func:`report`, so
the code behind the ``yield`` of an error may rely on what was checked.
"""

import logging
from typing import Callable, Iterable, List, NamedTuple, Type

from mmengine.logging import print_log

from ..errors import DataError, RMTError, printable, shorten


class Finding(NamedTuple):
    """A sentence on what a check found, and how grave it is."""

    text: str
    level: int = logging.ERROR  # WARNING or INFO: it may be intended

    def __str__(self) -> str:
        return self.text


def log(finding: Finding) -> None:
    """Write a finding to mmengine's current logger."""
    print_log(shorten(printable(finding.text)), 'current', finding.level)


def collect(check: Iterable[Finding]) -> List[Finding]:
    """Return the findings of a check up to its first error."""
    found = []
    for finding in check:
        found.append(finding)
        if finding.level >= logging.ERROR:
            break
    return found


def report(check: Iterable[Finding], kind: Type[RMTError] = DataError, tell: Callable[[Finding], None] = log) -> None:
    """Pass the findings of a check to ``tell`` in their order, and raise the first error as a ``kind``."""
    for finding in check:
        if finding.level >= logging.ERROR:
            raise kind(finding.text)
        tell(finding)
