"""Missing files and folders are named before anything is built; those that cannot be checked are accepted."""

import json
import logging
import re

import pytest
from mmengine.config import Config
from mmengine.dataset import BaseDataset

from rmt_mm.tools.cli import UsageError, check_annotations, check_datasets
from rmt_mm.tools.cli.data_files import find_missing_annotations, find_missing_data
from rmt_mm.training.findings import collect

from support import ROOT
from support.scripts import run_script


def findings(dataset, scope=None):
    cfg = Config(dict(default_scope=scope, train_dataloader=dict(dataset=dataset)))
    return collect(find_missing_data(cfg, 'train_dataloader'))


def notes(dataset, scope=None):
    """Return the parts of a data set that are somewhere else, and are not looked at."""
    found = findings(dataset, scope)
    assert all(finding.level == logging.INFO for finding in found), found
    return [re.match('train_dataloader: (.*) (?:is|are) not on this machine', note.text)[1] for note in found]


def refusal(dataset, scope=None):
    error = findings(dataset, scope)[-1]
    assert error.level == logging.ERROR and error.text.startswith('train_dataloader: ')
    return error.text


@pytest.fixture
def root(tmp_path):
    for name in ('images', 'labels', 'train/cat'):
        (tmp_path / name).mkdir(parents=True)
    for name in ('train.json', 'train.txt'):
        (tmp_path / name).write_text('{}')
    return tmp_path


class TestDetection:
    @pytest.fixture(autouse=True)
    def _mmdet(self):
        pytest.importorskip('mmdet')

    def coco(self, root, **kwargs):
        return {
            **dict(type='CocoDataset', data_root=f'{root}/', ann_file='train.json', data_prefix=dict(img='images')),
            **kwargs,
        }

    def test_what_is_there_passes(self, root):
        datasets = (
            self.coco(root),
            self.coco(root, data_prefix=dict(img='')),
            self.coco('/nowhere', ann_file=f'{root}/train.json', data_prefix=dict(img=f'{root}/images')),
        )
        for dataset in datasets:
            assert findings(dataset, 'mmdet') == []
        (root / 'train.json').unlink()
        for dataset in datasets:
            assert f'annotation file {root}/train.json does not exist' in refusal(dataset, 'mmdet')

    @pytest.mark.parametrize(
        'changes, words',
        [
            (dict(ann_file='none.json'), 'none.json does not exist'),
            (dict(data_prefix=dict(img='none')), 'data folder .*none does not exist'),
            (dict(data_root='/nowhere/'), '/nowhere/train.json does not exist'),
        ],
    )
    def test_what_is_missing_is_named(self, root, changes, words):
        cfg = Config(dict(default_scope='mmdet', val_dataloader=dict(dataset=self.coco(root, **changes))))
        with pytest.raises(UsageError, match=f'^val_dataloader: .*{words}'):
            check_datasets(cfg, 'train_dataloader', 'val_dataloader')

    @pytest.mark.parametrize(
        'loads, is_read',
        [
            (dict(type='LoadAnnotations', with_bbox=True, with_mask=True), False),
            (dict(type='LoadAnnotations', with_seg=True), True),
            (dict(type='LoadPanopticAnnotations'), True),
        ],
    )
    def test_label_pictures_that_nobody_reads(self, root, loads, is_read):
        """mmdet's Mask2Former for instances inherits the folder of label pictures from the panoptic config."""
        prefix = dict(img='images', seg='annotations/panoptic_train2017/')
        dataset = self.coco(root, data_prefix=prefix, pipeline=[dict(type='LoadImageFromFile'), loads])
        if is_read:
            assert 'panoptic_train2017/ does not exist' in refusal(dataset, 'mmdet')
        else:
            assert findings(dataset, 'mmdet') == []

    @pytest.mark.parametrize(
        'wrap',
        [
            lambda d: dict(type='RepeatDataset', times=2, dataset=d),
            lambda d: dict(type='ClassBalancedDataset', oversample_thr=1e-3, dataset=d),
            lambda d: dict(type='ConcatDataset', datasets=[d]),
            lambda d: dict(
                type='MultiImageMixDataset',
                pipeline=[],
                dataset=dict(type='RepeatDataset', times=1, dataset=dict(type='ConcatDataset', datasets=[d])),
            ),
            lambda d: dict(d, type='mmdet.CocoDataset'),
        ],
    )
    def test_wrappers_are_searched(self, root, wrap):
        assert findings(wrap(self.coco(root)), 'mmdet') == []
        assert 'none.json' in refusal(wrap(self.coco(root, ann_file='none.json')), 'mmdet')

    def test_a_class_as_type(self, root):
        from mmdet.datasets import CocoDataset

        assert 'none.json' in refusal(dict(type=CocoDataset, ann_file='none.json'))

    @pytest.mark.parametrize(
        'changes, elsewhere',
        [
            # mmdet asks for the client of this backend to join a path, and is told by the tool's own construction.
            (dict(data_root='s3://bucket/coco/'), []),
            (
                dict(data_root='', ann_file='s3://bucket/train.json', data_prefix=dict(img='s3://bucket/images')),
                ['annotation file s3://bucket/train.json', 'data folder s3://bucket/images'],
            ),
            (
                dict(data_root='', ann_file='http://example.com/train.json', data_prefix=dict(img='')),
                ['annotation file http://example.com/train.json'],
            ),
            (dict(data_root='none', backend_args=dict(backend='petrel')), ['the data']),
            (
                dict(data_root='none', pipeline=[dict(type='LoadImageFromFile', backend_args=dict(backend='lmdb'))]),
                ['the data'],
            ),
            (dict(ann_file=['a.json', 'b.json']), []),
            (dict(data_prefix=dict(img=['a', 'b'])), []),
            (dict(data_prefix='images'), []),
            (dict(data_prefix=dict(img=None)), []),
            (dict(type='LVISDataset', data_prefix=dict(img='')), []),
            (dict(type='NobodysDataset', ann_file='none.json'), []),
            (dict(type=None, ann_file='none.json'), []),
        ],
    )
    def test_what_cannot_be_known_is_let_through(self, root, changes, elsewhere):
        assert notes(self.coco(root, **changes), 'mmdet') == elsewhere

    def test_voc_and_its_folders(self, root):
        voc = dict(type='VOCDataset', data_root=str(root), ann_file='train.txt', data_prefix=dict(sub_data_root=''))
        assert findings(voc, 'mmdet') == []
        assert 'none.txt' in refusal(dict(voc, ann_file='none.txt'), 'mmdet')

    def test_an_unknown_scope(self, root):
        assert findings(self.coco(root, ann_file='none.json'), 'nobodys_library') == []
        assert 'none.json' in refusal(self.coco(root, ann_file='none.json'), 'mmdet')

    def test_home(self, root, monkeypatch):
        """mmdet opens '~/...' without expanding it."""
        monkeypatch.setenv('HOME', str(root))
        assert f'write {root}/train.json' in refusal(self.coco('~'), 'mmdet')


class TestSegmentation:
    @pytest.fixture(autouse=True)
    def _mmseg(self):
        pytest.importorskip('mmseg')

    def test_folders(self, root):
        prefix = dict(img_path='images', seg_map_path='labels')
        ade = dict(type='ADE20KDataset', data_root=str(root), data_prefix=prefix)
        assert findings(ade, 'mmseg') == []
        assert findings(dict(ade, ann_file='images'), 'mmseg') == []
        assert 'none' in refusal(dict(ade, data_prefix=dict(prefix, seg_map_path='none')), 'mmseg')

    def test_a_data_set_that_looks_for_its_files_at_once(self, root):
        """PascalVOCDataset's assertion fails without a text."""
        prefix = dict(img_path='images', seg_map_path='labels')
        voc = dict(type='PascalVOCDataset', data_root=str(root), data_prefix=prefix)
        assert findings(dict(voc, ann_file='train.txt'), 'mmseg') == []
        assert 'none.txt does not exist' in refusal(dict(voc, ann_file='none.txt'), 'mmseg')


class TestClassification:
    @pytest.fixture(autouse=True)
    def _mmpretrain(self):
        pytest.importorskip('mmpretrain')

    @pytest.mark.parametrize('name', ['CIFAR10', 'CIFAR100', 'MNIST', 'FashionMNIST'])
    def test_what_is_downloaded_passes(self, name):
        for dataset in (dict(data_root='none', split='train'), dict(data_prefix='none')):
            assert findings(dict(dataset, type=name), 'mmpretrain') == []
            assert 'none' in refusal(dict(dataset, type=name, download=False), 'mmpretrain')

    def test_folders(self, root):
        for dataset in (
            dict(data_root=str(root), data_prefix='train'),
            dict(data_prefix=f'{root}/train'),
            dict(data_root=str(root), data_prefix=dict(img_path='train'), ann_file='train.txt'),
        ):
            assert findings(dict(dataset, type='CustomDataset'), 'mmpretrain') == []
        assert findings(dict(type='ImageNet', data_root=str(root), split='train'), 'mmpretrain') == []
        assert f'{root}/val' in refusal(dict(type='ImageNet', data_root=str(root), split='val'), 'mmpretrain')

    def test_home(self, root, monkeypatch):
        """mmpretrain expands ~ in data_prefix and ann_file, but not in data_root."""
        monkeypatch.setenv('HOME', str(root))
        assert findings(dict(type='CustomDataset', data_prefix='~/train'), 'mmpretrain') == []
        assert f'write {root}/train' in refusal(
            dict(type='CustomDataset', data_root='~', data_prefix='train'), 'mmpretrain'
        )


def test_a_reader_of_another_package_is_left_alone():
    class Made(BaseDataset):
        def load_data_list(self):
            return []

    assert findings(dict(type=Made, ann_file='none.json')) == []
    assert 'none.json' in refusal(dict(type=BaseDataset, ann_file='none.json'))


def test_files_of_metrics(root):
    for metric in (
        dict(type='CocoMetric', ann_file=f'{root}/train.json'),
        dict(type='CocoMetric'),
        dict(type='CocoMetric', ann_file=['a.json']),
        dict(type='CocoMetric', ann_file='none.json', backend_args=dict(backend='petrel')),
        [dict(type='CocoMetric', ann_file=f'{root}/train.json')],
    ):
        assert collect(find_missing_annotations(Config(dict(val_evaluator=metric)), 'val_evaluator')) == []
    elsewhere = Config(dict(val_evaluator=dict(type='CocoMetric', ann_file='s3://bucket/train.json')))
    (note,) = collect(find_missing_annotations(elsewhere, 'val_evaluator'))
    assert note.level == logging.INFO and 's3://bucket/train.json is not on this machine' in note.text
    with pytest.raises(UsageError, match='val_evaluator: annotation file none.json does not exist'):
        check_annotations(Config(dict(val_evaluator=[dict(type='CocoMetric', ann_file='none.json')])), 'val_evaluator')


@pytest.mark.parametrize('tool', ['train', 'test'])
def test_the_tools_check_the_data_of_a_strangers_config(tmp_path, tool):
    """The config has no DataCheckHook, and still the 80 classes of COCO."""
    pytest.importorskip('mmdet')
    import torch
    from PIL import Image

    Image.new('RGB', (64, 64)).save(tmp_path / '1.jpg')
    (tmp_path / 'all.json').write_text(
        json.dumps(
            dict(
                images=[dict(id=1, file_name='1.jpg', width=64, height=64)],
                annotations=[dict(id=1, image_id=1, category_id=1, bbox=[8, 8, 30, 30], area=900, iscrowd=0)],
                categories=[dict(id=1, name='cat')],
            )
        )
    )
    (tmp_path / 'config.py').write_text(f"""
default_scope = 'mmdet'
model = dict(
    type='RetinaNet',
    data_preprocessor=dict(type='DetDataPreprocessor', pad_size_divisor=32),
    backbone=dict(type='ResNet', depth=18, out_indices=(3, )),
    neck=dict(type='FPN', in_channels=[512], out_channels=8, num_outs=1),
    bbox_head=dict(type='RetinaHead', num_classes=80, in_channels=8, stacked_convs=0,
                   anchor_generator=dict(type='AnchorGenerator', ratios=[1.0], scales=[4], strides=[32])))
pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True), dict(type='PackDetInputs')]
dataset = dict(type='CocoDataset', data_root={str(tmp_path)!r}, ann_file='all.json', data_prefix=dict(img=''),
               metainfo=dict(classes=('cat', )), pipeline=pipeline)
train_dataloader = dict(batch_size=1, sampler=dict(type='DefaultSampler'), dataset=dataset)
test_dataloader = train_dataloader
train_cfg = dict(by_epoch=True, max_epochs=1)
test_cfg = dict()
test_evaluator = dict(type='CocoMetric', metric='bbox')
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1))
""")
    torch.save(dict(state_dict={'bbox_head.retina_cls.bias': torch.zeros(80)}, meta=dict()), tmp_path / 'any.pth')
    arguments = [str(tmp_path / 'any.pth')] if tool == 'test' else []
    result = run_script(
        f'tools/{tool}.py', tmp_path / 'config.py', *arguments, '--work-dir', tmp_path / 'work', cwd=ROOT
    )
    last = result.stderr.strip().splitlines()[-1]
    assert result.returncode == 1 and 'Traceback' not in result.stderr, result.stderr
    assert last.startswith('error: model.bbox_head.num_classes is 80, but the data set of ') and '1 classes' in last
