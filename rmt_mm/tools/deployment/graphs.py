"""Whole models as functions of one tensor of images, which exporters record: features, classifiers, segmentors."""

from typing import Any, Dict, Sequence, Tuple

import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import UsageError
from .inputs import Preparation
from .layers import replace_layers

# Names of the axes of an output that are free in a graph for any size.
Axes = Dict[int, str]


class Graph(nn.Module):
    """A model for exporters. Subclasses compute the outputs in :meth:`forward`.

    Args:
        model (nn.Module): the model.
        prepare (Preparation): what comes before it.

    Attributes:
        task (str): 'features', 'classification', 'segmentation' or 'detection'.
        outputs (dict[str, dict]): names of the outputs, and their axes of any length.
        takes_batches (bool): takes any number of images, not only one.
        half_precision (bool): the model computes in fp16. Inputs and outputs stay fp32.
    """

    task = ''
    outputs: Dict[str, Axes] = {}
    takes_batches = True

    def __init__(self, model: nn.Module, prepare: Preparation) -> None:
        super().__init__()
        self.model, self.prepare = model, prepare
        self.half_precision = False

    def use_half(self) -> None:
        """Compute in fp16; the position tables of RMT stay fp32, as do normalisation, inputs and outputs."""
        self.model.half()
        self.half_precision = True

    def network_input(self, image: Tensor) -> Tensor:
        """Return the prepared images in the model's precision."""
        image = self.prepare(image)
        return image.half() if self.half_precision else image


class FeatureGraph(Graph):
    """The maps that a backbone, or a backbone and its neck, give to a head: level0, level1, ..., (B, C, H, W) each."""

    task = 'features'

    def __init__(self, model: nn.Module, prepare: Preparation, levels: int) -> None:
        super().__init__(model, prepare)
        self.outputs = {f'level{i}': {0: 'batch', 2: f'height{i}', 3: f'width{i}'} for i in range(levels)}

    def forward(self, image: Tensor) -> Tuple[Tensor, ...]:
        model: Any = self.model
        extract = getattr(model, 'extract_feat', model)
        maps = extract(self.network_input(image))
        return tuple(level.float() for level in maps)


class ClassifierGraph(Graph):
    """Class probabilities of an mmpretrain classifier: scores, (B, classes)."""

    task = 'classification'
    outputs = dict(scores={0: 'batch'})

    def forward(self, image: Tensor) -> Tensor:
        return F.softmax(self.model(self.network_input(image), mode='tensor').float(), dim=1)


class SegmentorGraph(Graph):
    """Class logits of every pixel of an mmseg segmentor: logits, (B, classes, H, W)."""

    task = 'segmentation'
    outputs = dict(logits={0: 'batch', 2: 'height', 3: 'width'})

    def forward(self, image: Tensor) -> Tensor:
        model: Any = self.model
        padded = self.network_input(image)
        logits = model.decode_head(model.extract_feat(padded)).float()
        logits = F.interpolate(logits, padded.shape[2:], mode='bilinear', align_corners=model.align_corners)
        height, width = self.prepare.size(image)
        return logits[:, :, :height, :width]


def classifier_graph(model: Any, prepare: Preparation) -> ClassifierGraph:
    """Return the graph of an mmpretrain classifier.

    Raises:
        UsageError: its head does not give one softmax over the classes.
    """
    from mmpretrain.models import ClsHead

    if not isinstance(getattr(model, 'head', None), ClsHead):
        kind = type(getattr(model, 'head', None)).__name__
        raise UsageError(f'a head of type {kind} cannot be exported: export its input with --part features.')
    return ClassifierGraph(model, prepare)


def segmentor_graph(model: Any, prepare: Preparation) -> SegmentorGraph:
    """Return the graph of an mmseg segmentor.

    Raises:
        UsageError: it is no EncoderDecoder with one convolutional head, such as Mask2Former or a cascade.
    """
    from mmseg.models import EncoderDecoder
    from mmseg.models.decode_heads.decode_head import BaseDecodeHead

    head = getattr(model, 'decode_head', None)
    plain = isinstance(head, BaseDecodeHead) and type(head).predict_by_feat is BaseDecodeHead.predict_by_feat
    if type(model) is not EncoderDecoder or not plain:
        raise UsageError(
            f'a {type(model).__name__} with a {type(head).__name__} cannot be exported whole: export what its head '
            'takes with --part features.'
        )
    if model.test_cfg.get('mode') == 'slide':
        raise UsageError(
            'the config predicts in windows (model.test_cfg.mode=slide), which a graph does not: add '
            '--cfg-options model.test_cfg.mode=whole, or export for the size of a window and slide in the application.'
        )
    replace_layers(model.decode_head)
    return SegmentorGraph(model, prepare)


def feature_graph(model: Any, prepare: Preparation, example: Tensor) -> FeatureGraph:
    """Return the graph of a backbone, or of a model's backbone and neck; ``example`` is what the graph takes."""
    extract = getattr(model, 'extract_feat', model)
    maps: Sequence[Tensor] = extract(prepare(example))
    return FeatureGraph(model, prepare, len(maps))
