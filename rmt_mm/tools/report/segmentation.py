"""Evaluate and draw the predictions of a segmentor."""

import os.path as osp
from typing import Any, List, Sequence

import numpy as np
import torch

from ...errors import DataError, printable
from ..pictures import choose_colours
from .evaluation import Evaluation, Scene, check_order
from .scenes import draw_label_map, side_by_side

IGNORED = 255
BACKGROUNDS = ('background', 'unlabeled', 'void')


def evaluate(dataset: Any, samples: List[dict], threshold: float, read: Any) -> Evaluation:
    """Evaluate by mmseg's IoUMetric.

    Args:
        dataset (mmseg.datasets.BaseSegDataset): the validation set.
        samples (list[dict]): mmseg's data samples, with ``pred_sem_seg``, in the data set's order.
        threshold (float): not used; every pixel has a class.
        read (Callable): reads an image from a path.

    Raises:
        DataError: the predictions are of other images or classes.
    """
    from mmseg.datasets.transforms import LoadAnnotations
    from mmseg.evaluation import IoUMetric

    classes = list(map(printable, dataset.metainfo['classes']))
    infos = [dataset.get_data_info(i) for i in range(len(dataset))]
    names = [osp.basename(info['img_path']) for info in infos]
    result = Evaluation(classes, len(samples))
    colours = choose_colours(len(classes), dataset.metainfo.get('palette'))
    background = [i for i, name in enumerate(classes) if name.lower() in BACKGROUNDS]
    load = LoadAnnotations()
    areas: List[Sequence[torch.Tensor]] = []
    counts = np.zeros((len(classes), len(classes)), int)
    check_order(names, samples)
    for name, info, sample in zip(names, infos, samples):
        truth = load(dict(info))['gt_seg_map'].astype(np.int64)
        found = sample.get('pred_sem_seg')
        data = found.get('data') if isinstance(found, dict) else None
        if not isinstance(data, torch.Tensor) or tuple(data.shape) != (1, *truth.shape):
            raise DataError(f'the prediction of {name} is no map of its {truth.shape} pixels.')
        labels = data[0].long()
        if not 0 <= int(labels.min()) <= int(labels.max()) < len(classes):
            raise DataError(f'the predictions are of other classes than the {len(classes)} of the data set.')
        area = IoUMetric.intersect_and_union(labels, torch.from_numpy(truth), len(classes), IGNORED)
        areas.append(area)
        known = (truth != IGNORED) & (truth < len(classes))
        pairs = truth[known] * len(classes) + labels.numpy()[known]
        counts += np.bincount(pairs, minlength=counts.size).reshape(counts.shape)
        there = area[1] > 0
        score = float((area[0][there] / area[1][there]).mean()) if bool(there.any()) else 1.0
        caption = f'{name}   mIoU {100 * score:.1f} of the classes there'
        result.scenes.append(
            Scene(
                name,
                score,
                caption,
                _drawer(read, info['img_path'], truth, labels.numpy(), classes, colours, background),
            )
        )
    totals = [sum(parts) for parts in zip(*areas)]
    metrics = IoUMetric.total_area_to_metrics(*totals, ['mIoU'], None, 1)
    result.per_class = {'IoU': 100 * np.asarray(metrics['IoU']), 'accuracy': 100 * np.asarray(metrics['Acc'])}
    result.summary = {
        'mIoU': 100 * float(np.nanmean(metrics['IoU'])),
        'pixel accuracy': 100 * float(metrics['aAcc']),
        'mean accuracy': 100 * float(np.nanmean(metrics['Acc'])),
    }
    result.confusion, result.rows, result.columns = counts, classes, classes
    result.confusion_note = 'Pixels: truth in rows, predictions in columns.'
    result.curves_note = (
        'A segmentor gives every pixel one class: there is no score whose threshold a curve could vary.'
    )
    result.score_note = 'mIoU of the scene'
    return result


def _drawer(read, path, truth, labels, classes, colours, background):
    labels = labels.astype(np.int32)  # half of what is kept until the scene is drawn

    def draw():
        image = read(path)
        there = [i for i in np.union1d(truth, labels) if i < len(classes) and i not in background]
        parts = (draw_label_map(image, part, colours, background) for part in (truth, labels))
        return side_by_side(*parts, [(classes[i], colours[i]) for i in there])

    return draw
