"""Check some labels of mmseg's and mmpretrain's data sets: values that are no class would crash in a loss."""

import copy
import mimetypes
import os
import os.path as osp
from itertools import islice
from logging import ERROR, WARNING
from typing import Generator, Iterable, Iterator, Optional, Sequence, Set

import mmcv
import numpy as np
from mmengine.fileio import get

from ..errors import DataError
from .datasets import find_transform, name_files, pick_evenly, reads_from_disk
from .findings import Finding
from .image_size import DECODE_ERRORS, explain, read_image_size


def check_suffixes(dataset, where: str, at_most: int = 100_000) -> Iterator[Finding]:
    """Find images in the folder of a data set without an annotation file that it leaves out for their suffix.

    Args:
        dataset: one of mmseg's with ``img_suffix``, or of mmpretrain's with ``extensions``; others are not checked.
        where (str): name of its data loader.
        at_most (int): files that are looked at. Default 100,000.
    """
    key = 'img_suffix' if hasattr(dataset, 'img_suffix') else 'extensions'
    suffixes = getattr(dataset, key, None)
    prefixes = getattr(dataset, 'data_prefix', None) or {}
    folder = prefixes.get('img_path')
    if not suffixes or not folder or dataset.ann_file or not osp.isdir(folder):
        return
    labels = tuple(filter(None, [getattr(dataset, 'seg_map_suffix', None)])) if prefixes.get('seg_map_path') else ()
    used = tuple(suffixes) if key == 'extensions' else (suffixes, *labels)
    files = (osp.join(root, name) for root, _, names in os.walk(folder) for name in names)
    images = [f for f in islice(files, at_most) if (mimetypes.guess_type(f)[0] or '').startswith('image/')]
    unused = [f for f in images if not (f.lower() if key == 'extensions' else f).endswith(used)]
    if unused:
        yield Finding(
            f'{where}: {len(unused)} of {len(images)} images in {folder} are not used, such as {min(unused)}: '
            f'{where}.dataset.{key} is {suffixes!r}. A data set reads other suffixes by another {key}.',
            WARNING,
        )


def check_label_maps(
    dataset, where: str, ignored: Iterable[int] = (255,), num_classes: Optional[int] = None
) -> Generator[Finding, None, Set[int]]:
    """Check up to 50 label maps of one of mmseg's data sets, from the first to the last at even distances.

    Find label maps that are missing, have several channels, another size than their image, or values of no class, and
    those of which nothing can be learned. Return the labels in them, ignored ones included.

    The pipeline's own LoadAnnotations loads them, so ``reduce_zero_label`` and ``label_map`` are applied. Without that
    transform nothing is checked.

    Args:
        dataset (mmseg.datasets.BaseSegDataset): a built data set.
        where (str): name of its data loader.
        ignored (Iterable[int]): values that the losses ignore, besides the data set's ``ignore_index``. Default (255,).
        num_classes (int | None): number of classes, used if the data set does not name them.
    """
    load, load_image = find_transform(dataset, 'LoadAnnotations'), find_transform(dataset, 'LoadImageFromFile')
    classes = dataset.metainfo.get('classes') or range(num_classes or 0)
    seen: Set[int] = set()
    if not reads_from_disk(load) or not classes:
        return seen
    ignored = {dataset.ignore_index, *ignored}
    stored, sample = set(), pick_evenly(range(len(dataset)))
    for i in sample:
        info = dataset.get_data_info(i)
        path = info.get('seg_map_path')
        if not path or '://' in path:
            continue
        if not osp.isfile(path):
            yield Finding(f'{where}: label map {path} of image {info.get("img_path")} does not exist.')
        try:
            raw = mmcv.imfrombytes(get(path), flag='unchanged', backend=load.imdecode_backend)
            if raw is None:  # OpenCV's answer, of which mmcv's transforms make this error
                raise AssertionError
        except DECODE_ERRORS as error:
            yield Finding(f'{where}: label map {path} cannot be read: {explain(error, path, load.imdecode_backend)}.')
        if min(raw.shape[:2]) == 1:
            yield Finding(
                f'{where}: label map {path} is {raw.shape[1]} x {raw.shape[0]} pixels, and LoadAnnotations takes none '
                'with a side of 1.'
            )
        raw = raw.squeeze()
        if raw.ndim != 2:
            yield Finding(
                f'{where}: label map {path} has {raw.shape[-1]} channels; a label map has one, whose '
                'values are the numbers of the classes.'
            )
        yield from _check_size(info, raw.shape, path, load_image, where)
        if raw.max() > 255:
            yield Finding(f'{where}: label map {path} has values up to {raw.max()}, of which mmseg keeps 8 bits.')
        stored |= set(np.unique(raw).tolist())
        loaded = set(np.unique(load.transform(copy.deepcopy(info))['gt_seg_map']).tolist())
        labels = loaded - ignored
        wrong = sorted(label for label in labels if label >= max(len(classes), 2))
        if wrong:
            hint = (
                ''
                if dataset.reduce_zero_label or 0 in labels or wrong != [len(classes)]
                else ' If classes are numbered from 1, set reduce_zero_label=True.'
            )
            yield Finding(
                f'{where}: label map {path} has the values {", ".join(map(str, wrong[:5]))}, but the '
                f'{len(classes)} classes are 0 to {len(classes) - 1}, and {_list(ignored)} is ignored'
                f'{" (after reduce_zero_label)" if dataset.reduce_zero_label else ""}.{hint}'
            )
        seen |= loaded
    present = seen - ignored
    if stored == {0, 255} and 255 in ignored and len(present) < 2:
        yield Finding(
            f'{where}: the {len(sample)} label maps that were looked at hold 0 and 255 alone, and 255 is ignored: '
            f'store the number of the class in place of 255, such as 1 (the {len(classes)} classes are 0 to '
            f'{len(classes) - 1}).'
        )
    if sample and len(present) < min(2, len(classes)):
        yield Finding(
            f'{where}: {len(sample)} label maps that were looked at have {_list(present)} alone, beside the '
            f'ignored {_list(ignored)}; the {len(classes)} classes are 0 to {len(classes) - 1}.',
            WARNING if present or dataset.test_mode or len(sample) < len(dataset) else ERROR,
        )
    return seen


def check_counted_labels(metric, labels: Iterable[int], dataset, where: str) -> Iterator[Finding]:
    """Find labels of ignored pixels that mmseg's IoUMetric does not ignore: predictions on them count as wrong.

    Args:
        metric (mmseg.evaluation.IoUMetric): others have no findings.
        labels (Iterable[int]): labels found in the data set, ignored ones included.
        dataset (mmseg.datasets.BaseSegDataset): the data set.
        where (str): name of the evaluator.
    """
    classes = dataset.metainfo.get('classes') or ()
    if 'IoUMetric' not in [cls.__name__ for cls in type(metric).__mro__] or metric.format_only:
        return
    counted = {label for label in labels if label >= len(classes)} - {metric.ignore_index}
    if counted:
        yield Finding(
            f'{where}: the label maps have ignored pixels of {_list(counted)}, and ignore_index of '
            f'{type(metric).__name__} is {metric.ignore_index}, so that all predictions on them count as wrong: set '
            f'{where}.ignore_index={min(counted)}.'
        )
    elif 0 <= metric.ignore_index < len(classes):
        yield Finding(
            f'{where}: {type(metric).__name__} leaves out the pixels of the class {classes[metric.ignore_index]!r} '
            f'(ignore_index={metric.ignore_index}).',
            WARNING,
        )


def check_zero_label(train, other, where: str) -> Iterator[Finding]:
    """Compare ``reduce_zero_label`` of one of mmseg's data sets with that of the training data."""
    if train.reduce_zero_label != other.reduce_zero_label:
        yield Finding(
            f'{where}: reduce_zero_label is {other.reduce_zero_label}, and {train.reduce_zero_label} in '
            'train_dataloader, so that a stored label means another class: set both alike.',
            ERROR if type(train) is type(other) else WARNING,
        )


def _check_size(info: dict, shape: Sequence[int], path: str, load_image, where: str) -> Iterator[Finding]:
    image = info.get('img_path')
    if not reads_from_disk(load_image) or not image or '://' in image:
        return
    try:
        size = read_image_size(load_image, image)
    except DataError as error:
        yield Finding(f'{where}: image {image} cannot be read: {error}.')
        return
    if size is not None and size != tuple(shape[::-1]):
        yield Finding(
            f'{where}: label map {path} is {shape[1]} x {shape[0]} pixels, and its image {image} {size[0]} x {size[1]}.'
        )


def _list(values: Iterable[int]) -> str:
    return ', '.join(map(str, sorted(values))) or 'no class'


def check_image_labels(dataset, where: str, num_classes: Optional[int]) -> Iterator[Finding]:
    """Find labels of no class among up to 10,000 labels of one of mmpretrain's data sets, at even distances.

    Args:
        dataset (mmpretrain.datasets.BaseDataset): a built data set.
        where (str): name of its data loader.
        num_classes (int | None): number of classes, used if the data set does not name them.
    """
    classes = dataset.metainfo.get('classes')
    number = len(classes) if classes else num_classes
    if not number:
        return
    for i in pick_evenly(range(len(dataset)), 10000):
        info = dataset.get_data_info(i)
        labels = info.get('gt_label')
        for label in labels if isinstance(labels, (list, tuple)) else [labels]:
            if isinstance(label, (int, np.integer)) and (label >= number or label < 0 and not dataset.test_mode):
                yield Finding(
                    f'{where}: image {info.get("img_path", i)} has label {label} in '
                    f'{dataset.ann_file or "the data set"}, but the {number} classes are 0 to '
                    f'{number - 1}.'
                )


def check_scored_labels(metric, dataset, where: str) -> Iterator[Finding]:
    """Find images whose labels a metric of mmpretrain cannot score: none, none of a class, several for each image.

    Args:
        metric: ``Accuracy``, ``SingleLabelMetric``, ``ConfusionMatrix``, ``MultiLabelMetric``, ``AveragePrecision``, or
            of a subclass; others have no findings.
        dataset (mmpretrain.datasets.BaseDataset): a built data set, of which up to 10,000 images are looked at.
        where (str): name of the evaluator.
    """
    kind = type(metric).__name__
    kinds = {cls.__name__ for cls in type(metric).__mro__}
    single = kinds & {'Accuracy', 'SingleLabelMetric', 'ConfusionMatrix'}
    if not single and not kinds & {'MultiLabelMetric', 'AveragePrecision'}:
        return
    modules = {type(transform).__module__.split('.')[0] for transform in dataset.pipeline.transforms}
    if not modules <= {'mmpretrain', 'mmcv'}:  # one of the user's own may set other labels
        return
    infos = [dataset.get_data_info(i) for i in pick_evenly(range(len(dataset)), 10000)]
    labels = [info.get('gt_label', info.get('gt_score')) for info in infos]
    source = name_files(dataset)
    missing = sum(label is None for label in labels)
    several = sum(isinstance(label, (list, tuple)) and len(label) != 1 for label in labels)
    negative = sum(isinstance(label, (int, np.integer)) and label < 0 for label in labels)
    if missing:
        yield Finding(
            f'{where}: {kind} compares predictions with labels, and {missing} of {len(labels)} images of {source} have '
            'none. Predict images without labels by tools/demo.py.'
        )
    elif single and several:
        yield Finding(
            f'{where}: {kind} takes one label for each image, and {several} of {len(labels)} images of {source} have '
            "none or several: set type='MultiLabelMetric' or 'AveragePrecision'."
        )
    elif single and negative:
        yield Finding(
            f'{where}: {negative} of {len(labels)} images of {source} have a negative label, which {kind} counts as a '
            'wrong prediction: leave these images out.'
        )
