"""Pictures of a config's validation set, for the page's row of examples."""

import itertools
from pathlib import Path
from typing import List

from mmengine.config import Config

from ...training.datasets import build_lazily
from ..cli.images import IMAGE_SUFFIXES

# Of a large data set, the examples are from the first files that the folder lists.
MOST_LISTED = 10000


def find_examples(cfg: Config, count: int) -> List[Path]:
    """Return up to ``count`` pictures of the config's validation set, spread over it; none if they are not here."""
    for name in ('val_dataloader', 'test_dataloader'):
        for dataset, _ in build_lazily(cfg.get(name), cfg.get('default_scope')):
            prefix = dataset.data_prefix
            prefixes = dict(img=prefix) if isinstance(prefix, str) else dict(prefix or {})
            for folder in filter(None, (prefixes.get('img'), prefixes.get('img_path'))):
                found = _list_images(Path(folder))
                if found:
                    step = max(1, len(found) // count)
                    return found[::step][:count]
    return []


def _list_images(folder: Path) -> List[Path]:
    if not folder.is_dir():
        return []
    listed = itertools.islice(folder.rglob('*'), MOST_LISTED)
    return sorted(path for path in listed if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
