"""The configs of docs/swap_backbone.md: each code block, and the libraries' configs listed after it."""

import importlib
import re
from pathlib import Path
from typing import List, NamedTuple

from . import ROOT

PAGE = ROOT / 'docs/swap_backbone.md'


class Swap(NamedTuple):
    """A code block of the page, without its `_base_`."""

    lines: str
    configs: List[str]  # such as 'mmdet/atss/atss_r50_fpn_1x_coco.py', the block's own `_base_` first


def documented_swaps() -> List[Swap]:
    """Read the page; a block's configs are those in backticks between it and the next block or heading."""
    swaps = []
    pattern = r"^```python\n_base_ = '([^'\n]*)'\n(.*?)^```$(.*?)(?=^```|^#|\Z)"
    for base, lines, after in re.findall(pattern, PAGE.read_text(), re.MULTILINE | re.DOTALL):
        tried = re.findall(r'`(mm\w+/[^`]+\.py)`', after)
        assert tried and tried[0] == base, f'{PAGE}: the block on {base} must be followed by "Tried: `{base}`"'
        swaps.append(Swap(lines, tried))
    return swaps


def swap_of(config: str) -> Swap:
    """Return the block that was tried on a config."""
    (swap,) = (swap for swap in documented_swaps() if config in swap.configs)
    return swap


def library_config(config: str) -> Path:
    """Return the path of a config of an installed library."""
    package, path = config.split('/', 1)
    return Path(importlib.import_module(package).__path__[0], '.mim/configs', path)


def write_user_config(config: str, folder: Path) -> Path:
    """Write a user's config: the block's lines over a library's config."""
    path = folder / Path(config).name
    path.write_text(f'_base_ = {str(library_config(config))!r}\n{swap_of(config).lines}')
    return path
