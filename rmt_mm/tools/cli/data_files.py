"""Check that the files and folders of a config's data sets exist, before anything is built."""

import os.path as osp
from logging import INFO
from typing import Iterator, Optional, Tuple

from mmengine.config import Config
from mmengine.dataset import BaseDataset

from ...errors import UsageError
from ...training.config_search import find_dicts
from ...training.datasets import build_lazily, has_remote_backend, is_on_disk
from ...training.findings import Finding, report
from .types import LIBRARIES


def check_datasets(cfg: Config, *dataloaders: str) -> None:
    """Raise UsageError if files or folders that the named dataloaders read do not exist."""
    report(find_missing_data(cfg, *dataloaders), UsageError, print)


def check_annotations(cfg: Config, *evaluators: str) -> None:
    """Raise UsageError if an annotation file that a metric of the named evaluators reads does not exist."""
    report(find_missing_annotations(cfg, *evaluators), UsageError, print)


def find_missing_data(cfg: Config, *dataloaders: str) -> Iterator[Finding]:
    """Find files and folders that the named dataloaders read and that do not exist.

    The data set classes compute the paths, since each joins them in its own way. Not checked are data sets that make or
    download their files, data sets of other packages, and files that are not on the disk.
    """
    for name in dataloaders:
        for dataset, config in build_lazily(cfg.get(name), cfg.get('default_scope')):
            reader = type(dataset).load_data_list.__module__.split('.')[0]
            if reader not in LIBRARIES or getattr(dataset, 'download', False):
                continue
            if has_remote_backend(config):
                text = f'{name}: the data are not on this machine, and whether they are there is not checked.'
                yield Finding(text, INFO)
                continue
            for what, path in _paths(dataset, config):
                yield from _check(name, what, path, reader)


def find_missing_annotations(cfg: Config, *evaluators: str) -> Iterator[Finding]:
    """Find annotation files that metrics of the named evaluators read and that do not exist."""
    for name in evaluators:
        for metric in find_dicts(cfg.get(name) or [], lambda d: d.get('ann_file')):
            if isinstance(metric['ann_file'], str) and not has_remote_backend(metric):
                yield from _check(name, 'annotation file', metric['ann_file'], cfg.get('default_scope') or 'mmengine')


def _paths(dataset: BaseDataset, config: dict) -> Iterator[Tuple[str, str]]:
    ann_file, prefixes = dataset.ann_file, dataset.data_prefix or {}
    for path in ann_file if isinstance(ann_file, (list, tuple)) else [ann_file]:
        yield 'annotation file', path
    prefixes = dict(prefixes) if isinstance(prefixes, dict) else dict(img_path=prefixes)
    # mmdet's instance configs inherit the folder of panoptic labels from panoptic configs, but read no file in it.
    if not any(find_dicts(config, lambda d: d.get('with_seg') or 'Panoptic' in str(d.get('type')))):
        prefixes.pop('seg', None)
    for path in prefixes.values():
        yield 'data folder', path


def _check(name: str, what: str, path: Optional[str], library: str) -> Iterator[Finding]:
    if not path or not isinstance(path, str) or osp.exists(path):
        return
    if not is_on_disk(path):
        yield Finding(f'{name}: {what} {path} is not on this machine, and whether it is there is not checked.', INFO)
        return
    home = osp.expanduser(path)
    hint = (
        f'{library} does not read ~ as the home folder: write {home}'
        if home != path and osp.exists(home)
        else 'docs/datasets.md says how the data is laid out'
    )
    yield Finding(f'{name}: {what} {path} does not exist; {hint}.')
