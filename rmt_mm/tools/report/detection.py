"""Evaluate and draw the predictions of a detector, against annotations in COCO's format."""

import contextlib
import io
import os.path as osp
from typing import Any, Dict, List, Tuple

import numpy as np
import torch
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from ...errors import DataError, printable
from ..pictures import choose_colours
from .evaluation import Curve, Evaluation, Scene
from .scenes import Instances, draw_instances, side_by_side

MATCH = 0.5  # least IoU of a prediction and the truth that it finds
MISSED, NOTHING = 'missed', 'nothing there'


def evaluate(dataset: Any, samples: List[dict], threshold: float, read: Any) -> Evaluation:
    """Evaluate by pycocotools, as mmdet's CocoMetric does.

    Args:
        dataset (mmdet.datasets.CocoDataset): the validation set.
        samples (list[dict]): mmdet's data samples: ``img_id`` and ``pred_instances``, masks as RLE.
        threshold (float): least score of predictions in the confusion matrix and in pictures.
        read (Callable): reads an image from a path.

    Raises:
        DataError: the predictions are of other images or classes.
    """
    classes = list(map(printable, dataset.metainfo['classes']))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(dataset.ann_file)
    unknown = sorted({str(sample.get('img_id')) for sample in samples} - set(map(str, coco.imgs)))
    if unknown:
        raise DataError(f'the predictions are of other images than {dataset.ann_file}, such as image {unknown[0]}.')
    for sample in samples:
        _check(sample, len(classes), coco.imgs[sample['img_id']])
    result = Evaluation(classes, len(samples))
    if len(samples) < len(coco.imgs):
        result.notes.append(f'{len(coco.imgs) - len(samples)} of {len(coco.imgs)} annotated images have no prediction.')
    with_masks = all('masks' in sample['pred_instances'] for sample in samples) and any(
        annotation.get('segmentation') for annotation in coco.anns.values()
    )
    for kind, name in (('bbox', 'box'), ('segm', 'mask'))[: 2 if with_masks else 1]:
        _average_precision(coco, samples, kind, name, dataset.cat_ids, result)

    labels = {category: label for label, category in enumerate(dataset.cat_ids)}
    colours = choose_colours(len(classes), dataset.metainfo.get('palette'))
    counts = np.zeros((len(classes) + 1, len(classes) + 1), int)
    for sample in samples:
        image = coco.imgs[sample['img_id']]
        annotations = [a for a in coco.imgToAnns[image['id']] if a['category_id'] in labels and not a.get('iscrowd')]
        truth_labels = np.array([labels[a['category_id']] for a in annotations], int)
        shown = _at_least(sample['pred_instances'], threshold)
        boxes = np.array([a['bbox'] for a in annotations], float).reshape(-1, 4)
        _count(counts, _overlaps(shown['corners'], boxes), shown['labels'], truth_labels)
        truth_masks = [coco.annToRLE(a) for a in annotations] if with_masks else None
        overlaps = (
            _overlaps(shown['masks'], truth_masks) if truth_masks is not None else _overlaps(shown['corners'], boxes)
        )
        same = shown['labels'][:, None] == truth_labels[None]
        matched = match(np.where(same, overlaps, 0))
        total = len(annotations) + len(shown['labels'])
        # Panoptic quality, all classes counted together: 1 if all is found and nothing else.
        score = 2 * sum(overlaps[p, t] for p, t in matched) / total if total else 1.0
        corners = boxes + np.concatenate([np.zeros_like(boxes[:, :2]), boxes[:, :2]], 1)
        path = osp.join(dataset.data_prefix.get('img', ''), image['file_name'])
        caption = (
            f'{image["file_name"]}   quality {score:.2f}:  {len(matched)} of {len(annotations)} found, '
            f'{len(shown["labels"]) - len(matched)} wrong'
        )
        result.scenes.append(
            Scene(
                image['file_name'],
                score,
                caption,
                _drawer(read, path, corners, truth_labels, truth_masks, shown, classes, colours),
            )
        )
    result.score_note = 'panoptic quality of the scene'
    result.confusion, result.rows, result.columns = counts, [*classes, NOTHING], [*classes, MISSED]
    result.confusion_note = (
        f'Objects of the truth in rows, predictions with a score of at least {threshold:g} in columns; both are the '
        f'same object if their boxes overlap by an IoU of at least {MATCH:g}.'
    )
    result.curves_note = f'At an IoU of at least {MATCH:g}, by pycocotools.'
    return result


def _check(sample: dict, num_classes: int, image: dict) -> None:
    """Refuse predictions whose fields do not fit each other; pycocotools reads masks in C."""
    found = sample.get('pred_instances')
    if not isinstance(found, dict):
        raise DataError('the predictions have no pred_instances: they are not of a detector.')
    tensors = {key: found.get(key) for key in ('bboxes', 'scores', 'labels')}
    shapes = {key: tuple(t.shape) if isinstance(t, Tensor) else () for key, t in tensors.items()}
    count = shapes['scores'][:1]
    right = bool(count) and shapes == dict(bboxes=(*count, 4), scores=count, labels=count)
    if not right or found['labels'].dtype != torch.int64 or not found['scores'].is_floating_point():
        raise DataError(
            f'the predictions of image {image["id"]} are damaged: boxes, scores and labels differ in number.'
        )
    if count[0] and not 0 <= int(found['labels'].min()) <= int(found['labels'].max()) < num_classes:
        raise DataError(f'the predictions are of other classes than the {num_classes} of the data set.')
    masks = found.get('masks')
    if masks is None:
        return
    size = [image['height'], image['width']]
    if not isinstance(masks, list) or len(masks) != count[0]:
        raise DataError(f'the masks of image {image["id"]} are damaged: they are not as many as the boxes.')
    for mask in masks:
        if not isinstance(mask, dict) or mask.get('size') != size or not isinstance(mask.get('counts'), bytes):
            raise DataError(f'a mask of image {image["id"]} is damaged, or is not of its size.')


def _average_precision(coco: COCO, samples: List[dict], kind: str, name: str, cat_ids: list, result: Evaluation):
    """Add AP over all classes and of each, and the precision-recall curves of the last kind."""
    found = [entry for sample in samples for entry in _results(sample, kind, cat_ids)]
    if not found:
        result.notes.append('Nothing was predicted, with any score.')
        return
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator = COCOeval(coco, coco.loadRes(found), kind)
        evaluator.params.catIds = cat_ids
        evaluator.evaluate()
        evaluator.accumulate()
    # IoU thresholds, recalls, classes; all areas, 100 detections per image. -1: the class has no truth.
    precision = evaluator.eval['precision'][:, :, :, 0, -1]
    precision = np.where(precision < 0, np.nan, precision)
    by_threshold = {'AP': slice(None), 'AP50': slice(0, 1), 'AP75': slice(5, 6)}
    for short, part in by_threshold.items():
        result.summary[f'{name} {short}'] = _mean(precision[part])
    result.per_class[f'{name} AP'] = np.array([_mean(precision[:, :, k]) for k in range(len(cat_ids))])
    result.per_class[f'{name} AP50'] = np.array([_mean(precision[:1, :, k]) for k in range(len(cat_ids))])
    recall = evaluator.params.recThrs
    result.curves = [Curve(n, recall, precision[0, :, k]) for k, n in enumerate(result.classes)]
    known = ~np.isnan(precision[0]).all(0)
    if known.any():
        result.curves.insert(0, Curve(f'mean, {name}', recall, precision[0][:, known].mean(1)))


def _mean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float('nan')


def _results(sample: dict, kind: str, cat_ids: list) -> List[dict]:
    """Return predictions in COCO's format of results; masks have scores of their own in some detectors."""
    found = sample['pred_instances']
    scores = found.get('mask_scores', found['scores']) if kind == 'segm' else found['scores']
    entries: List[dict] = []
    for i, (score, label) in enumerate(zip(scores.tolist(), found['labels'].tolist())):
        entry: Dict[str, Any] = dict(image_id=sample['img_id'], category_id=cat_ids[label], score=score)
        if kind == 'segm':
            entry['segmentation'] = found['masks'][i]
        else:
            left, top, right, bottom = found['bboxes'][i].tolist()
            entry['bbox'] = [left, top, right - left, bottom - top]
        entries.append(entry)
    return entries


def _at_least(found: dict, threshold: float) -> Dict[str, Any]:
    """Return the predictions of at least a score, the best first; ``corners`` are left, top, width, height."""
    scores = found['scores'].float().numpy()
    order = [i for i in np.argsort(-scores, kind='stable') if scores[i] >= threshold]
    boxes = found['bboxes'].float().numpy().reshape(-1, 4)[order].astype(float)
    sizes = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)
    masks = found.get('masks')
    return dict(
        boxes=boxes,
        corners=sizes,
        scores=scores[order],
        labels=found['labels'].numpy()[order],
        masks=None if masks is None else [masks[i] for i in order],
    )


def _overlaps(predicted: Any, truth: Any) -> np.ndarray:
    """Return the IoU of every prediction with every object; boxes are left, top, width, height."""
    if not len(predicted) or not len(truth):
        return np.zeros((len(predicted), len(truth)))
    return np.asarray(rle.iou(predicted, truth, [0] * len(truth)))


def match(overlaps: np.ndarray) -> List[Tuple[int, int]]:
    """Return pairs of a prediction and the object that it finds: the best predictions choose first.

    Args:
        overlaps (np.ndarray): (predictions, objects), IoU; the predictions by falling score.
    """
    pairs: List[Tuple[int, int]] = []
    free = np.ones(overlaps.shape[1], bool)
    for i, row in enumerate(overlaps):
        row = np.where(free, row, 0)
        if len(row) and row.max() >= MATCH:
            pairs.append((i, int(row.argmax())))
            free[row.argmax()] = False
    return pairs


def _count(counts: np.ndarray, overlaps: np.ndarray, predicted: np.ndarray, truth: np.ndarray) -> None:
    """Add an image to the confusion matrix; its last row and column are for what has no counterpart."""
    pairs = match(overlaps)
    for p, t in pairs:
        counts[truth[t], predicted[p]] += 1
    for p in set(range(len(predicted))) - {p for p, _ in pairs}:
        counts[-1, predicted[p]] += 1
    for t in set(range(len(truth))) - {t for _, t in pairs}:
        counts[truth[t], -1] += 1


def _drawer(read, path, corners, labels, masks, shown, classes, colours):
    def draw():
        image = read(path)
        truth_masks = None if masks is None else [rle.decode(mask).astype(bool) for mask in masks]
        found_masks = None if shown['masks'] is None else [rle.decode(mask).astype(bool) for mask in shown['masks']]
        truth = Instances(corners, labels, truth_masks)
        found = Instances(shown['boxes'], shown['labels'], found_masks, shown['scores'])
        return side_by_side(*(draw_instances(image, part, classes, colours) for part in (truth, found)))

    return draw
