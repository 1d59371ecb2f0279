"""Sizes, recipes and results of the published models, by the names of the configs.

Sources: the paper (tables of COCO and ADE20K) and the released recipes. The tests compare every config with this.
"""

from typing import Dict, NamedTuple, Optional, Tuple


class Size(NamedTuple):
    arch: str
    drop_path: float
    params_backbone: int  # dense prediction, four outputs


class Row(NamedTuple):
    """One published model. None stands for values that are not published."""

    size: Size
    params: Optional[float]  # M
    gflops: Optional[float]
    shape: Tuple[int, int]  # H, W of the image that gflops are for
    metrics: Dict[str, float]
    lr: float
    weight_decay: float
    exempt: str  # from weight decay: 'nothing', 'names' with 'norm', or 'names and norms', all norm layers too
    amp: bool
    batch: int  # images of 8 GPUs
    length: int  # epochs in detection, iterations in segmentation


TINY, SMALL = Size('tiny', 0.1, 12_783_776), Size('small', 0.15, 25_416_800)
BASE, LARGE = Size('base', 0.4, 52_604_680), Size('large', 0.5, 93_784_280)
# The drop path rate of Swin-S is not published for RMT.
SWIN_TINY, SWIN_SMALL = Size('swin-tiny', 0.1, 25_443_648), Size('swin-small', 0.3, 43_497_792)

_BOX_MASK = ('box AP', 'box AP50', 'box AP75', 'mask AP', 'mask AP50', 'mask AP75')
_BOX = ('box AP', 'box AP50', 'box AP75', 'box APs', 'box APm', 'box APl')


def _detector(size, params, gflops, names, metrics, lr, weight_decay=0.05, exempt='names', batch=16, length=12):
    return Row(
        size, params, gflops, (800, 1280), dict(zip(names, metrics)), lr, weight_decay, exempt, True, batch, length
    )


def _segmentor(size, params, gflops, miou, shape=(512, 2048), upernet=False):
    metrics = {} if miou is None else {'mIoU': miou}
    if upernet:
        return Row(size, params, gflops, shape, metrics, 6e-5, 0.01, 'names', True, 16, 160_000)
    return Row(size, params, gflops, shape, metrics, 1e-4, 1e-4, 'nothing', False, 16, 80_000)


def _mask(*args, **kwargs):
    return _detector(*args[:3], _BOX_MASK, *args[3:], **kwargs)


def _mask_alone(size, box_ap, mask_ap):
    """Return a row of the ablation table, which has these two figures alone."""
    return _detector(size, None, None, ('box AP', 'mask AP'), (box_ap, mask_ap), 4e-4)


def _retina(*args):
    return _detector(*args[:3], _BOX, *args[3:], weight_decay=1e-4, exempt='nothing')


_3X = dict(length=36)
ROWS: Dict[str, Row] = {
    'mask-rcnn_rmt-t_fpn_amp-1x_coco': _mask(TINY, 33, 218, (47.1, 68.8, 51.7, 42.6, 65.8, 45.9), 4e-4),
    'mask-rcnn_rmt-s_fpn_amp-1x_coco': _mask(SMALL, 46, 262, (49.0, 70.8, 53.9, 43.9, 67.8, 47.4), 4e-4),
    'mask-rcnn_rmt-b_fpn_amp-1x_coco': _mask(BASE, 73, 373, (51.1, 72.5, 56.1, 45.5, 69.7, 49.3), 4e-4),
    'mask-rcnn_rmt-l_fpn_amp-1x_coco': _mask(LARGE, 114, 557, (51.6, 73.1, 56.5, 45.9, 70.3, 49.8), 2e-4),
    'mask-rcnn_rmt-s_fpn_amp-ms-crop-3x_coco': _mask(SMALL, 46, 262, (50.7, 71.9, 55.6, 44.9, 69.1, 48.4), 4e-4, **_3X),
    'mask-rcnn_rmt-b_fpn_amp-ms-crop-3x_coco': _mask(BASE, 73, 373, (52.2, 72.9, 57.0, 46.1, 70.4, 49.9), 2e-4, **_3X),
    'mask-rcnn_rmt-l_fpn_amp-ms-crop-3x_coco': _detector(LARGE, None, None, (), (), 2e-4, batch=8, **_3X),
    'cascade-mask-rcnn_rmt-s_fpn_4conv1fc-giou_amp-ms-crop-3x_coco': _mask(
        SMALL, 83, 741, (53.2, 72.0, 57.8, 46.1, 69.8, 49.8), 4e-4, exempt='names and norms', **_3X
    ),
    'cascade-mask-rcnn_rmt-b_fpn_4conv1fc-giou_amp-ms-crop-3x_coco': _mask(
        BASE, 111, 852, (54.5, 72.8, 59.0, 47.2, 70.5, 51.4), 4e-4, exempt='names and norms', **_3X
    ),
    'mask-rcnn_rmt-swin-t_fpn_amp-1x_coco': _mask_alone(SWIN_TINY, 47.8, 43.1),
    'mask-rcnn_rmt-swin-s_fpn_amp-1x_coco': _mask_alone(SWIN_SMALL, 49.5, 44.2),
    'retinanet_rmt-t_fpn_amp-1x_coco': _retina(TINY, 23, 199, (45.1, 66.2, 48.1, 28.8, 48.9, 61.1), 4e-4),
    'retinanet_rmt-s_fpn_amp-1x_coco': _retina(SMALL, 36, 244, (47.8, 69.1, 51.8, 32.1, 51.8, 63.5), 4e-4),
    'retinanet_rmt-b_fpn_amp-1x_coco': _retina(BASE, 63, 355, (49.1, 70.3, 53.0, 32.9, 53.2, 64.2), 4e-4),
    'retinanet_rmt-l_fpn_amp-1x_coco': _retina(LARGE, 104, 537, (49.4, 70.6, 53.1, 34.2, 53.9, 65.2), 2e-4),
    'rmt-tiny_fpn_8xb2-80k_ade20k-512x512': _segmentor(TINY, 17.0, 33.7, 46.4, shape=(512, 512)),
    'rmt-small_fpn_8xb2-80k_ade20k-512x512': _segmentor(SMALL, 30, 180, 49.4),
    'rmt-base_fpn_8xb2-80k_ade20k-512x512': _segmentor(BASE, 57, 294, 50.4),
    'rmt-large_fpn_8xb2-80k_ade20k-512x512': _segmentor(LARGE, 98, 482, 51.4),
    'rmt-tiny_upernet_8xb2-amp-160k_ade20k-512x512': _segmentor(TINY, None, None, None, upernet=True),
    'rmt-small_upernet_8xb2-amp-160k_ade20k-512x512': _segmentor(SMALL, 56, 937, 49.8, upernet=True),
    'rmt-base_upernet_8xb2-amp-160k_ade20k-512x512': _segmentor(BASE, 83, 1051, 52.0, upernet=True),
    'rmt-large_upernet_8xb2-amp-160k_ade20k-512x512': _segmentor(LARGE, 125, 1241, 52.8, upernet=True),
    'rmt-swin-tiny_upernet_8xb2-amp-160k_ade20k-512x512': _segmentor(SWIN_TINY, None, None, 49.1, upernet=True),
    'rmt-swin-small_upernet_8xb2-amp-160k_ade20k-512x512': _segmentor(SWIN_SMALL, None, None, 51.0, upernet=True),
}
