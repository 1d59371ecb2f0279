"""Find the data sets of a config or built loader, inside any wrappers, and which of their files are on the disk."""

import os
from typing import Iterator, Optional, Sequence, Tuple

from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS

from ..errors import FOREIGN_ERRORS


def find_datasets(dataset) -> Iterator:
    """Yield the data sets below wrappers such as ConcatDataset, RepeatDataset and MultiImageMixDataset."""
    inner = getattr(dataset, 'datasets', None) or getattr(dataset, 'dataset', None)
    if inner is None or isinstance(dataset, BaseDataset):
        yield dataset
    else:
        values = inner.values() if isinstance(inner, dict) else inner if isinstance(inner, (list, tuple)) else [inner]
        for child in values:
            yield from find_datasets(child)


def build_lazily(node, scope: Optional[str]) -> Iterator[Tuple[BaseDataset, dict]]:
    """Build the data sets that a config describes without reading any annotation.

    The classes themselves join their paths and merge their ``metainfo``, so this function does not guess either.

    Args:
        node (dict | list): a data loader's or data set's config.
        scope (str | None): ``default_scope`` of the config.

    Yields:
        tuple: data set with ``lazy_init=True`` and no pipeline, and its config. Data sets that are no
        :class:`mmengine.dataset.BaseDataset`, or cannot be built in this way, are left out. A data set whose
        constructor already fails on missing files is replaced by a plain BaseDataset with the same paths.
    """
    if isinstance(node, (list, tuple)):
        for child in node:
            yield from build_lazily(child, scope)
    elif isinstance(node, dict):
        cls = _find_class(node.get('type'), scope)
        if cls is None:
            for key in node:
                if key != 'pipeline':
                    yield from build_lazily(node[key], scope)
            return
        args = {key: value for key, value in node.items() if key not in ('type', '_scope_', 'pipeline', 'lazy_init')}
        paths = {key: args[key] for key in ('ann_file', 'data_root', 'data_prefix') if key in args}
        # Some constructors, such as mmseg's PascalVOCDataset, check their files: BaseDataset only joins the paths.
        for kind, known in ((cls, args), (BaseDataset, paths)):
            try:
                dataset = kind(**known, pipeline=[], lazy_init=True)
            except (AssertionError, OSError):
                continue
            except FOREIGN_ERRORS:
                return  # unknown arguments: the runner's own construction raises the error
            yield dataset, node
            return


def _find_class(kind, scope: Optional[str]) -> Optional[type]:
    if isinstance(kind, str):
        with DATASETS.switch_scope_and_registry(scope) as registry:
            kind = registry.get(kind)
    return kind if isinstance(kind, type) and issubclass(kind, BaseDataset) else None


def is_on_disk(path: str, backend_args: Optional[dict] = None) -> bool:
    """Tell whether mmengine reads ``path`` from this machine's file system, rather than from Petrel, HTTP, LMDB..."""
    return '://' not in path and (backend_args or {}).get('backend') in (None, 'local', 'disk')


def has_remote_backend(node) -> bool:
    """Tell whether ``backend_args`` or ``file_client_args`` anywhere in a config name a backend other than the disk."""
    if isinstance(node, (list, tuple)):
        return any(map(has_remote_backend, node))
    if not isinstance(node, dict):
        return False
    given = [node[key] for key in ('backend_args', 'file_client_args') if isinstance(node.get(key), dict)]
    return any(not is_on_disk('', args) for args in given) or any(map(has_remote_backend, node.values()))


def find_transform(dataset, name: str):
    """Return the first transform of a built data set whose class has the name ``name``, or None."""
    transforms = getattr(getattr(dataset, 'pipeline', None), 'transforms', ())
    return next((transform for transform in transforms if type(transform).__name__ == name), None)


def reads_from_disk(transform) -> bool:
    """Tell whether a loading transform exists and reads from the disk."""
    return transform is not None and all(
        is_on_disk('', getattr(transform, key, None)) for key in ('backend_args', 'file_client_args')
    )


def pick_evenly(items: Sequence, at_most: int = 50) -> list:
    """Return up to ``at_most`` items at even distances, including the first and the last."""
    if len(items) <= at_most:
        return list(items)
    return [items[i * (len(items) - 1) // (at_most - 1)] for i in range(at_most)]


def name_files(dataset) -> str:
    """Name the annotation file of a data set, or its folders if it has none."""
    ann_file = getattr(dataset, 'ann_file', None)
    if ann_file:
        return os.fspath(ann_file) if isinstance(ann_file, (str, os.PathLike)) else str(ann_file)
    prefixes = getattr(dataset, 'data_prefix', None) or {}
    return ', '.join(str(path) for path in prefixes.values() if path) or str(getattr(dataset, 'data_root', None) or '')
