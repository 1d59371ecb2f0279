"""Make the soft targets of an image's tokens from its label map."""

import functools
import math
from typing import Sequence, Tuple

import numpy as np
import torch
import torch.nn.functional as F
from mmcv.transforms import BaseTransform
from mmpretrain.registry import TRANSFORMS
from torch import Tensor

from ..errors import TokenLabelError
from .label_map import load_label_map


def crop_label_map(
    label_map: Tensor, matrices: Sequence[np.ndarray], size: Tuple[int, int], num_classes: int
) -> Tensor:
    """Average a label map over the cells of a grid laid on the transformed image.

    For a box without rotation and shear this equals RoIAlign with its adaptive number of samples. A cell's share
    outside the original image counts as zero for all classes.

    Args:
        label_map (Tensor): (2, k, h, w), as :mod:`rmt_mm.classification.label_map` describes it.
        matrices (Sequence[ndarray]): ``label_transforms`` of :class:`TrackGeometry`.
        size (tuple[int]): cells of the grid, (height, width).
        num_classes (int): number of classes.

    Returns:
        Tensor: scores, (num_classes, height, width).
    """
    scores, indices = label_map[0], label_map[1].long()
    present, positions = indices.unique(return_inverse=True)  # a few of the 1000 classes; the others stay zero
    dense = scores.new_zeros(len(present), *scores.shape[1:]).scatter_(0, positions, scores)

    # Take enough samples that neighbours are at most one cell of the label map apart, as RoIAlign does.
    whole = functools.reduce(np.matmul, matrices, np.diag([scores.shape[2], scores.shape[1], 1.0]))
    lengths = np.linalg.norm(whole[:2, :2], axis=0) / np.array([size[1], size[0]])
    samples_x, samples_y = (max(1, math.ceil(length - 1e-6)) for length in lengths)
    x = (torch.arange(size[1] * samples_x) + 0.5) / (size[1] * samples_x)
    y = (torch.arange(size[0] * samples_y) + 0.5) / (size[0] * samples_y)
    places = torch.stack((x.expand(len(y), -1), y[:, None].expand(-1, len(x))), dim=-1)  # (rows, columns, 2)
    inside = places.new_ones(places.shape[:2])
    for matrix in reversed(matrices):
        affine = torch.from_numpy(matrix).to(places)
        places = places @ affine[:2, :2].T + affine[:2, 2]
        inside = inside * ((places >= 0) & (places <= 1)).all(-1)

    sampled = F.grid_sample(dense[None], 2 * places[None] - 1, padding_mode='border', align_corners=False)
    cells = F.avg_pool2d(sampled * inside, (samples_y, samples_x))[0]
    return cells.new_zeros(num_classes, *size).index_copy_(0, present, cells)


@TRANSFORMS.register_module()
class LoadLabelMap(BaseTransform):
    """Load the label map of an image.

    Required keys: ``label_map_path`` (:class:`TokenLabelDataset` sets it) and, for error messages, ``img_path``. Added:
    ``label_map`` (fp32 Tensor, (2, k, h, w)).

    Args:
        num_classes (int): number of classes that the model has.

    Raises:
        TokenLabelError: see :func:`rmt_mm.classification.label_map.load_label_map`.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes

    def transform(self, results: dict) -> dict:
        if 'label_map_path' not in results:
            raise TokenLabelError(
                'LoadLabelMap needs label_map_path: use TokenLabelDataset or TokenLabelImageNet, '
                'with label_map_path in data_prefix.'
            )
        results['label_map'] = load_label_map(results['label_map_path'], self.num_classes, results.get('img_path', ''))
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(num_classes={self.num_classes})'


@TRANSFORMS.register_module()
class MakeTokenLabels(BaseTransform):
    """Make soft targets for the image's tokens, and for the whole image, from the label map after all transforms.

    Average the scores over each token's cell, take the softmax over classes, multiply by
    ``1 - smoothing + smoothing / K``, and add ``smoothing / K``, for K classes (released code).

    Required keys: ``img``, ``label_map``, ``label_transforms``. Added, as fp32 Tensors: ``token_score``,
    (K, H / stride, W / stride), and ``class_score``, (K, ). Give both to ``PackInputs(algorithm_keys=...)``.

    Args:
        num_classes (int): number of classes K.
        stride (int): side of a token in pixels. Default 32, the stride of the last stage.
        smoothing (float): label smoothing. Default 0.1.

    Raises:
        TokenLabelError: ``stride`` does not divide the image, or a key is missing.
    """

    def __init__(self, num_classes: int, stride: int = 32, smoothing: float = 0.1) -> None:
        self.num_classes = num_classes
        self.stride = stride
        self.smoothing = smoothing

    def transform(self, results: dict) -> dict:
        for key, source in (('label_map', 'LoadLabelMap'), ('label_transforms', 'TrackGeometry')):
            if key not in results:
                raise TokenLabelError(
                    f'MakeTokenLabels needs {key}, which {source} adds: put it before it in the pipeline.'
                )
        height, width = results['img'].shape[:2]
        if height % self.stride or width % self.stride:
            raise TokenLabelError(
                f'Token labels need an image whose height and width are multiples of {self.stride}, '
                f'got {height} x {width}: change the scale of RandomResizedCrop.'
            )
        for key, size in (('token_score', (height // self.stride, width // self.stride)), ('class_score', (1, 1))):
            scores = crop_label_map(results['label_map'], results['label_transforms'], size, self.num_classes)
            off = self.smoothing / self.num_classes
            results[key] = scores.softmax(0) * (1 - self.smoothing + off) + off
        results['class_score'] = results['class_score'].flatten()
        return results

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(num_classes={self.num_classes}, stride={self.stride}, smoothing={self.smoothing})'
        )
