"""Search the nested dicts and lists of a config."""

from typing import Any, Iterator, Tuple


def find_dicts(node, wanted) -> Iterator[dict]:
    """Yield the dicts below ``node`` for which ``wanted`` holds."""
    if isinstance(node, dict):
        if wanted(node):
            yield node
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for child in node:
            yield from find_dicts(child, wanted)


def walk(node, path: str = '') -> Iterator[Tuple[str, str, Any]]:
    """Yield ``(path, key, value)`` of everything below ``node``, paths written as ``--cfg-options`` takes them."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, (list, tuple)) else ()
    for key, value in items:
        where = f'{path}.{key}' if path else str(key)
        yield where, str(key), value
        yield from walk(value, where)
