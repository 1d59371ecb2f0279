"""Choose the kernel of an operator: the first of its list that takes the call, or the one that the user has pinned."""

import os
from collections import Counter
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple

from ..errors import UsageError
from .recorders import Call

# The kernels of each operator, the preferred one first. `plain` is the specification: it takes every call, and it is
# what exporters and tracers record.
PRIORITY = {
    'to_image': ('strided', 'plain'),
    'linear': ('convolution', 'plain'),
    'rotate': ('complex', 'plain'),
    'attend': ('masa', 'plain'),
    'attend_lines': ('float32', 'triton', 'plain'),  # what the plain `attend` asks for
    'attend_map': ('float32', 'flex', 'by_row', 'plain'),
    'dwconv': ('fused', 'plain'),
    'ffn': ('layers', 'plain'),
}
# Pins for the whole process: 'plain', or pairs such as 'attend=plain,ffn=plain'.
VARIABLE = 'RMT_MM_OPS'


# Takes a Call and the operator's arguments; returns a reason, or None.
Refusal = Callable[..., Optional[str]]


def never(call: Call, *args: Any) -> None:
    """Refuse no call."""


class Kernel(NamedTuple):
    """A function that computes an operator, why it cannot take a call, and why it should not unless it is pinned."""

    run: Callable[..., Any]
    cannot: Refusal
    should_not: Refusal


class Choice(NamedTuple):
    """What :func:`choose` returns: an operator, its kernel, and why each kernel before it did not take the call."""

    operator: str
    kernel: str
    reasons: Tuple[Tuple[str, str], ...]


_KERNELS: Dict[Tuple[str, str], Kernel] = {}
_PINNED: Dict[str, str] = {}  # operator -> kernel
_RECORDS: List['Counter[Choice]'] = []  # the open contexts of record()


def kernel(operator: str, name: str, cannot: Refusal = never, should_not: Refusal = never) -> Callable:
    """Register, as a decorator, a kernel of an operator under a name of :data:`PRIORITY`.

    Args:
        operator (str): a key of :data:`PRIORITY`.
        name (str): the kernel's name there.
        cannot (Callable): takes the :class:`Call` and the operator's arguments; returns the reason why the kernel
            cannot take them, or None. Default: it takes every call.
        should_not (Callable): the same for calls of which another kernel is better; a pinned kernel takes them.
    """

    def register(function: Callable) -> Callable:
        _KERNELS[operator, name] = Kernel(function, cannot, should_not)
        return function

    return register


def choose(operator: str, call: Call, *args: Any) -> Choice:
    """Return which kernel takes a call of an operator, and why those before it do not.

    Raises:
        UsageError: a pinned kernel does not take the call.
    """
    pinned = _PINNED.get(operator)
    reasons: Tuple[Tuple[str, str], ...] = ()
    for name in (pinned,) if pinned else PRIORITY[operator]:
        kernel = _KERNELS[operator, name]
        reason = kernel.cannot(call, *args)
        if reason is None and not pinned:
            reason = kernel.should_not(call, *args)
        if reason is None:
            return Choice(operator, name, reasons)
        reasons = (*reasons, (name, reason))
    raise UsageError(
        f'{operator}={pinned} is pinned (rmt_mm.ops.use or {VARIABLE}), but this kernel does not take the call: '
        f'{reasons[0][1]}.'
    )


def run(operator: str, call: Call, *args: Any) -> Any:
    """Compute an operator by the kernel that :func:`choose` names."""
    choice = choose(operator, call, *args)
    if not call.compiled:
        for counter in _RECORDS:
            counter[choice] += 1
    return _KERNELS[operator, choice.kernel].run(*args)


@contextmanager
def use(every: Optional[str] = None, **pins: str) -> Iterator[None]:
    """Pin kernels in the whole process: ``use(attend='plain')``, or ``use('plain')`` for all operators.

    Args:
        every (str, optional): the kernel for every operator that has one of this name. Default None.
        **pins (str): kernel by operator. ``attend`` stands for ``attend_lines`` and ``attend_map`` too, where they have
            a kernel of this name; a kernel of one of these pins the plain ``attend``, which asks for them.

    Raises:
        UsageError: no such operator or kernel; later, from the operator, if a pinned kernel does not take a call.
    """
    before = dict(_PINNED)
    _PINNED.update(resolve_pins(pins, every))
    try:
        yield
    finally:
        _PINNED.clear()
        _PINNED.update(before)


def resolve_pins(pins: Dict[str, str], every: Optional[str] = None) -> Dict[str, str]:
    """Return kernel by operator, given what :func:`use` takes."""
    resolved = {}
    for group, name in [*([('', every)] if every else []), *pins.items()]:
        operators = [operator for operator in PRIORITY if not group or group in (operator, operator.split('_')[0])]
        if not operators:
            raise UsageError(f'there is no operator {group!r}: choose from {", ".join(PRIORITY)}, or attend for both.')
        having = [operator for operator in operators if name in PRIORITY[operator]]
        if not having:
            kernels = sorted({kernel for operator in operators for kernel in PRIORITY[operator]})
            raise UsageError(f'{group or "no operator"} has no kernel {name!r}: choose from {", ".join(kernels)}.')
        resolved.update({operator: name for operator in having})
    if any(operator.startswith('attend_') for operator in resolved):
        whole = resolved.setdefault('attend', 'plain')
        if whole != 'plain':
            raise UsageError(f'attend={whole} computes lines and maps itself: pin it, or attend_lines and attend_map.')
    return resolved


def read_pins(text: str) -> Dict[str, str]:
    """Return kernel by operator, given the value of the environment variable RMT_MM_OPS."""
    pins, every = {}, None
    for part in filter(None, text.replace(' ', '').split(',')):
        group, equals, name = part.partition('=')
        if equals:
            pins[group] = name
        else:
            every = part
    try:
        return resolve_pins(pins, every)
    except UsageError as error:
        raise UsageError(f'the environment variable {VARIABLE}={text}: {error}') from None


@contextmanager
def record() -> Iterator['Counter[Choice]']:
    """Count each :class:`Choice` that :func:`run` makes inside the context, in all threads, but for compiled calls."""
    counter: Counter[Choice] = Counter()
    _RECORDS.append(counter)
    try:
        yield counter
    finally:
        _RECORDS[:] = [other for other in _RECORDS if other is not counter]


_PINNED.update(read_pins(os.environ.get(VARIABLE, '')))
