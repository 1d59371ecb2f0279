"""Losses and norms of mmseg's heads that would fail at the first iteration."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from rmt_mm.training.class_check import check_heads
from rmt_mm.training.findings import collect
from rmt_mm.training.segmentor_check import check_losses, check_norms, find_batch_labels

pytest.importorskip('mmseg')

CE = dict(type='CrossEntropyLoss')


@pytest.fixture(autouse=True)
def _scope():
    from mmseg.utils import register_all_modules

    register_all_modules(init_default_scope=True)


def segmentor(loss=CE, kind='FCNHead', **kwargs):
    from mmseg.registry import MODELS

    settings = dict(type=kind, in_channels=4, channels=8, num_classes=3, norm_cfg=dict(type='BN'), loss_decode=loss)
    return nn.ModuleDict(dict(decode_head=MODELS.build({**settings, **kwargs})))


def takes_ignored_pixels(loss):
    from mmseg.registry import MODELS

    try:
        MODELS.build(loss)(torch.zeros(1, 3, 1, 2), torch.tensor([[[0, 255]]]), ignore_index=255)
    except IndexError:
        return False
    return True


def losses(model, labels=(0, 1, 2), batches=()):
    return [finding.text for finding in collect(check_losses(model, labels, 'train_dataloader', batches))]


@pytest.mark.parametrize('loss', [CE, [dict(type='DiceLoss', loss_name='loss_dice'), CE]])
def test_a_softmax_over_one_output(loss):
    data = SimpleNamespace(metainfo=dict(classes=('background', 'digit')))
    model = segmentor(loss, num_classes=2, out_channels=1)
    (finding,) = collect(check_heads(model, data, 'train_dataloader'))
    place = f'loss_decode{".1" if isinstance(loss, list) else ""}'
    assert f'set model.decode_head.{place}.use_sigmoid=True, or model.decode_head.out_channels=2' in finding.text
    sigmoid = segmentor(dict(CE, use_sigmoid=True), num_classes=2, out_channels=1)
    for fits in (segmentor(num_classes=2), sigmoid):
        assert collect(check_heads(fits, data, 'train_dataloader')) == []


def test_a_classifier_of_one_class():
    heads = pytest.importorskip('mmpretrain.models.heads')
    for count in (1, 2):
        data = SimpleNamespace(metainfo=dict(classes=('cat', 'dog')[:count]))
        found = collect(check_heads(nn.ModuleDict(dict(head=heads.LinearClsHead(count, 4))), data, 'train_dataloader'))
        assert [finding.text.split(',')[0] for finding in found] == ['model.head.num_classes is 1'] * (count == 1)


class TestLosses:
    @pytest.mark.parametrize(
        'loss',
        [
            CE,
            [CE, dict(type='DiceLoss', loss_name='loss_dice')],
            dict(CE, class_weight=[1.0, 2.0, 3.0]),
            dict(type='LovaszLoss', reduction='none', class_weight=[1.0, 2.0, 3.0]),
            dict(type='TverskyLoss', class_weight=[1.0, 2.0, 3.0]),
        ],
    )
    def test_what_fits_passes(self, loss):
        assert losses(segmentor(loss)) == []
        assert losses(segmentor(loss), (0, 255, 2)) == [] or loss == dict(CE, class_weight=[1.0, 2.0, 3.0])

    def test_the_usual_head_of_two_classes_passes(self):
        for ignored in ([], [255]):
            assert losses(segmentor(dict(CE, use_sigmoid=True), num_classes=2, out_channels=1), [0, 1, *ignored]) == []
            assert losses(segmentor(num_classes=2), [0, 1, *ignored]) == []

    @pytest.mark.parametrize('kind', ['CrossEntropyLoss', 'FocalLoss', 'LovaszLoss', 'TverskyLoss'])
    @pytest.mark.parametrize('weights', [[1.0, 2.0], [1.0, 2.0, 3.0, 4.0]])
    def test_number_of_class_weights(self, kind, weights):
        extra = dict(reduction='none') if kind == 'LovaszLoss' else {}
        (text,) = losses(segmentor([CE, dict(type=kind, class_weight=weights, loss_name='loss_b', **extra)]))
        assert f'model.decode_head.loss_decode.class_weight has {len(weights)} weights, but the head predicts 3' in text

    def test_class_weights_and_ignored_pixels(self):
        loss = dict(CE, class_weight=[1.0, 2.0, 3.0])
        if takes_ignored_pixels(loss):  # onedl-mmsegmentation
            assert losses(segmentor(loss), [0, 1, 2, 255]) == []
            return
        (text,) = losses(segmentor(loss), [0, 1, 2, 255])
        assert 'fails for the ignored pixels (255)' in text and "loss_decode.reduction='none'" in text
        assert losses(segmentor(dict(loss, reduction='none')), [0, 1, 2, 255]) == []
        (text,) = losses(segmentor(loss), batches=[{0, 1}, {2, 255}])  # from padding
        assert 'seg_pad_val' in text

    @pytest.mark.parametrize('labels', [[0, 1], [0]])
    def test_softmax_over_one_class(self, labels):
        (text,) = losses(segmentor(num_classes=1), labels)
        assert 'model.decode_head.num_classes is 1' in text and 'num_classes=2' in text

    def test_another_ignored_label(self):
        (text,) = losses(segmentor(ignore_index=100), [0, 1, 255])
        assert 'ignored pixels (255)' in text and 'ignore_index is 100' in text


def test_batches_show_padding_and_leave_the_random_state():
    from mmengine.structures import PixelData
    from mmseg.models import SegDataPreProcessor
    from mmseg.structures import SegDataSample

    class Data(list):
        def __getitem__(self, index):
            np.random.rand(), torch.rand(1)
            label = PixelData(data=torch.ones(1, 4, 4, dtype=torch.int64))
            return dict(inputs=torch.zeros(3, 4, 4), data_samples=SegDataSample(gt_sem_seg=label))

    before = np.random.get_state()[1].copy(), torch.get_rng_state()
    for size, labels in (((4, 4), {1}), ((4, 6), {1, 255})):
        preprocessor = SegDataPreProcessor(size=size, seg_pad_val=255)
        assert list(find_batch_labels(Data(range(3)), preprocessor, 2)) == [labels, labels]
    assert np.array_equal(before[0], np.random.get_state()[1]) and torch.equal(before[1], torch.get_rng_state())


class TestNorms:
    def check(self, model, batch_size=1, images=4, drop_last=False, sampler='DefaultSampler'):
        sampler = type(sampler, (), {'__len__': lambda self: images})()
        loader = SimpleNamespace(batch_size=batch_size, drop_last=drop_last, sampler=sampler)
        return [finding.text for finding in collect(check_norms(model, loader, 'train_dataloader'))]

    def upernet(self, **kwargs):
        maps = dict(in_channels=[2, 4, 6, 8], in_index=[0, 1, 2, 3])
        return segmentor(kind='UPerHead', pool_scales=(1, 2, 3, 6), **maps, **kwargs)

    @pytest.mark.parametrize('norm', ['BN', 'SyncBN'])
    def test_one_image_behind_pooling(self, norm):
        (text,) = self.check(self.upernet(norm_cfg=dict(type=norm)))
        assert 'train_dataloader: a batch has one image, and model.decode_head.psp_modules.0.1.bn' in text
        assert 'train_dataloader.batch_size=2 or more' in text and 'num_groups=8' in text
        assert self.check(segmentor(kind='PSPHead')) and self.check(segmentor(kind='ASPPHead', dilations=(1, 2)))

    def test_a_last_batch_of_one(self):
        (text,) = self.check(self.upernet(), batch_size=3)
        assert 'the last batch has one image' in text and 'drop_last=True' in text
        assert self.check(self.upernet(), batch_size=3, drop_last=True) == []
        assert self.check(self.upernet(), batch_size=3, sampler='InfiniteSampler') == []

    def test_what_trains_passes(self):
        assert self.check(self.upernet(), batch_size=2) == []
        assert self.check(self.upernet(norm_cfg=dict(type='GN', num_groups=2))) == []
        assert self.check(segmentor()) == []
        assert self.check(nn.ModuleDict(dict(bbox_head=nn.Identity()))) == []
        model = self.upernet()
        model.eval()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        self.check(model)
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
        assert not model.training
