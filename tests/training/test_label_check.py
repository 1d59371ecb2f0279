"""Labels of mmseg's and mmpretrain's data sets that would crash a loss."""

import logging
import re

import numpy as np
import pytest
from PIL import Image

from rmt_mm.training import label_check
from rmt_mm.training.findings import collect
from rmt_mm.training.label_check import check_image_labels, check_label_maps

from support.pictures import MALFORMED_EXIF, write_png


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

    def check(self, classes=('road', 'sky', 'car'), load=(), load_image=(), **kwargs):
        from mmseg.datasets import BaseSegDataset

        dataset = BaseSegDataset(
            data_root=str(self.path),
            data_prefix=dict(img_path='images', seg_map_path='labels'),
            metainfo=dict(classes=classes),
            pipeline=[dict(type='LoadImageFromFile', **dict(load_image)), dict(type='LoadAnnotations', **dict(load))],
            **kwargs,
        )
        return collect(check_label_maps(dataset, 'train_dataloader'))

    def refusal(self, **kwargs):
        (error,) = self.check(**kwargs)
        assert error.level == logging.ERROR
        assert error.text.startswith('train_dataloader: ') and '.png' in error.text
        return error.text

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
        self.write(self.labels(0, 255))
        (note,) = self.check(classes=('background', 'vessel'))
        assert note.level == logging.WARNING and 'have 0 alone, beside the ignored 255' in note.text

    def test_only_a_bounded_number_is_read(self, monkeypatch):
        self.write(*[self.labels(0, 1)] * 120)
        read = []
        real = label_check.get
        monkeypatch.setattr(label_check, 'get', lambda path: read.append(path) or real(path))
        assert self.check() == []
        assert len(read) == 50


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
