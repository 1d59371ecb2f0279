"""Check the data before the first iteration for mistakes that would train nothing, train on the wrong data, or crash
in a loss."""

import contextlib
from typing import TYPE_CHECKING, Any, Iterable, Iterator, List, Optional, Sequence, Set, Tuple

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from ..errors import FOREIGN_ERRORS, DataError, RMTError, UsageError, in_one_line
from .class_check import (
    check_heads,
    check_metric_classes,
    check_names_of_keys,
    check_same_classes,
    check_topk,
    class_names,
    takes_text,
)
from .coco_check import (
    CocoCheck,
    check_categories,
    check_evaluated_images,
    check_learnable,
    check_yielded_images,
    is_plain_coco,
    read_json,
)
from .config_key import find_fault
from .datasets import build_lazily, find_datasets, name_files
from .findings import Finding, collect, report
from .label_check import (
    check_counted_labels,
    check_image_labels,
    check_label_maps,
    check_scored_labels,
    check_suffixes,
    check_zero_label,
)
from .segmentor_check import check_losses, check_norms, find_batch_labels

if TYPE_CHECKING:  # `import rmt_mm` does not need Runner
    from mmengine.runner import Runner


def build_data(runner: 'Runner', *splits: str) -> None:
    """Build the data sets of a runner now, rather than at the start of its loop, and check them.

    Run the checks of the runner's :class:`DataCheckHook`. Register one if the runner has none.

    Args:
        runner (Runner): the runner.
        splits (str): from 'train', 'val' and 'test'.

    Raises:
        DataError: a data set cannot be built or used; the message names the file at fault.
    """
    for split in splits:
        with _naming_the_file(runner, split):
            getattr(runner, f'{split}_loop')
    hook = next((hook for hook in runner.hooks if isinstance(hook, DataCheckHook)), None)
    if hook is None:
        hook = DataCheckHook()
        runner.register_hook(hook)
    hook.check(runner, *splits)


@contextlib.contextmanager
def _naming_the_file(runner: 'Runner', split: str) -> Iterator[None]:
    """Turn an error raised while a data set or metric is built into a DataError with the name of its file."""
    try:
        yield
    except RMTError:
        raise
    except FOREIGN_ERRORS as error:
        loader, evaluator = f'{split}_dataloader', f'{split}_evaluator'
        config, fault = runner.cfg.get(loader), find_fault(error, runner.cfg)
        if fault and fault.key.split('.')[0] not in (loader, evaluator):
            raise UsageError(fault.text) from error
        if not config:
            raise
        built = list(build_lazily(config, runner.cfg.get('default_scope')))
        for _, given in built:
            report(check_names_of_keys(given.get('metainfo') or {}, loader))
        datasets = [dataset for dataset, _ in built]
        for dataset in datasets:
            if is_plain_coco(dataset):
                report(CocoCheck(dataset, loader).run())
        for path in _annotation_files(runner.cfg.get(evaluator)):
            if path.endswith('.json') and '://' not in path:
                read_json(path, evaluator)
        # NumPy's message when mmengine packs the samples of an empty data set into one array.
        if 'need at least one array' in str(error):
            raise DataError(_empty(loader)) from error
        if fault and not fault.reads_data:
            raise UsageError(fault.text) from error
        files = ' and '.join(filter(None, map(name_files, datasets)))
        text = fault.text if fault else f'{loader} cannot be built: {in_one_line(error)}'
        raise DataError(f'{text}{f" (it reads {files})" if files else ""}.') from error


def _annotation_files(evaluator) -> Iterator[str]:
    for metric in evaluator if isinstance(evaluator, (list, tuple)) else [evaluator]:
        if isinstance(metric, dict) and isinstance(metric.get('ann_file'), str):
            yield metric['ann_file']
        elif isinstance(metric, dict) and metric.get('metrics'):
            yield from _annotation_files(metric['metrics'])


def _empty(loader: str) -> str:
    return (
        f'{loader}: the data set is empty. No image is in its folder or annotation file, or filter_cfg leaves '
        'none, or its categories have other names than metainfo.classes.'
    )


@HOOKS.register_module()
class DataCheckHook(Hook):
    """Stop before training, validation or testing if the data are empty, do not fit the heads, or would be misread.

    Works with all models of mmdet, mmseg and mmpretrain. Before training, the validation data are checked too.

    - Every data set: not empty, as many ``classes`` in its ``metainfo`` as the heads predict, in the same order in
      training and validation.
    - mmdet's CocoDataset, and subclasses that read files as it does: see :mod:`rmt_mm.training.coco_check`.
    - mmseg's data sets: up to 50 label maps; mmpretrain's: up to 10,000 labels.

    Findings that may be intended are printed as warnings. Only the first process reads files; on an error all processes
    stop.

    Args:
        check_files (bool): read annotation files and label maps; this parses a COCO file once more. Default True.

    Raises:
        rmt_mm.errors.DataError: what is wrong, where, and the setting to change.
    """

    priority = 'VERY_HIGH'

    def __init__(self, check_files: bool = True) -> None:
        self.check_files = check_files
        self._checked: Set[str] = set()
        self._train_label_maps: Any = None  # one of the training's data sets of label maps
        self._train_classes: Optional[Sequence[str]] = None

    def before_train(self, runner: 'Runner') -> None:
        self.check(runner, 'train', 'val')

    def before_val(self, runner: 'Runner') -> None:
        self.check(runner, 'val')

    def before_test(self, runner: 'Runner') -> None:
        self.check(runner, 'test')

    def check(self, runner: 'Runner', *splits: str) -> None:
        """Check the data of ``splits``, each once per hook. Skip splits without a loop."""
        for split in splits:
            dataloader = getattr(getattr(runner, f'{split}_loop', None), 'dataloader', None)
            dataset = getattr(dataloader, 'dataset', None)
            if dataset is None or split in self._checked:
                continue
            loader = f'{split}_dataloader'
            if hasattr(dataset, '__len__') and len(dataset) == 0:
                raise DataError(_empty(loader))
            metrics = _metrics(runner, split)
            report(_check_batches(dataloader, loader))
            report(check_topk(runner.model, metrics, f'{split}_evaluator'))
            report(check_heads(runner.model, dataset, loader))
            report(check_metric_classes(metrics, dataset, loader))
            if split == 'train':
                report(check_norms(runner.model, dataloader, loader))
            if self.check_files:
                _report_of_main_process(self._check_files(runner, split, dataset))
            self._checked.add(split)

    def _check_files(self, runner: 'Runner', split: str, dataset) -> Iterator[Finding]:
        loader, evaluator = f'{split}_dataloader', f'{split}_evaluator'
        classes, leaves = class_names(dataset), list(find_datasets(dataset))
        checks: List[CocoCheck] = []
        for leaf in leaves:
            yield from check_suffixes(leaf, loader)
            names = {f'{cls.__module__.split(".")[0]}.{cls.__name__}' for cls in type(leaf).__mro__}
            if is_plain_coco(leaf):
                coco = CocoCheck(leaf, loader)
                checks.append(coco)
                yield from coco.run()
                if coco.images and len(leaves) == 1:
                    classes = coco.labels
            elif 'mmseg.BaseSegDataset' in names:
                ignored = [getattr(module, 'ignore_index', None) for module in runner.model.modules()]
                labels = yield from check_label_maps(
                    leaf,
                    loader,
                    {255, *(value for value in ignored if isinstance(value, int))},
                    _num_classes(runner.model),
                )
                for metric in _metrics(runner, split):
                    yield from check_counted_labels(metric, labels, leaf, evaluator)
                if split == 'train':
                    self._train_label_maps = leaf
                    yield from check_losses(runner.model, labels, loader, _batch_labels(runner, dataset))
                elif self._train_label_maps is not None:
                    yield from check_zero_label(self._train_label_maps, leaf, loader)
            elif 'mmpretrain.BaseDataset' in names:
                yield from check_image_labels(leaf, loader, _num_classes(runner.model))
                for metric in _metrics(runner, split):
                    yield from check_scored_labels(metric, leaf, evaluator)
        if split == 'train' and len(checks) == len(leaves):
            yield from check_learnable(checks, loader)
        yield from _check_number_of_metrics(runner, split, dataset)
        for metric, scored in _scored(runner, split, leaves):
            for coco in checks:
                if coco.images and coco.dataset in scored:
                    yield from check_categories(metric, coco, evaluator)
                    if len(scored) == 1:
                        yield from check_evaluated_images(metric, coco, evaluator)
            yield from check_yielded_images(metric, scored, evaluator, loader)
        if split == 'train':
            self._train_classes = classes
        elif not takes_text(runner.model):
            yield from check_same_classes(self._train_classes, classes, loader)


def _metrics(runner: 'Runner', split: str) -> Sequence:
    return getattr(getattr(runner, f'{split}_evaluator', None), 'metrics', ())


def _scored(runner: 'Runner', split: str, leaves: List) -> Iterator[Tuple[Any, List]]:
    """Yield the metrics of an evaluator with the data sets that each scores: mmdet has one for several."""
    metrics = _metrics(runner, split)
    if hasattr(getattr(runner, f'{split}_evaluator', None), 'dataset_prefixes'):
        yield from ((metric, [leaf]) for metric, leaf in zip(metrics, leaves))
    else:
        yield from ((metric, leaves) for metric in metrics)


def _check_number_of_metrics(runner: 'Runner', split: str, dataset) -> Iterator[Finding]:
    """Compare the lists of mmdet's MultiDatasetsEvaluator, of which it drops what is over."""
    evaluator: Any = getattr(runner, f'{split}_evaluator', None)
    parts = getattr(dataset, 'datasets', None) or [dataset]
    if hasattr(evaluator, 'dataset_prefixes'):
        counts = len(evaluator.metrics), len(evaluator.dataset_prefixes), len(parts)
        if len(set(counts)) > 1 or dataset in parts:
            yield Finding(
                f'{split}_evaluator: {type(evaluator).__name__} has {counts[0]} metrics and {counts[1]} '
                f'dataset_prefixes, and {split}_dataloader has {counts[2]} data sets: it needs a ConcatDataset, and '
                'one of each for every data set in it.'
            )


def _check_batches(dataloader, loader: str) -> Iterator[Finding]:
    """Find a loader that drops its only batch, since it has fewer images. One that never ends fills it up."""
    sampler = getattr(dataloader, 'sampler', None)
    if sampler is None or 'Infinite' in type(sampler).__name__ or len(dataloader):
        return
    size = getattr(getattr(dataloader, 'batch_sampler', None), 'batch_size', None) or dataloader.batch_size
    yield Finding(
        f'{loader}: drop_last=True leaves no batch, since a process has {len(sampler)} images, fewer than '
        f'batch_size={size}: set {loader}.batch_size to at most {len(sampler)}, or drop_last=False.'
    )


def _num_classes(model) -> Optional[int]:
    model = getattr(model, 'module', model)
    heads = (getattr(model, name, None) for name in ('decode_head', 'head'))
    counts = (getattr(head, 'num_classes', None) for head in heads)
    return next((count for count in counts if isinstance(count, int)), None)


def _batch_labels(runner: 'Runner', dataset) -> Iterator[Set[int]]:
    model = getattr(runner.model, 'module', runner.model)
    yield from find_batch_labels(dataset, model.data_preprocessor, runner.train_dataloader.batch_size or 1)


def _report_of_main_process(check: Iterable[Finding]) -> None:
    """Run a check in the first process, and report what it found in all of them; mmengine logs notes in the first."""
    found: List[List[Finding]] = [collect(check) if is_main_process() else []]
    broadcast_object_list(found)
    report(found[0])
