"""Check that the files and folders of a config's data sets are there, before anything is built."""
import os.path as osp

from mmengine.config import Config

from ..errors import UsageError
from .search import find_dicts


def check_datasets(cfg: Config, *dataloaders: str) -> None:
    """Raise UsageError if files or folders that the named dataloaders read are not there."""
    for name in dataloaders:
        loaders = cfg.get(name) or []
        for loader in loaders if isinstance(loaders, list) else [loaders]:
            for dataset in find_dicts(loader.get('dataset', {}), lambda d: 'data_root' in d or 'ann_file' in d):
                _check_dataset(dataset, name)


def check_annotations(cfg: Config, *evaluators: str) -> None:
    """Raise UsageError if an annotation file that a metric of the named evaluators reads is not there."""
    for name in evaluators:
        for metric in find_dicts(cfg.get(name) or [], lambda d: d.get('ann_file')):
            if not osp.isfile(metric['ann_file']):
                raise UsageError(f'{name}: annotation file {metric["ann_file"]} does not exist; '
                                 'docs/datasets.md says how the data is laid out.')


def _check_dataset(dataset: dict, loader: str) -> None:
    def fail(what: str, path: str) -> None:
        raise UsageError(f'{loader}: {what} {path} does not exist; docs/datasets.md says how the data is laid out.')

    root = dataset.get('data_root') or ''
    if root and not osp.isdir(root):
        fail('data folder', root)
    ann_file = dataset.get('ann_file')
    if ann_file and not osp.isfile(osp.join(root, ann_file)):
        fail('annotation file', osp.join(root, ann_file))
    prefix = dataset.get('data_prefix') or {}
    for folder in prefix.values() if isinstance(prefix, dict) else [prefix]:
        if folder and not osp.isdir(osp.join(root, folder)):
            fail('data folder', osp.join(root, folder))
