"""Whole detectors as graphs of standard operators: dense heads (RetinaNet, FCOS, ...), Faster and Mask R-CNN.

The libraries' own post-processing branches on values (are there boxes? are there more than nms_pre?), which a recorder
would fix to one answer. These graphs compute the same boxes without branches, with torchvision's NMS and RoIAlign, for
which ONNX has operators.
"""

from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from ...errors import UsageError
from .graphs import Graph
from .inputs import Preparation

ROUTE = 'export its backbone and neck with --part features, and compute the rest in the application.'


def detector_graph(model: Any, prepare: Preparation) -> Graph:
    """Return the graph of an mmdet detector.

    Raises:
        UsageError: the detector needs more than standard operators, or a kind of post-processing that is not here; the
            message names the part, and the route that remains.
    """
    from mmdet.models import FasterRCNN, MaskRCNN, SingleStageDetector

    if type(model) in (FasterRCNN, MaskRCNN):
        _check_two_stages(model)
        return RegionGraph(model, prepare)
    if isinstance(model, SingleStageDetector) and _has_plain_predictions(getattr(model, 'bbox_head', None)):
        _check_nms(model.test_cfg.nms)
        _check_coder(model.bbox_head)
        return DenseGraph(model, prepare)
    heads = [getattr(model, name, None) for name in ('roi_head', 'bbox_head', 'panoptic_head', 'mask_head')]
    head = next((type(head).__name__ for head in heads if head is not None), 'no head')
    raise UsageError(f'a {type(model).__name__} ({head}) cannot be exported whole: {ROUTE}')


def _has_plain_predictions(head: Any) -> bool:
    """Tell whether a dense head predicts as mmdet's base class does: RetinaNet's, FCOS's, ATSS's and others."""
    from mmdet.models.dense_heads.base_dense_head import BaseDenseHead

    names = ('predict_by_feat', '_predict_by_feat_single', '_bbox_post_process')
    return (
        isinstance(head, BaseDenseHead)
        and all(getattr(type(head), name) is getattr(BaseDenseHead, name) for name in names)
        and not getattr(head.loss_cls, 'custom_cls_channels', False)
    )


def _check_two_stages(model: Any) -> None:
    from mmdet.models import BBoxHead, FCNMaskHead, RPNHead, SingleRoIExtractor, StandardRoIHead

    roi = model.roi_head
    wanted = [(model.rpn_head, RPNHead), (roi, StandardRoIHead), (roi.bbox_roi_extractor, SingleRoIExtractor)]
    if roi.with_mask:
        wanted.append((roi.mask_head, FCNMaskHead))
        if not roi.share_roi_extractor:
            wanted.append((roi.mask_roi_extractor, SingleRoIExtractor))
    others = [type(part).__name__ for part, kind in wanted if type(part) is not kind]
    predict = '_predict_by_feat_single'
    if (
        getattr(type(roi.bbox_head), predict, None) is not getattr(BBoxHead, predict)
        or roi.bbox_head.custom_cls_channels
    ):
        others.append(type(roi.bbox_head).__name__)
    if getattr(roi, 'with_shared_head', False):
        others.append('shared_head')
    if others:
        raise UsageError(f'{", ".join(others)} of a {type(model).__name__} cannot be exported: {ROUTE}')
    for head in (model.rpn_head, roi.bbox_head):
        _check_coder(head)
    for cfg in (model.test_cfg.rpn.nms, model.test_cfg.rcnn.nms):
        _check_nms(cfg)


def _check_nms(cfg: Any) -> None:
    if cfg is None or cfg.get('type', 'nms') != 'nms':
        kind = None if cfg is None else cfg.type
        raise UsageError(f'test_cfg has nms of type {kind}, for which ONNX has no operator: set type=nms, or {ROUTE}')


def _check_coder(head: Any) -> None:
    if not getattr(head.bbox_coder, 'clip_border', True):
        raise UsageError(
            f'{type(head).__name__}.bbox_coder.clip_border is False, which a graph does not support: {ROUTE}'
        )


def clip(boxes: Tensor, limits: Tensor) -> Tensor:
    """Clip boxes (N, 4) to ``limits``, the tensor (width, height, width, height)."""
    return torch.minimum(boxes.clamp(min=0), limits)


def suppress(
    boxes: Tensor, scores: Tensor, groups: Tensor, limits: Tensor, cfg: Any, min_size: float, at_most: int
) -> Tensor:
    """Return the indices of the boxes that NMS keeps in each group (class or level), the best first.

    Args:
        boxes (Tensor): (N, 4), within ``limits``.
        scores, groups (Tensor): (N, ).
        limits (Tensor): (width, height, width, height).
        cfg (dict): ``iou_threshold``, ``class_agnostic``.
        min_size (float): least width and height, exclusive; below 0, any.
        at_most (int): number of boxes to keep; 0 or less: all.
    """
    from torchvision.ops import nms

    index: Optional[Tensor] = None
    if min_size >= 0:
        index = ((boxes[:, 2:] - boxes[:, :2]) > min_size).all(1).nonzero().squeeze(1)
        boxes, scores, groups = boxes[index], scores[index], groups[index]
    if not cfg.get('class_agnostic', False):  # move every group to a place of its own
        boxes = boxes + (groups.to(boxes) * (limits.max() + 1))[:, None]
    kept = nms(boxes, scores, float(cfg.get('iou_threshold', cfg.get('iou_thr'))))
    if at_most > 0:
        kept = kept[:at_most]
    return kept if index is None else index[kept]


def limits_of(height: Any, width: Any) -> Tensor:
    """Return (width, height, width, height), fp32, of sizes that are integers or, while recorded, tensors."""
    sides = [torch.as_tensor(side).to(torch.float32) for side in (width, height)]
    return torch.stack(sides * 2)


def to_float(levels: Sequence[Tensor]) -> List[Tensor]:
    """Return every map in fp32, for post-processing."""
    return [level.float() for level in levels]


def priors_of(head: Any, maps: Sequence[Tensor]) -> List[Tensor]:
    """Return the anchors or points of every level of a dense head."""
    return head.prior_generator.grid_priors([level.shape[-2:] for level in maps], torch.float32, maps[0].device)


def rows(level: Tensor, columns: int) -> Tensor:
    """Return a head's output of the first image, (1, anchors * columns, H, W), as rows (H * W * anchors, columns)."""
    return level[0].permute(1, 2, 0).reshape(-1, columns)


def above(scores: Tensor, threshold: float) -> Tuple[Tensor, Tensor, Tensor]:
    """Return scores above a threshold, their rows and their columns; ``scores`` is (N, classes)."""
    flat = scores.flatten()
    index = (flat > threshold).nonzero().squeeze(1)
    return flat[index], index // scores.shape[1], index % scores.shape[1]


class DenseGraph(Graph):
    """A detector with one dense head: boxes (N, 4), left, top, right, bottom; scores (N, ); labels (N, ).

    Boxes are in pixels of the image that goes in. It takes one image.
    """

    task = 'detection'
    outputs = dict(boxes={0: 'detections'}, scores={0: 'detections'}, labels={0: 'detections'})
    takes_batches = False

    def forward(self, image: Tensor) -> Tuple[Tensor, ...]:
        model: Any = self.model
        head, cfg = model.bbox_head, model.test_cfg
        limits = limits_of(*self.prepare.size(image))
        outs = head(model.extract_feat(self.network_input(image)))
        cls_scores, box_preds, *factors = map(to_float, outs)
        found = []
        for level, priors in enumerate(priors_of(head, cls_scores)):
            scores = rows(cls_scores[level], head.cls_out_channels)
            scores = scores.sigmoid() if head.use_sigmoid_cls else scores.softmax(-1)[:, :-1]
            score, index, label = above(scores, cfg.get('score_thr', 0))
            score, order = score.sort(descending=True)
            if cfg.get('nms_pre', -1) > 0:
                score, order = score[: cfg.nms_pre], order[: cfg.nms_pre]
            index, label = index[order], label[order]
            deltas = rows(box_preds[level], head.bbox_coder.encode_size)[index]
            if factors:  # FCOS's centerness
                score = score * factors[0][level][0].permute(1, 2, 0).reshape(-1).sigmoid()[index]
            found.append((clip(head.bbox_coder.decode(priors[index], deltas), limits), score, label))
        boxes, scores, labels = (torch.cat(parts) for parts in zip(*found))
        kept = suppress(boxes, scores, labels, limits, cfg.nms, cfg.get('min_bbox_size', -1), cfg.max_per_img)
        return boxes[kept], scores[kept], labels[kept]


def pool(extractor: nn.Module, maps: Sequence[Tensor], boxes: Tensor) -> Tensor:
    """Return the features (N, C, h, w) of boxes (N, 4) of one image, each from the level that its size selects."""
    from torchvision.ops import roi_align

    layers: Any = extractor.roi_layers
    rois = torch.cat([torch.zeros_like(boxes[:, :1]), boxes], dim=1)
    levels = extractor.map_roi_levels(rois, len(layers))  # type: ignore[operator]
    parts, order = [], []
    for level, layer in enumerate(layers):
        index = (levels == level).nonzero().squeeze(1)
        settings = (layer.output_size, layer.spatial_scale, layer.sampling_ratio, layer.aligned)
        parts.append(roi_align(maps[level].float(), rois[index], *settings))
        order.append(index)
    return torch.cat(parts)[torch.cat(order).argsort()]


class RegionGraph(Graph):
    """Faster or Mask R-CNN: boxes (N, 4), scores (N, ), labels (N, ), and masks (N, h, w), probabilities in the box.

    Boxes are in pixels of the image that goes in. It takes one image.
    """

    task = 'detection'
    takes_batches = False

    def __init__(self, model: Any, prepare: Preparation) -> None:
        super().__init__(model, prepare)
        names = ('boxes', 'scores', 'labels', *(['masks'] if model.roi_head.with_mask else []))
        self.outputs: Dict[str, Dict[int, str]] = {name: {0: 'detections'} for name in names}

    def forward(self, image: Tensor) -> Tuple[Tensor, ...]:
        model: Any = self.model
        limits = limits_of(*self.prepare.size(image))
        maps = model.extract_feat(self.network_input(image))
        boxes, scores, labels = self._classify(maps, self._propose(maps, limits), limits)
        if not model.roi_head.with_mask:
            return boxes, scores, labels
        return boxes, scores, labels, self._mask(maps, boxes, labels)

    def _propose(self, maps: Sequence[Tensor], limits: Tensor) -> Tensor:
        model: Any = self.model
        head, cfg = model.rpn_head, model.test_cfg.rpn
        cls_scores, box_preds = map(to_float, head(maps))
        found = []
        for level, priors in enumerate(priors_of(head, cls_scores)):
            scores = rows(cls_scores[level], head.cls_out_channels)
            scores = scores.sigmoid()[:, 0] if head.use_sigmoid_cls else scores.softmax(-1)[:, 0]
            scores, order = scores.sort(descending=True)
            if cfg.nms_pre > 0:
                scores, order = scores[: cfg.nms_pre], order[: cfg.nms_pre]
            deltas = rows(box_preds[level], head.bbox_coder.encode_size)[order]
            boxes = clip(head.bbox_coder.decode(priors[order], deltas), limits)
            found.append((boxes, scores, torch.full_like(order, level)))
        boxes, scores, levels = (torch.cat(parts) for parts in zip(*found))
        return boxes[suppress(boxes, scores, levels, limits, cfg.nms, cfg.get('min_bbox_size', -1), cfg.max_per_img)]

    def _classify(self, maps: Sequence[Tensor], proposals: Tensor, limits: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        model: Any = self.model
        head, cfg = model.roi_head.bbox_head, model.test_cfg.rcnn
        extractor = model.roi_head.bbox_roi_extractor
        pooled = pool(extractor, maps[: extractor.num_inputs], proposals)
        logits, deltas = to_float(head(pooled.to(maps[0].dtype)))
        scores, index, labels = above(logits.softmax(-1)[:, :-1], cfg.score_thr)
        deltas = deltas.reshape(-1, 1 if head.reg_class_agnostic else head.num_classes, head.bbox_coder.encode_size)
        deltas = deltas[index, 0] if head.reg_class_agnostic else deltas[index, labels]
        boxes = clip(head.bbox_coder.decode(proposals[index], deltas), limits)
        kept = suppress(boxes, scores, labels, limits, cfg.nms, -1, cfg.max_per_img)
        return boxes[kept], scores[kept], labels[kept]

    def _mask(self, maps: Sequence[Tensor], boxes: Tensor, labels: Tensor) -> Tensor:
        model: Any = self.model
        roi = model.roi_head
        extractor = roi.bbox_roi_extractor if roi.share_roi_extractor else roi.mask_roi_extractor
        pooled = pool(extractor, maps[: extractor.num_inputs], boxes)
        masks = roi.mask_head(pooled.to(maps[0].dtype)).float().sigmoid()
        if roi.mask_head.class_agnostic:
            return masks[:, 0]
        return masks[torch.arange(labels.shape[0]), labels]
