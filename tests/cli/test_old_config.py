"""Configs of mmdet 2 and mmseg 0, and the arguments of the authors' backbone, are answered with what replaces them."""

import functools
import re
import sys

import pytest
from mmengine.config import Config

import rmt_mm
from rmt_mm.arch import ARCHS, SCALARS
from rmt_mm.errors import UsageError
from rmt_mm.tools import cli
from rmt_mm.tools.cli.old_config import OLD_KEYS, old_name
from rmt_mm.tools.commands import train

from support import ROOT

OLD = """
model = dict(type='MaskRCNN', backbone=dict(type='RMT', embed_dims=[64, 128, 256, 512], use_checkpoint=False))
optimizer = dict(type='AdamW', lr=1e-4)
runner = dict(type='EpochBasedRunner', max_epochs=12)
data = dict(samples_per_gpu=2, train=dict(type='CocoDataset', img_prefix='x'))
fp16 = dict()
"""
UNREADABLE = ['raise StopIteration\n', 'a = 1 / 0\n', "_base_ = ['../_base_/none.py']\n", 'undefined_name\n']


def refused(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError) as caught:
        cli.read_config(str(tmp_path / name))
    return str(caught.value)


@pytest.mark.parametrize('start', ['', *UNREADABLE])
def test_an_old_config(tmp_path, start):
    sentence = refused(tmp_path, 'maskrcnn_t_1x.py', start + OLD)
    assert 'mmdet 2 or mmseg 0' in sentence and 'optimizer, runner' in sentence and 'docs/old_configs.md' in sentence
    assert 'ours of the same model is mask-rcnn_rmt-t_fpn_amp-1x_coco,' in sentence


@pytest.mark.parametrize(
    'name, ours',
    [
        ('maskrcnn_s_3x', 'mask-rcnn_rmt-s_fpn_amp-ms-crop-3x_coco'),
        ('cascade_mask_rcnn_b_3x', 'cascade-mask-rcnn_rmt-b_fpn_4conv1fc-giou_amp-ms-crop-3x_coco'),
        ('retinanet_l_1x', 'retinanet_rmt-l_fpn_amp-1x_coco'),
        ('RMT_Uper_s_2x', 'rmt-small_upernet_8xb2-amp-160k_ade20k-512x512'),
        ('RMT_Swin_Uper_s_2x', 'rmt-swin-small_upernet_8xb2-amp-160k_ade20k-512x512'),
        ('RMT_FPN_b_1x', 'rmt-base_fpn_8xb2-80k_ade20k-512x512'),
    ],
)
def test_the_same_model_of_ours(tmp_path, name, ours):
    assert f'ours of the same model is {ours},' in refused(tmp_path, f'{name}.py', OLD)


@pytest.mark.parametrize('name', ['mine', 'swin_Uper_s_2x'])
def test_a_model_that_is_not_ours(tmp_path, name):
    assert 'docs/model_zoo.md' in refused(tmp_path, f'{name}.py', OLD)


@pytest.mark.parametrize('start', UNREADABLE)
def test_other_unreadable_configs_keep_their_error(tmp_path, start):
    assert 'cannot be read' in refused(tmp_path, 'config.py', f'{start}model = dict()\n')


def test_old_keys_in_a_new_config(tmp_path, capsys):
    base = rmt_mm.get_config_path('rmt-tiny_fpn_8xb2-80k_ade20k-512x512')
    path = tmp_path / 'config.py'
    path.write_text(
        f"_base_ = '{base}'\nfp16 = dict()\noptimizer = dict(lr=1)\noptim_wrapper = dict(optimizer=optimizer)\n"
    )
    cli.read_config(str(path))
    notes = capsys.readouterr().err
    assert "sets 'fp16'" in notes and 'AmpOptimWrapper' in notes and "'optimizer'" not in notes


def check(**backbone):
    cfg = Config(dict(default_scope='mmdet', model=dict(backbone={'type': 'rmt_mm.RMT', **backbone})))
    cli.check_backbones(cfg, 'config.py')


def test_arguments_of_the_old_backbone():
    with pytest.raises(UsageError) as caught:
        check(
            embed_dims=[64, 128, 256, 512], depths=[3, 4, 18, 4], chunkwise_recurrents=[True] * 4, use_checkpoint=True
        )
    sentence = str(caught.value)
    assert sentence.startswith('model.backbone has arguments') and 'with_cp=True for use_checkpoint' in sentence
    arch = eval(re.search(r'arch=(dict\(.*?\)) for embed_dims, depths, chunkwise', sentence)[1])
    small = {key: value for key, value in ARCHS['small']._asdict().items() if key not in SCALARS}
    assert arch == {**small, 'embed_dims': [64, 128, 256, 512], 'depths': [3, 4, 18, 4], 'decomposed': [True] * 4}
    check(arch=arch, with_cp=True)


@pytest.mark.parametrize(
    'old, new',
    [
        (dict(layer_init_values=1e-6), 'layer_scale_init=1e-06'),
        (dict(in_chans=4), 'in_channels=4'),
        (dict(arch='RMT_B'), "write arch='base' for arch='RMT_B'"),
        (dict(arch='rmt-swin-s'), "write arch='swin-small' for arch='rmt-swin-s'"),
        (dict(type='RMT_L', use_checkpoint=True), "write type='RMT', arch='large' for type='RMT_L'; with_cp=True"),
        (dict(type='mmdet.RMT_Swin'), "write type='RMT', arch='swin-tiny' for type='mmdet.RMT_Swin'"),
        (dict(layerscales=[False] * 4, arch='s'), "(the same as arch='small')"),
        (dict(heads_ranges=[5, 5, 6, 6], depths=[4, 8, 25, 8], embed_dims=[80, 160, 320, 512]), "arch='base'"),
    ],
)
def test_each_argument_of_the_old_backbone(old, new):
    with pytest.raises(UsageError, match='docs/old_configs.md') as caught:
        check(**old)
    assert new in str(caught.value) and all(key in str(caught.value) for key in old)


def test_the_page_lists_every_field():
    page = (ROOT / 'docs/old_configs.md').read_text()
    assert [key for key in OLD_KEYS if f'`{key}`' not in page] == []


@pytest.mark.parametrize('name', ['RMT', 'RMT_', 'RMT_X', 'RMT_Swin_L', 'RMT_Bx', 'SwinTransformer', None])
def test_other_names_are_no_names_of_the_authors(name):
    assert old_name(name) == ''


def new_options():
    """Return what the page gives as --cfg-options in place of old commands."""
    rows = re.findall(r'^\| .* \| .*?`--cfg-options ([^`]+)`', (ROOT / 'docs/old_configs.md').read_text(), re.MULTILINE)
    assert len(rows) >= 6
    return rows


@pytest.mark.parametrize('options', new_options())
def test_options_of_the_page_are_accepted(options, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['train.py', 'rmt-digits', '--cfg-options', *options.split()])
    args = train.parse_args()
    args.work_dir = str(tmp_path)
    cfg = cli.load_config(args)
    for option in options.split():
        key, value = option.split('=')
        assert str(functools.reduce(lambda node, name: node[name], key.split('.'), cfg)) == value
    assert 'note: --cfg-options' not in capsys.readouterr().err
