"""Record how geometric transforms move the pixels of an image."""

from typing import List, Optional

import cv2
import numpy as np
from mmcv.transforms import BaseTransform, RandomFlip, Resize
from mmpretrain.datasets.transforms import (
    ColorJitter,
    Lighting,
    RandomErasing,
    RandomGrayscale,
    RandomResizedCrop,
    ResizeEdge,
)
from mmpretrain.datasets.transforms.auto_augment import BaseAugTransform, RandAugment, Rotate, Shear, Translate
from mmpretrain.registry import TRANSFORMS

from ..errors import TokenLabelError

# Transforms that leave every point where it is, measured in the image's width and height.
_KEEP_PLACES = (ColorJitter, Lighting, RandomErasing, RandomGrayscale, Resize, ResizeEdge)
_MOVE = (RandomFlip, RandomResizedCrop, Rotate, Shear, Translate)


def _scale(x: float, y: float) -> np.ndarray:
    return np.diag([x, y, 1.0])


def _shift(x: float, y: float) -> np.ndarray:
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]])


def _warp_matrix(op: BaseAugTransform, height: int, width: int) -> np.ndarray:
    """Return the matrix with which OpenCV warped the image, from old to new pixel centres."""
    matrix = np.eye(3)
    if op.random_disable():
        return matrix
    if isinstance(op, Rotate):
        angle = op.random_negative(op.angle if op.angle is not None else op.random_magnitude())
        center = op.center or ((width - 1) * 0.5, (height - 1) * 0.5)
        matrix[:2] = cv2.getRotationMatrix2D(center, -angle, op.scale)
        return matrix
    magnitude = op.random_negative(op.magnitude if op.magnitude is not None else op.random_magnitude())
    axis = 0 if op.direction == 'horizontal' else 1
    if isinstance(op, Shear):
        matrix[axis, 1 - axis] = magnitude
    else:
        matrix[axis, 2] = magnitude * (width, height)[axis]
    return matrix


def _source(op: BaseTransform, results: dict, image: np.ndarray) -> np.ndarray:
    """Return the matrix from new to old places (x, y, 1), in units of the image's width and height."""
    height, width = image.shape[:2]
    if isinstance(op, RandomFlip):
        matrix = np.eye(3)
        for axis, directions in enumerate((('horizontal', 'diagonal'), ('vertical', 'diagonal'))):
            if results['flip_direction'] in directions:
                matrix[axis] = -matrix[axis]
                matrix[axis, 2] = 1
        return matrix
    if isinstance(op, RandomResizedCrop):
        top, left, crop_height, crop_width = op.rand_crop_params(image)
        return _shift(left / width, top / height) @ _scale(crop_width / width, crop_height / height)
    if isinstance(op, (Rotate, Shear, Translate)):
        backward = np.linalg.inv(_warp_matrix(op, height, width))
        # The centre of the first pixel is at (0.5, 0.5).
        backward = _shift(0.5, 0.5) @ backward @ _shift(-0.5, -0.5)
        return _scale(1 / width, 1 / height) @ backward @ _scale(width, height)
    return np.eye(3)


@TRANSFORMS.register_module()
class TrackGeometry(BaseTransform):
    """Run transforms of mmcv and mmpretrain unchanged, and record where each place of the image came from.

    The record is a list of affine matrices, ``label_transforms``, one a step. A matrix maps places (x, y, 1) of the
    step's result to places of its input, both from 0 to 1 over the whole width and height. Applied from the last to the
    first, the matrices lead to the original image; a place that leaves the image on the way shows padding. So labels on
    any grid are looked up only once, after all transforms (:class:`MakeTokenLabels` does this).

    Required keys: ``img``. Modified: those of the transforms. Added or extended: ``label_transforms``, a list of 3x3
    float64 arrays.

    Args:
        transforms (list[dict]): RandomFlip, RandAugment, Rotate, Shear, Translate, RandomResizedCrop and Resize,
            ResizeEdge (of the whole image), and transforms that change only colours.

    Raises:
        TokenLabelError: a transform of another class, which may move pixels.
    """

    def __init__(self, transforms: List[dict]) -> None:
        self.transforms = [TRANSFORMS.build(t) if isinstance(t, dict) else t for t in transforms]
        for transform in self.transforms:
            for op in transform.transforms if isinstance(transform, RandAugment) else [transform]:
                if not isinstance(op, _MOVE + _KEEP_PLACES + (BaseAugTransform,)):
                    raise TokenLabelError(
                        f'TrackGeometry does not know what {type(op).__name__} does to the geometry: '
                        'if it moves no pixels, put it after TrackGeometry in the pipeline.'
                    )

    def transform(self, results: dict) -> Optional[dict]:
        matrices = list(results.get('label_transforms', ()))
        for transform in self.transforms:
            ops = [transform]
            if isinstance(transform, RandAugment):
                ops = [transform.transforms[i] for i in transform.random_policy_indices()]
            for op in ops:
                image, before = results['img'], np.random.get_state()
                results = op(results)
                if results is None:
                    return None
                after = np.random.get_state()
                np.random.set_state(before)  # _source draws the same random numbers again
                matrices.append(_source(op, results, image))
                np.random.set_state(after)
        results['label_transforms'] = matrices
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(transforms={self.transforms})'
