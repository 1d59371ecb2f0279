"""Search the nested dicts and lists of a config."""
from typing import Iterator


def find_dicts(node, wanted) -> Iterator[dict]:
    """Yield the dicts below ``node`` for which ``wanted`` holds."""
    if isinstance(node, dict):
        if wanted(node):
            yield node
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for child in node:
            yield from find_dicts(child, wanted)
