"""Compute class scores at every place of an image with a classifier that was trained to predict one class per image.

Each place of the last feature map is classified separately: the layers after the map (the pooling, which has no effect
on one place, and the classifier) run on every place as if it were a whole image.
"""

from typing import Any

from mmpretrain.models import ImageClassifier
from torch import Tensor

from .head import RMTClsHead


def dense_logits(model: ImageClassifier, inputs: Tensor) -> Tensor:
    """Classify the places of the last feature map of an mmpretrain classifier.

    Args:
        model (ImageClassifier): in eval mode.
        inputs (Tensor): preprocessed images, (B, 3, H, W).

    Returns:
        Tensor: (B, num_classes, h, w).

    Raises:
        ValueError: the backbone's last output is not a feature map, or the head returns no logits for single places.
    """
    feats = model.extract_feat(inputs, stage='backbone')
    x = feats[-1] if isinstance(feats, (tuple, list)) else feats
    if not isinstance(x, Tensor) or x.dim() != 4:
        raise ValueError(
            f'The backbone {type(model.backbone).__name__} gives no feature map (B, C, h, w) to be classified place by '
            'place. Many can: transformers with model.backbone.out_type=featmap, ConvNeXt with '
            'model.backbone.gap_before_final_norm=False.'
        )
    places = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1], 1, 1)
    if model.with_neck:
        feats = model.neck((places,))
    else:  # our heads pool; other heads without a neck take pooled features
        feats = (places if isinstance(model.head, RMTClsHead) else places.flatten(1),)
    logits = model.head(feats)
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(places):
        raise ValueError(f'The head {type(model.head).__name__} gives no logits for single places.')
    return logits.view(len(x), *x.shape[2:], -1).permute(0, 3, 1, 2)


def timm_dense_logits(model: Any, inputs: Tensor) -> Tensor:
    """Classify the places of the last feature map of a timm model; see :func:`dense_logits`."""
    x = model.forward_features(inputs)
    if x.dim() != 4:
        raise ValueError(
            f'{type(model).__name__} of timm gives no feature map to be classified place by place: take a '
            'convolutional or hierarchical model.'
        )
    channels_last = getattr(model, 'output_fmt', 'NCHW') == 'NHWC'
    x = x if channels_last else x.permute(0, 2, 3, 1)
    places = x.reshape(-1, 1, 1, x.shape[3])
    logits = model.forward_head(places if channels_last else places.permute(0, 3, 1, 2))
    return logits.view(*x.shape[:3], -1).permute(0, 3, 1, 2)
