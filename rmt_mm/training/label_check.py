"""Check some labels of mmseg's and mmpretrain's data sets: values that are no class would crash in a loss."""

import copy
import os.path as osp
from logging import WARNING
from typing import Iterable, Iterator, Optional, Sequence

import mmcv
import numpy as np
from mmengine.fileio import get

from ..errors import DataError
from .datasets import find_transform, pick_evenly, reads_from_disk
from .findings import Finding
from .image_size import DECODE_ERRORS, explain, read_image_size


def check_label_maps(dataset, where: str, ignored: Iterable[int] = (255,)) -> Iterator[Finding]:
    """Check up to 50 label maps of one of mmseg's data sets, from the first to the last at even distances.

    Find label maps that are missing, have several channels, another size than their image, or values of no class.

    The pipeline's own LoadAnnotations loads them, so ``reduce_zero_label`` and ``label_map`` are applied. Without that
    transform nothing is checked.

    Args:
        dataset (mmseg.datasets.BaseSegDataset): a built data set.
        where (str): name of its data loader.
        ignored (Iterable[int]): values that the losses ignore, besides the data set's ``ignore_index``. Default (255,).
    """
    load, load_image = find_transform(dataset, 'LoadAnnotations'), find_transform(dataset, 'LoadImageFromFile')
    classes = dataset.metainfo.get('classes')
    if not reads_from_disk(load) or not classes:
        return
    ignored = {dataset.ignore_index, *ignored}
    present, sample = set(), pick_evenly(range(len(dataset)))
    for i in sample:
        info = dataset.get_data_info(i)
        path = info.get('seg_map_path')
        if not path or '://' in path:
            continue
        if not osp.isfile(path):
            yield Finding(f'{where}: label map {path} of image {info.get("img_path")} does not exist.')
        try:
            raw = mmcv.imfrombytes(get(path), flag='unchanged', backend=load.imdecode_backend)
            assert raw is not None
        except DECODE_ERRORS as error:
            yield Finding(f'{where}: label map {path} cannot be read: {explain(error, path, load.imdecode_backend)}.')
        raw = raw.squeeze()
        if raw.ndim != 2:
            yield Finding(
                f'{where}: label map {path} has {raw.shape[-1]} channels; a label map has one, whose '
                'values are the numbers of the classes.'
            )
        yield from _check_size(info, raw.shape, path, load_image, where)
        if raw.max() > 255:
            yield Finding(f'{where}: label map {path} has values up to {raw.max()}, of which mmseg keeps 8 bits.')
        labels = set(np.unique(load.transform(copy.deepcopy(info))['gt_seg_map']).tolist()) - ignored
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
        present |= labels
    if sample and len(present) < min(2, len(classes)):
        yield Finding(
            f'{where}: {len(sample)} label maps that were looked at have {_list(present)} alone, beside the '
            f'ignored {_list(ignored)}; the {len(classes)} classes are 0 to {len(classes) - 1}.',
            WARNING,
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
