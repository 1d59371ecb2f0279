"""Labels of mmseg's and mmpretrain's data sets that would crash a loss."""

import logging
import re
from types import SimpleNamespace

import numpy as np
import pytest
from mmengine.fileio import dump
from PIL import Image

from rmt_mm.training import label_check
from rmt_mm.training.findings import collect
from rmt_mm.training.label_check import (
    check_counted_labels,
    check_image_labels,
    check_label_maps,
    check_scored_labels,
    check_suffixes,
    check_zero_label,
)

from support.pictures import MALFORMED_EXIF, write_png


class TestSuffixes:
    """Images that a data set leaves out in silence, since their names end otherwise."""

    def check(self, dataset):
        return [finding.text for finding in collect(check_suffixes(dataset, 'train_dataloader'))]

    def test_of_segmentation(self, tmp_path):
        pytest.importorskip('mmseg')
        from mmseg.datasets import BaseSegDataset

        for name in ('a.jpg', 'b.png', 'c.JPG', 'sub/d.jpeg', 'notes.txt'):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
        prefix = dict(img_path=str(tmp_path), seg_map_path=None)
        (text,) = self.check(BaseSegDataset(data_prefix=prefix, pipeline=[]))
        assert '3 of 4 images' in text and "train_dataloader.dataset.img_suffix is '.jpg'" in text and 'b.png' in text
        # Label maps beside the images are used.
        dataset = BaseSegDataset(data_prefix=dict(prefix, seg_map_path=str(tmp_path)), pipeline=[])
        assert '2 of 4' in self.check(dataset)[0]
        (tmp_path / 'list.txt').write_text('a')
        assert self.check(BaseSegDataset(ann_file=str(tmp_path / 'list.txt'), data_prefix=prefix, pipeline=[])) == []

    def test_of_classification(self, tmp_path):
        pytest.importorskip('mmpretrain')
        from mmpretrain.datasets import CustomDataset

        for name in ('cat/a.jpg', 'dog/b.PNG'):
            (tmp_path / name).parent.mkdir()
            (tmp_path / name).touch()
        assert self.check(CustomDataset(data_prefix=str(tmp_path), pipeline=[])) == []
        (tmp_path / 'dog/c.gif').touch()
        (text,) = self.check(CustomDataset(data_prefix=str(tmp_path), pipeline=[]))
        assert '1 of 3 images' in text and 'c.gif' in text and 'dataset.extensions' in text


class TestLabelMaps:
    @pytest.fixture(autouse=True)
    def _scope(self, tmp_path):
        pytest.importorskip('mmseg')
        from mmseg.utils import register_all_modules

        register_all_modules(init_default_scope=True)
        self.path = tmp_path

    def write(self, *label_maps, size=(8, 6)):
        for folder in ('images', 'labels'):
            (self.path / folder).mkdir(exist_ok=True)
        for i, label_map in enumerate(label_maps):
            Image.new('RGB', size).save(self.path / f'images/{i}.jpg')
            image = label_map if isinstance(label_map, Image.Image) else Image.fromarray(np.asarray(label_map))
            image.save(self.path / f'labels/{i}.png')

    def check(self, classes=('road', 'sky', 'car'), load=(), load_image=(), num_classes=None, **kwargs):
        from mmseg.datasets import BaseSegDataset

        dataset = BaseSegDataset(
            data_root=str(self.path),
            data_prefix=dict(img_path='images', seg_map_path='labels'),
            metainfo=dict(classes=classes) if classes else None,
            pipeline=[dict(type='LoadImageFromFile', **dict(load_image)), dict(type='LoadAnnotations', **dict(load))],
            **kwargs,
        )
        return collect(check_label_maps(dataset, 'train_dataloader', num_classes=num_classes))

    def refusal_text(self, **kwargs):
        (error,) = self.check(**kwargs)
        assert error.level == logging.ERROR and error.text.startswith('train_dataloader: ')
        return error.text

    def refusal(self, **kwargs):
        text = self.refusal_text(**kwargs)
        assert '.png' in text
        return text

    def labels(self, *values, dtype=np.uint8):
        return np.resize(np.array(values, dtype), (6, 8))

    def test_good_labels_pass_in_silence(self):
        self.write(self.labels(0, 1, 255), self.labels(2, 1))
        assert self.check() == []

    def test_values_out_of_range(self):
        self.write(self.labels(0, 1), self.labels(0, 3, 7, 255))
        text = self.refusal()
        assert '1.png has the values 3, 7, but the 3 classes are 0 to 2, and 255 is ignored' in text
        assert self.check(ignore_index=3, classes=tuple('abcdefgh')) == []

    def test_zero_label_is_reduced_first(self):
        self.write(self.labels(0, 1, 2, 3))
        assert self.check(reduce_zero_label=True) == []
        assert 'values 3' in self.refusal()
        self.write(self.labels(0, 1, 2, 4))
        assert 'values 3' in self.refusal(reduce_zero_label=True)

    @pytest.mark.parametrize('size', [(1, 1), (1, 6), (8, 1)])
    def test_a_side_of_one_pixel(self, size):
        """mmseg's LoadAnnotations takes this side away."""
        self.write(np.zeros(size[::-1], np.uint8), size=size)
        assert f'is {size[0]} x {size[1]} pixels, and LoadAnnotations takes none' in self.refusal()

    def test_numbered_from_one(self):
        self.write(self.labels(1, 2, 3))
        assert 'set reduce_zero_label=True' in self.refusal()

    def test_colours(self):
        self.write(np.zeros((6, 8, 3), np.uint8))
        assert '0.png has 3 channels' in self.refusal()

    def test_a_palette_is_no_colours(self):
        image = Image.fromarray(self.labels(0, 1, 2), 'P')
        image.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200])
        self.write(image)
        assert self.check() == []
        assert '3 channels' in self.refusal(load=dict(imdecode_backend='cv2'))  # as OpenCV decodes it

    def test_sixteen_bits(self):
        self.write(self.labels(0, 256, dtype=np.uint16))  # mmseg would read 0 for 256
        assert 'values up to 256' in self.refusal()

    def test_another_size(self):
        self.write(self.labels(0, 1), size=(16, 12))
        assert '0.png is 8 x 6 pixels, and its image' in self.refusal() and '16 x 12' in self.refusal()

    def test_missing_and_broken(self):
        self.write(self.labels(0, 1))
        (self.path / 'labels/0.png').unlink()
        assert '0.png of image' in self.refusal() and 'does not exist' in self.refusal()

    def test_images_are_read_as_the_pipeline_reads_them(self):
        self.write(self.labels(0, 1))
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.new('RGB', (8, 6)).save(self.path / 'images/0.jpg', exif=exif)
        assert '0.png is 8 x 6 pixels, and its image' in self.refusal()
        assert self.check(load_image=dict(color_type='color_ignore_orientation')) == []

    @pytest.mark.parametrize('exif', MALFORMED_EXIF)
    def test_malformed_exif_of_a_label_map(self, exif):
        self.write(self.labels(0, 1))
        write_png(self.path / 'labels/0.png', 8, 6, exif)
        assert all(finding.level < logging.ERROR for finding in self.check())

    def test_a_label_map_beyond_the_limit_of_pillow(self, monkeypatch):
        self.write(self.labels(0, 1))
        monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 20)
        assert "Pillow reads up to 40 pixels: set imdecode_backend='cv2'" in self.refusal()
        assert self.check(load=dict(imdecode_backend='cv2')) == []

    def test_nothing_but_ignored_is_noted(self):
        self.write(self.labels(1, 255))
        (note,) = self.check(classes=('background', 'vessel'))
        assert note.level == logging.WARNING and 'have 1 alone, beside the ignored 255' in note.text
        self.write(self.labels(255))
        assert 'have no class alone' in self.refusal_text(classes=('background', 'vessel'))
        (note,) = self.check(classes=('background', 'vessel'), test_mode=True)
        assert note.level == logging.WARNING

    def test_masks_of_0_and_255(self):
        self.write(self.labels(0, 255), self.labels(0))
        for classes in (('background', 'vessel'), ('vessel',)):
            text = self.refusal_text(classes=classes)
            assert 'hold 0 and 255 alone, and 255 is ignored' in text and 'such as 1' in text
            assert 'hold 0 and 255 alone' in self.refusal_text(classes=classes, reduce_zero_label=True)
        self.write(self.labels(0, 255), self.labels(0, 1))
        assert self.check(classes=('background', 'vessel')) == []

    def test_classes_of_the_head_count_if_the_data_name_none(self):
        self.write(self.labels(0, 7))
        assert self.check(classes=None) == []
        (error,) = self.check(classes=None, num_classes=5)
        assert 'the values 7, but the 5 classes are 0 to 4' in error.text

    def test_only_a_bounded_number_is_read(self, monkeypatch):
        self.write(*[self.labels(0, 1)] * 120)
        read = []
        real = label_check.get
        monkeypatch.setattr(label_check, 'get', lambda path: read.append(path) or real(path))
        assert self.check() == []
        assert len(read) == 50


def test_ignored_labels_that_the_metric_counts():
    metric = type('IoUMetric', (), dict(format_only=False, ignore_index=255))()
    data = SimpleNamespace(metainfo=dict(classes=('road', 'sky')))
    assert collect(check_counted_labels(metric, {0, 1, 255}, data, 'val_evaluator')) == []
    (error,) = collect(check_counted_labels(metric, {0, 1, 100}, data, 'val_evaluator'))
    assert error.level == logging.ERROR and 'set val_evaluator.ignore_index=100' in error.text
    metric.ignore_index = 0
    (note,) = collect(check_counted_labels(metric, {0, 1}, data, 'val_evaluator'))
    assert note.level == logging.WARNING and "the class 'road'" in note.text


def test_zero_label_of_training_and_validation():
    train, other = SimpleNamespace(reduce_zero_label=True), SimpleNamespace(reduce_zero_label=False)
    (error,) = collect(check_zero_label(train, other, 'val_dataloader'))
    assert error.level == logging.ERROR and 'reduce_zero_label is False, and True in train_dataloader' in error.text
    assert collect(check_zero_label(train, train, 'val_dataloader')) == []


class TestImageLabels:
    @pytest.fixture(autouse=True)
    def _file(self, tmp_path):
        pytest.importorskip('mmpretrain')
        self.path = tmp_path

    def check(self, *labels, classes=('cat', 'dog'), num_classes=None, **kwargs):
        from mmpretrain.datasets import CustomDataset

        (self.path / 'train.txt').write_text('\n'.join(f'{i}.jpg {label}' for i, label in enumerate(labels)))
        dataset = CustomDataset(
            data_root=str(self.path),
            ann_file='train.txt',
            metainfo=dict(classes=classes) if classes else None,
            **kwargs,
        )
        return collect(check_image_labels(dataset, 'train_dataloader', num_classes))

    def test_good_labels_pass(self):
        assert self.check(0, 1, 1) == []
        assert self.check(0, 1, 7, classes=None) == []
        assert self.check(0, -1, test_mode=True) == []

    @pytest.mark.parametrize('label', [2, 99, -1])
    def test_a_label_of_no_class(self, label):
        (error,) = self.check(0, label)
        assert re.match(rf'train_dataloader: image .*1.jpg has label {label} in .*train.txt', error.text)

    def test_classes_of_the_head_count_if_the_data_name_none(self):
        (error,) = self.check(0, 7, classes=None, num_classes=5)
        assert re.search('has label 7 .* but the 5 classes are 0 to 4', error.text)


class TestScoredLabels:
    """Labels that mmpretrain's metrics cannot score, or score wrongly."""

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path):
        pytest.importorskip('mmpretrain')
        self.folder = tmp_path

    def check(self, labels, metric=None, **kwargs):
        from mmpretrain.datasets import CustomDataset, MultiLabelDataset
        from mmpretrain.evaluation import Accuracy

        if labels and isinstance(labels[0], list):
            data = [dict(img_path=f'{i}.jpg', gt_label=label) for i, label in enumerate(labels)]
            dump(dict(metainfo=dict(classes=('cat', 'dog')), data_list=data), self.folder / 'val.json')
            dataset = MultiLabelDataset(data_root=str(self.folder), ann_file='val.json', test_mode=True, **kwargs)
        else:
            (self.folder / 'val.txt').write_text('\n'.join(f'{i}.jpg {label}' for i, label in enumerate(labels)))
            dataset = CustomDataset(data_root=str(self.folder), ann_file='val.txt', test_mode=True, **kwargs)
        return collect(check_scored_labels(metric or Accuracy(), dataset, 'val_evaluator'))

    def test_labels_of_classes_pass(self):
        from mmpretrain.evaluation import AveragePrecision, MultiLabelMetric

        assert self.check([0, 1, 1]) == []
        assert self.check([[0], [1]]) == []
        for metric in AveragePrecision(), MultiLabelMetric():
            assert self.check([[0, 1], []], metric) == []
        assert self.check([-1], metric=SimpleNamespace()) == []

    def test_no_labels(self):
        (error,) = self.check(['', ''], with_label=False)
        assert error.level == logging.ERROR
        assert re.search('Accuracy compares .* 2 of 2 images of .*val.txt have none', error.text)

    def test_a_transform_of_the_user_may_set_labels(self):
        own = type('SetLabel', (), dict(__module__='mine', __call__=lambda self, results: results))()
        assert self.check(['', ''], with_label=False, pipeline=[own]) == []

    def test_negative_labels(self):
        (error,) = self.check([0, -1, -1])
        assert error.level == logging.ERROR
        assert '2 of 3 images' in error.text and 'Accuracy counts as a wrong prediction' in error.text

    @pytest.mark.parametrize('name', ['Accuracy', 'SingleLabelMetric', 'ConfusionMatrix'])
    def test_several_labels_for_a_metric_of_one(self, name):
        import mmpretrain.evaluation

        (error,) = self.check([[0], [0, 1], []], getattr(mmpretrain.evaluation, name)())
        assert f'{name} takes one label for each image, and 2 of 3 images' in error.text
        assert "'MultiLabelMetric'" in error.text
