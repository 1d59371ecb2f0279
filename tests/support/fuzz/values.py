"""Change bytes and nested values at random, by a generator with a seed."""

import copy
import random
from typing import Any, Iterator, List, Tuple


def nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


# Values that no reader expects, or that another program writes.
ODD = (
    *(None, True, False, -1, 0, 1, 5, 2**31, 2**63, 10**400, -0.5, 1e30, float('nan'), float('inf'), -float('inf')),
    *('', 'x', '0', '\ud800', '\x1b[2J\x07', '\0', '</script><b>', '../../etc', '\u202e', 'x' * 10**5, '9' * 5000),
    *([], {}, (), [1], [[]], {'a': 1}, {'': None}, ['x', None], [0.5] * 4, nested(90), b'\xff'),
)


def damage(data: bytes, generator: random.Random) -> bytes:
    """Return bytes with a few bits, bytes or ranges changed, left out, repeated or put in."""
    changed = bytearray(data)
    for _ in range(generator.choice((1, 1, 2, 8))):
        changed = changed or bytearray(b'x')
        place = generator.randrange(len(changed))
        length = generator.choice((1, 4, 100))
        how = generator.randrange(6)
        if how == 0:
            changed[place] = generator.randrange(256)
        elif how == 1:
            changed[place] ^= 1 << generator.randrange(8)
        elif how == 2:
            del changed[place : place + length]
        elif how == 3:
            changed[place:place] = generator.randbytes(length)
        elif how == 4:
            changed[place : place + 4] = generator.choice((b'\0\0\0\0', b'\xff\xff\xff\xff', b'\x7f\xff\xff\xff'))
        else:
            changed[place:place] = changed[place : place + length]
    return bytes(changed)


def cut(data: bytes, twentieths: int) -> bytes:
    return data[: len(data) * twentieths // 20]


def places(value: Any) -> Iterator[Tuple[Any, Any]]:
    """Yield container and key of all values in nested dicts and lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in list(items):
        yield value, key
        yield from places(child)


def changed(value: Any, generator: random.Random, odd: Tuple[Any, ...] = ODD) -> Any:
    """Return a copy of nested dicts and lists in which one to three values are odd, gone, doubled or exchanged."""
    value = copy.deepcopy(value)
    for _ in range(generator.choice((1, 1, 1, 2, 3))):
        found: List[Tuple[Any, Any]] = list(places(value))
        if not found:
            return generator.choice(odd)
        container, key = generator.choice(found)
        how = generator.randrange(8)
        if how == 0:
            del container[key]
        elif how == 1:
            other, name = generator.choice(found)
            if name in other if isinstance(other, dict) else name < len(other):
                container[key] = copy.deepcopy(other[name])
        elif how == 2 and isinstance(container, list):
            container.append(copy.deepcopy(container[key]))
        elif how == 2:
            container[f'{key}x'] = container.pop(key)
        else:
            container[key] = copy.deepcopy(generator.choice(odd))
    return value
