"""Evaluate and draw the predictions of a classifier."""

import os.path as osp
from typing import Any, List

import numpy as np
import torch
from PIL import Image

from ...errors import DataError, printable
from ..pictures import scale_to
from .evaluation import Curve, Evaluation, Scene, check_order
from .scenes import SIDE, draw_probabilities, shorten, side_by_side

MAX_CURVES = 20


def evaluate(dataset: Any, samples: List[dict], threshold: float, read: Any) -> Evaluation:
    """Evaluate by mmpretrain's metrics.

    Args:
        dataset (mmpretrain.datasets.BaseDataset): the validation set; an image has one class.
        samples (list[dict]): mmpretrain's data samples, with ``pred_score``, in the data set's order.
        threshold (float): not used; the most probable class is the prediction.
        read (Callable): reads an image from a path.

    Raises:
        DataError: the predictions are of other images or classes, or images have several classes.
    """
    from mmpretrain.evaluation import Accuracy, AveragePrecision, ConfusionMatrix, SingleLabelMetric

    infos = [dataset.get_data_info(i) for i in range(len(dataset))]
    names = [osp.basename(info['img_path']) for info in infos]
    check_order(names, samples)
    if not all(isinstance(info.get('gt_label'), (int, np.integer)) for info in infos):
        raise DataError('the report takes classifiers of one class per image.')
    scores = [sample.get('pred_score') for sample in samples]
    shapes = {tuple(getattr(score, 'shape', ())) for score in scores}
    classes = list(map(printable, dataset.metainfo.get('classes') or range(max(shapes)[0] if max(shapes) else 0)))
    if shapes != {(len(classes),)}:
        raise DataError(f'the predictions are of other classes than the {len(classes)} of the data set.')
    probabilities = torch.stack(scores).float()  # type: ignore[arg-type]
    truth = torch.tensor([int(info['gt_label']) for info in infos])
    result = Evaluation(classes, len(samples))
    tops = tuple(k for k in (1, 5) if k < len(classes))
    for k, values in zip(tops, Accuracy.calculate(probabilities, truth, topk=tops)):
        result.summary[f'top-{k} accuracy'] = float(values[0])
    precision, recall, f1, support = SingleLabelMetric.calculate(probabilities, truth, average=None)[0]
    target = torch.nn.functional.one_hot(truth, len(classes))
    average = np.asarray(AveragePrecision.calculate(probabilities, target, average=None))
    columns = dict(AP=average, precision=precision, recall=recall, F1=f1, images=support)
    result.per_class = {name: np.asarray(values, float) for name, values in columns.items()}
    result.summary['mean AP'] = float(np.nanmean(average))
    result.confusion = ConfusionMatrix.calculate(probabilities, truth, len(classes)).numpy()
    result.rows = result.columns = classes
    result.confusion_note = 'Images: truth in rows, the most probable class in columns.'
    order = np.argsort(average)[:MAX_CURVES]
    result.curves = [_curve(classes[k], probabilities[:, k].numpy(), (truth == k).numpy()) for k in sorted(order)]
    result.curves_note = 'Each class against all others.'
    if len(classes) > MAX_CURVES:
        result.curves_note += f' The {MAX_CURVES} classes of the lowest AP are drawn.'
    for info, name, values, label in zip(infos, names, probabilities, truth.tolist()):
        score = float(values[label])
        caption = f'{name}   is {shorten(classes[label])} (probability {score:.3f})'
        result.scenes.append(
            Scene(name, score, caption, _drawer(read, info['img_path'], values.numpy(), label, classes))
        )
    result.score_note = 'probability of the true class'
    return result


def _curve(name: str, scores: np.ndarray, positive: np.ndarray) -> Curve:
    order = np.argsort(-scores, kind='stable')
    found = np.cumsum(positive[order])
    recall, precision = found / max(found[-1], 1), found / np.arange(1, len(found) + 1)
    # The best precision at this recall or a higher one, as COCO's curves.
    return Curve(name, recall, np.maximum.accumulate(precision[::-1])[::-1])


def _drawer(read, path, values, label, classes):
    def draw():
        image = Image.fromarray(scale_to(read(path), SIDE * 2 // 3))
        top = np.argsort(-values)[:5]
        bars = draw_probabilities([classes[i] for i in top], values[top], classes[label], (SIDE, image.height))
        return side_by_side(image, bars)

    return draw
