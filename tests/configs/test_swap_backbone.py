"""Read the lines of docs/swap_backbone.md from the page, and build and run each config named there."""

import math
import re
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import PixelData

from rmt_mm import get_config_path
from rmt_mm.arch import resolve_arch
from rmt_mm.tools.cli import load_config
from rmt_mm.tools.cli.runner import _adapt_to_cpu
from rmt_mm.training.config_search import find_dicts

from support.swaps import PAGE, documented_swaps, library_config, write_user_config

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')
pytest.importorskip('mmpretrain')

SWAPS = documented_swaps()
FIRST = [swap.configs[0] for swap in SWAPS]
OTHERS = [config for swap in SWAPS for config in swap.configs[1:]]
SIDE = 128
# One config of each kind of neck and head; the others are slow tests.
FAST = (
    'faster-rcnn_r50_fpn',
    'atss_r50_fpn_1x',
    'rtmdet_tiny',
    'yolov3',
    'detr_r50',
    'upernet_r50',
    'pspnet',
    'resnet50_',
    'simmim',
)
# Smaller settings of parts that cost time and that no test here depends on.
CHEAPER = dict(RandomSampler=dict(num=16), DyHead=dict(num_blocks=1))


def some_are_slow(configs):
    return [
        config
        if config in FIRST and Path(config).name.startswith(FAST)
        else pytest.param(config, marks=pytest.mark.slow)
        for config in configs
    ]


def has_constructor(config):
    """Tell whether a library's config has a constructor of its optimizer, which may know some backbones alone."""
    return 'constructor' in Config.fromfile(library_config(config)).get('optim_wrapper', {})


def test_the_page_has_a_block_for_each_family():
    assert len(SWAPS) == PAGE.read_text().count("_base_ = 'mm") >= 18
    for family in (
        'faster-rcnn',
        'atss',
        'fcos',
        'rtmdet',
        'yolox',
        'detr',
        'dino',
        'mask2former',
        'upernet',
        'fpn',
        'segformer',
        'pspnet',
        'resnet50',
        'simsiam',
    ):
        assert any(Path(config).name.startswith(family) for config in FIRST), family


def test_channels_of_the_table():
    rows = [line.split('|')[2:-1] for line in PAGE.read_text().splitlines() if line.startswith('| channels of')]
    assert [tuple(map(int, row)) for row in rows] == [
        resolve_arch(size).embed_dims for size in ('small', 'base', 'large')
    ]
    assert resolve_arch('tiny').embed_dims == resolve_arch('small').embed_dims


def test_optimizer_of_the_page_is_the_published_one(tmp_path):
    (lines,) = (
        lines
        for lines in re.findall(r'^```python\n(.*?)^```$', PAGE.read_text(), re.MULTILINE | re.DOTALL)
        if lines.startswith('optim_wrapper')
    )
    path = write_user_config('mmdet/mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', tmp_path)
    path.write_text(path.read_text() + lines)
    published = Config.fromfile(get_config_path('mask-rcnn_rmt-t_fpn_amp-1x_coco')).optim_wrapper
    given = Config.fromfile(path).optim_wrapper
    assert (given.optimizer, given.paramwise_cfg) == (published.optimizer, published.paramwise_cfg)


def make_batch(cfg):
    """Return a random batch of two, as the library's pipelines would pack it."""
    if cfg.default_scope == 'mmdet':
        from mmdet.testing import demo_mm_inputs

        pipeline = cfg.train_dataloader.dataset
        # LoadPanopticAnnotations loads masks by default.
        mask = any(find_dicts(pipeline, lambda d: d.get('with_mask', d.get('type') == 'LoadPanopticAnnotations')))
        return demo_mm_inputs(2, [(3, SIDE, SIDE)] * 2, [4, 4], num_classes=80, with_mask=mask, with_semantic=True)
    images = torch.randint(0, 256, (2, 3, SIDE, SIDE), dtype=torch.uint8)
    if cfg.default_scope == 'mmseg':
        from mmseg.structures import SegDataSample

        shapes = dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape'), (SIDE, SIDE))
        labels = [PixelData(data=torch.randint(0, 19, (1, SIDE, SIDE))) for _ in images]
        return dict(inputs=list(images), data_samples=[SegDataSample(gt_sem_seg=x, metainfo=shapes) for x in labels])
    from mmpretrain.structures import DataSample

    samples = [DataSample().set_gt_label(label) for label in range(2)]
    for sample in samples:  # blocks of 32 pixels, in tokens of 4; only SimMIM reads it
        sample.set_field(torch.eye(SIDE // 32).repeat_interleave(8, 0).repeat_interleave(8, 1), 'mask')
    views = images if cfg.model.type in ('ImageClassifier', 'SimMIM') else [images, images.flip(-1)]
    return dict(inputs=views, data_samples=samples)


def build(config, folder):
    """Build a user's config, with fewer queries, proposals and blocks."""
    cfg = Config.fromfile(write_user_config(config, folder))
    init_default_scope(cfg.default_scope)
    cfg.model.setdefault('data_preprocessor', cfg.get('data_preprocessor'))
    cfg.model.data_preprocessor.pop('batch_augments', None)
    if 'size' in cfg.model.data_preprocessor:
        cfg.model.data_preprocessor.size = (SIDE, SIDE)
    if cfg.model.get('num_queries', 0) > 300:
        cfg.model.num_queries = 100
    for part in find_dicts(cfg.model, lambda d: d.get('type') in CHEAPER):
        part.update(CHEAPER[part['type']])
    assert not cfg.model.get('pretrained')
    return cfg, revert_sync_batchnorm(MODELS.build(cfg.model)).train()


def check(config, folder):
    cfg, model = build(config, folder)
    model.init_weights()
    MessageHub.get_current_instance().update_info('epoch', 0)  # TOOD reads it
    data = model.data_preprocessor(make_batch(cfg), True)
    loss, _ = model.parse_losses(model(**data, mode='loss'))
    loss.backward()
    assert math.isfinite(loss.item())
    assert [name for name, param in model.named_parameters() if param.requires_grad and param.grad is None] == []
    # Pixels are as weights of RMT expect them.
    pixels, rgb = cfg.model.data_preprocessor, ('bgr_to_rgb', 'to_rgb')
    assert any(pixels.get(key) for key in rgb)
    assert list(pixels.mean) == pytest.approx([123.675, 116.28, 103.53], abs=1)  # YOLACT rounds them
    assert list(pixels.std) == pytest.approx([58.395, 57.12, 57.375], abs=1)
    # Heads that state strides get maps of these strides.
    generators = [module.prior_generator for module in model.modules() if hasattr(module, 'prior_generator')]
    maps = model.extract_feat(data['inputs']) if generators else ()
    for generator in generators:
        strides = [stride if isinstance(stride, int) else stride[0] for stride in generator.strides]
        # YOLACT's strides are not whole numbers; a wrong output would be wrong by a factor of 2.
        sides = [stride * m.shape[-1] for stride, m in zip(strides, maps)]
        assert sides == pytest.approx([SIDE] * len(strides), rel=0.3)


@pytest.mark.parametrize('config', [config for config in FIRST + OTHERS if has_constructor(config)])
def test_constructors_take_rmt(config, tmp_path):
    cfg, model = build(config, tmp_path)
    cfg.launcher = 'none'
    _adapt_to_cpu(cfg)
    assert build_optim_wrapper(model, cfg.optim_wrapper).param_groups


@pytest.mark.parametrize('config', some_are_slow(FIRST + OTHERS))
def test_tools_take_the_lines(config, tmp_path):
    path = write_user_config(config, tmp_path)
    load_config(Namespace(config=str(path), cfg_options={}, work_dir=str(tmp_path), launcher='none', local_rank=0))


@pytest.mark.parametrize('config', some_are_slow(FIRST + OTHERS))
def test_lines_of_the_page(config, tmp_path):
    check(config, tmp_path)
