"""Check some labels of mmseg's and mmpretrain's data sets: values that are no class would crash in a loss."""

import copy
import logging
import os.path as osp
from typing import Iterable, Optional, Sequence

import mmcv
import numpy as np
from mmengine.fileio import get
from mmengine.logging import print_log

from ..errors import DataError
from .datasets import find_transform, reads_from_disk, spread
from .image_size import read_image_size


def check_label_maps(dataset, where: str, ignored: Iterable[int] = (255,)) -> None:
    """Check up to 50 label maps of one of mmseg's data sets, from the first to the last at even distances.

    The pipeline's own LoadAnnotations loads them, so ``reduce_zero_label`` and ``label_map`` are applied. Without that
    transform nothing is checked.

    Args:
        dataset (mmseg.datasets.BaseSegDataset): a built data set.
        where (str): name of its data loader.
        ignored (Iterable[int]): values that the losses ignore, besides the data set's ``ignore_index``. Default (255,).

    Raises:
        DataError: a label map is missing, has several channels, another size than its image, or values of no class.
    """
    load, load_image = find_transform(dataset, 'LoadAnnotations'), find_transform(dataset, 'LoadImageFromFile')
    classes = dataset.metainfo.get('classes')
    if not reads_from_disk(load) or not classes:
        return
    ignored = {dataset.ignore_index, *ignored}
    present, sample = set(), spread(range(len(dataset)))
    for i in sample:
        info = dataset.get_data_info(i)
        path = info.get('seg_map_path')
        if not path or '://' in path:
            continue
        if not osp.isfile(path):
            raise DataError(f'{where}: label map {path} of image {info.get("img_path")} does not exist.')
        raw = mmcv.imfrombytes(get(path), flag='unchanged', backend=load.imdecode_backend)
        if raw is None:
            raise DataError(f'{where}: label map {path} is no image that can be read.')
        raw = raw.squeeze()
        if raw.ndim != 2:
            raise DataError(
                f'{where}: label map {path} has {raw.shape[-1]} channels; a label map has one, whose '
                'values are the numbers of the classes.'
            )
        _check_size(info, raw.shape, path, load_image, where)
        if raw.max() > 255:
            raise DataError(f'{where}: label map {path} has values up to {raw.max()}, of which mmseg keeps 8 bits.')
        labels = set(np.unique(load.transform(copy.deepcopy(info))['gt_seg_map']).tolist()) - ignored
        wrong = sorted(label for label in labels if label >= max(len(classes), 2))
        if wrong:
            hint = (
                ''
                if dataset.reduce_zero_label or 0 in labels or wrong != [len(classes)]
                else ' If classes are numbered from 1, set reduce_zero_label=True.'
            )
            raise DataError(
                f'{where}: label map {path} has the values {", ".join(map(str, wrong[:5]))}, but the '
                f'{len(classes)} classes are 0 to {len(classes) - 1}, and {_list(ignored)} is ignored'
                f'{" (after reduce_zero_label)" if dataset.reduce_zero_label else ""}.{hint}'
            )
        present |= labels
    if sample and len(present) < min(2, len(classes)):
        print_log(
            f'{where}: {len(sample)} label maps that were looked at have {_list(present)} alone, beside the '
            f'ignored {_list(ignored)}; the {len(classes)} classes are 0 to {len(classes) - 1}.',
            'current',
            logging.WARNING,
        )


def _check_size(info: dict, shape: Sequence[int], path: str, load_image, where: str) -> None:
    image = info.get('img_path')
    if not reads_from_disk(load_image) or not image or '://' in image:
        return
    try:
        size = read_image_size(image)
    except OSError as error:
        raise DataError(f'{where}: image {image} cannot be read: {error.strerror or error}.') from error
    if size is not None and tuple(shape) != size.loaded[::-1]:
        raise DataError(
            f'{where}: label map {path} is {shape[1]} x {shape[0]} pixels, and its image {image} '
            f'{size.loaded[0]} x {size.loaded[1]}.'
        )


def _list(values: Iterable[int]) -> str:
    return ', '.join(map(str, sorted(values))) or 'no class'


def check_image_labels(dataset, where: str, num_classes: Optional[int]) -> None:
    """Check up to 10,000 labels of one of mmpretrain's data sets, at even distances.

    Args:
        dataset (mmpretrain.datasets.BaseDataset): a built data set.
        where (str): name of its data loader.
        num_classes (int | None): number of classes, used if the data set does not name them.

    Raises:
        DataError: an image has a label of no class.
    """
    classes = dataset.metainfo.get('classes')
    number = len(classes) if classes else num_classes
    if not number:
        return
    for i in spread(range(len(dataset)), 10000):
        info = dataset.get_data_info(i)
        labels = info.get('gt_label')
        for label in labels if isinstance(labels, (list, tuple)) else [labels]:
            if isinstance(label, (int, np.integer)) and (label >= number or label < 0 and not dataset.test_mode):
                raise DataError(
                    f'{where}: image {info.get("img_path", i)} has label {label} in '
                    f'{dataset.ann_file or "the data set"}, but the {number} classes are 0 to '
                    f'{number - 1}.'
                )
