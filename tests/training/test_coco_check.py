"""Annotation files that mmdet's CocoDataset would silently misread, or crash on without naming them."""

import copy
import json
import logging
import shlex
import subprocess
import sys

import pytest
from PIL import Image

pytest.importorskip('mmdet')

from mmdet.datasets import CocoDataset  # noqa: E402
from mmdet.evaluation import CocoMetric  # noqa: E402
from pycocotools import mask  # noqa: E402

from rmt_mm.errors import DataError  # noqa: E402
from rmt_mm.training import coco_check, image_size  # noqa: E402
from rmt_mm.training.coco_check import (  # noqa: E402
    CocoCheck,
    check_categories,
    check_evaluated_images,
    check_learnable,
    check_yielded_images,
    is_plain_coco,
)
from rmt_mm.training.findings import collect, report  # noqa: E402

from support.pictures import MALFORMED_EXIF, write_png  # noqa: E402

SQUARE = [[4, 4, 20, 4, 20, 20, 4, 20]]


def content(boxes=((4, 4, 16, 16), (40, 30, 20, 10), (10, 30, 30, 12), (30, 2, 8, 40)), size=(64, 48)):
    """Return the content of a file with one image per two boxes."""
    images = [dict(id=i + 1, file_name=f'{i}.png', width=size[0], height=size[1]) for i in range((len(boxes) + 1) // 2)]
    annotations = [
        dict(
            id=10 + i,
            image_id=i // 2 + 1,
            category_id=1 + i % 2,
            bbox=list(box),
            area=box[2] * box[3],
            segmentation=SQUARE,
            iscrowd=0,
        )
        for i, box in enumerate(boxes)
    ]
    return dict(images=images, annotations=annotations, categories=[dict(id=1, name='cat'), dict(id=2, name='dog')])


class Folder:
    """A data set of two images on disk."""

    def __init__(self, path):
        self.path = path

    def write(self, data, name='train.json'):
        (self.path / name).write_text(data if isinstance(data, str) else json.dumps(data))
        for image in data.get('images', ()) if isinstance(data, dict) else ():
            if 'file_name' in image:
                Image.new('RGB', (64, 48)).save(self.path / image['file_name'])

    def dataset(self, name='train.json', classes=('cat', 'dog'), masks=True, kind=CocoDataset, **kwargs):
        pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True, with_mask=masks)]
        return kind(
            ann_file=name,
            data_root=str(self.path),
            data_prefix=dict(img=''),
            pipeline=pipeline,
            metainfo=dict(classes=classes),
            lazy_init=True,
            **kwargs,
        )


@pytest.fixture
def folder(tmp_path):
    from mmdet.utils import register_all_modules

    register_all_modules(init_default_scope=True)
    return Folder(tmp_path)


def findings(dataset):
    return collect(CocoCheck(dataset, 'train_dataloader').run())


def refusal(dataset):
    error = findings(dataset)[-1]
    assert error.level == logging.ERROR
    assert error.text.startswith('train_dataloader: ') and '\n' not in error.text
    return error.text


def notes(dataset):
    found = findings(dataset)
    assert all(finding.level < logging.ERROR for finding in found), found
    return [finding.text for finding in found]


def test_a_good_file_passes_in_silence(folder):
    folder.write(content())
    check = CocoCheck(folder.dataset(), 'train_dataloader')
    assert collect(check.run()) == []
    assert [image['file_name'] for image in check.images] == ['0.png', '1.png'] and check.labels == ('cat', 'dog')
    assert [annotation['id'] for annotation in check.annotations] == [10, 11, 12, 13]


def change(key, index, **values):
    def apply(data):
        for name, value in values.items():
            if value is KeyError:
                del data[key][index][name]
            else:
                data[key][index][name] = value

    return apply


def drop(key):
    return lambda data: data.pop(key)


@pytest.mark.parametrize(
    'spoil, words',
    [
        (drop('images'), "has no 'images'"),
        (drop('categories'), "has no 'categories'"),
        (drop('annotations'), "has no 'annotations'"),
        (change('images', 1, height=KeyError), "has no 'height' for image 2"),
        (change('images', 1, width=KeyError), "has no 'width' for image 2"),
        (change('images', 0, file_name=KeyError), "has no 'file_name' for image 1"),
        (change('images', 1, width='64'), "gives image 2 width '64'"),
        (change('images', 1, id=1), 'more than one image with id 1'),
        (change('categories', 1, name=KeyError), "has no 'name' for category 2"),
        (change('categories', 1, id=1), 'more than one category with id 1'),
        (change('categories', 1, name='cat'), "more than one category called 'cat'"),
        (change('annotations', 2, area=KeyError), "has no 'area' for annotation 12 (1 of 4)"),
        (change('annotations', 2, bbox=KeyError), "has no 'bbox' for annotation 12"),
        (change('annotations', 2, category_id=KeyError), "has no 'category_id' for annotation 12"),
        (change('annotations', 2, image_id=KeyError), "has no 'image_id' for annotation 12"),
        (change('annotations', 2, segmentation=KeyError), 'has no segmentation for annotation 12'),
        (change('annotations', 2, segmentation=[]), 'has no segmentation for annotation 12'),
        (change('annotations', 2, segmentation=SQUARE[0]), 'annotation 12 that is neither a list of polygons'),
        (change('annotations', 2, segmentation=dict(size=[4, 4], counts=[16])), 'segmentation of [4, 4] pixels'),
        (change('annotations', 2, segmentation=dict(counts=[3072])), 'add "size": [48, 64] (height, width'),
        (change('annotations', 2, segmentation=dict(counts='abc')), 'add "size": [48, 64]'),
        (change('annotations', 2, segmentation=dict(size=[48, 64])), 'neither a list of run lengths nor a text: None'),
        (change('annotations', 2, segmentation=dict(size=[48, 64], counts=[-1, 3073])), 'annotation 12 with "counts"'),
        (change('annotations', 2, segmentation=dict(size=[48, 64], counts=[2, 2])), 'add up to 4, and its image has'),
        (change('annotations', 2, segmentation=dict(size=[48, 64], counts='abc')), 'annotation 12 whose counts cannot'),
        (change('annotations', 2, id=10), 'more than one annotation with id 10'),
        (change('annotations', 2, category_id=7), 'gives annotation 12 category_id 7, which no category has'),
        (change('annotations', 2, bbox=[1, 2, float('nan'), 4]), 'gives annotation 12 the bbox [1, 2, nan, 4]'),
        (change('annotations', 2, bbox=[1, 2, 3]), 'gives annotation 12 the bbox [1, 2, 3]'),
        (change('annotations', 2, bbox=[1, 2, '3', 4]), "gives annotation 12 the bbox [1, 2, '3', 4]"),
        (change('annotations', 2, bbox=None), 'gives annotation 12 the bbox None'),
        (change('annotations', 2, area=float('inf')), 'gives annotation 12 the area inf'),
        (change('annotations', 2, area=None), 'gives annotation 12 the area None'),
        (change('annotations', 2, image_id=[1]), 'gives annotation 12 the image_id [1]'),
        (change('annotations', 2, area=10**400), 'gives annotation 12 the area 1000'),
        (change('annotations', 2, bbox=[1, 2, 10**400, 4]), 'gives annotation 12 the bbox [1, 2, 1000'),
        (
            change('annotations', 2, segmentation=[[1, 1, {}, 4, 5, 6]]),
            'annotation 12 with coordinates that are no num',
        ),
        (change('annotations', 2, segmentation=[[1, 1, float('inf'), 4, 5, 6]]), 'annotation 12 with coordinates'),
        (change('annotations', 2, segmentation=[[1, 1, 2**31, 4, 5, 6]]), 'numbers of at most 1,000,000 pixels'),
        (
            change('annotations', 2, segmentation=dict(size=[48, 64], counts=[0.5, 3071.5])),
            'annotation 12 with "counts"',
        ),
        (
            change('annotations', 2, segmentation=dict(size=[48, 64], counts=[10**400])),
            '12 whose run lengths add up to',
        ),
    ],
)
def test_broken_entries_are_named(folder, spoil, words):
    data = content()
    spoil(data)
    folder.write(data)
    text = refusal(folder.dataset())
    assert words in text and 'train.json' in text


@pytest.mark.parametrize(
    'text, words',
    [
        ('{"images": ' + '9' * 5000 + '}', 'cannot be read: ValueError'),
        ('[' * 10**5, 'cannot be read: RecursionError'),
        (json.dumps(content())[:-30], 'ends too early'),
        ('', 'is empty'),
        ('<html>', 'is not valid JSON'),
        ('[]', 'holds a list'),
    ],
)
def test_no_coco_file_at_all(folder, text, words):
    folder.write(text)
    assert words in refusal(folder.dataset()) and 'train.json' in refusal(folder.dataset())


def test_text_of_any_length_is_a_message(folder):
    data = content()
    data['annotations'][0]['category_id'] = 'x' * 10**6
    folder.write(data)
    with pytest.raises(DataError) as raised:
        report(CocoCheck(folder.dataset(), 'train_dataloader').run())
    assert len(str(raised.value)) < 5000 and str(raised.value).endswith('(they have 1, 2).')


@pytest.mark.parametrize(
    'convert, words',
    [
        (lambda x, y, w, h: (x, y, x + w, y + h), 'look like [x1, y1, x2, y2]'),
        (lambda x, y, w, h: (x / 64, y / 48, w / 64, h / 48), 'boxes from 0 to 1'),
        (lambda x, y, w, h: (x + 640, y, w, h), 'leave their image'),
        (lambda x, y, w, h: (10 * x, 10 * y, 10 * w, 10 * h), 'leave their image'),
        (lambda x, y, w, h: (x, y, -w, h), 'narrower or lower than a pixel'),
        (lambda x, y, w, h: (x, y, w, 0), 'narrower or lower than a pixel'),
    ],
)
def test_boxes_of_another_kind(folder, convert, words):
    data = content()
    for annotation in data['annotations']:
        annotation['bbox'] = convert(*annotation['bbox'])
    folder.write(data)
    assert words in refusal(folder.dataset())


def test_no_area_anywhere(folder):
    data = content()
    for annotation in data['annotations']:
        annotation['area'] = 0
    folder.write(data)
    assert '4 without an area' in refusal(folder.dataset())


@pytest.mark.parametrize(
    'values, words',
    [
        (dict(bbox=[10, 30, 0, 12]), '1 of 4 boxes that CocoDataset leaves out (1 narrower'),
        (dict(bbox=[70, 30, 10, 12]), '1 outside their image'),
        (dict(bbox=[50, 30, 30, 12]), '1 of 4 boxes that leave their image, such as annotation 12'),
        (dict(image_id=99), '1 of 4 annotations an image_id that no image has, such as annotation 12'),
    ],
)
def test_what_may_be_is_noted(folder, values, words):
    data = content()
    data['annotations'][2].update(values)
    folder.write(data)
    found = notes(folder.dataset())
    assert any(words in note and 'train.json' in note for note in found), found


def test_boxes_that_are_ignored_are_not_looked_at(folder):
    data = content()
    data['annotations'][2] = dict(id=12, image_id=1, category_id=1, ignore=1)
    folder.write(data)
    assert findings(folder.dataset()) == []
    data['annotations'][2]['ignore'] = 0
    folder.write(data)
    assert "no 'bbox' for annotation 12" in refusal(folder.dataset())


def test_run_lengths_are_masks(folder):
    whole = dict(size=[48, 64], counts=[100, 200, 2772])
    encoded = dict(mask.frPyObjects(whole, 48, 64), size=[48, 64])
    encoded['counts'] = encoded['counts'].decode()
    data = content()
    data['annotations'][1]['segmentation'], data['annotations'][2]['segmentation'] = whole, encoded
    folder.write(data)
    assert findings(folder.dataset()) == []


@pytest.mark.parametrize('number, level', [(1, logging.WARNING), (3, logging.ERROR)])
def test_run_lengths_that_are_not_read_are_counted(folder, number, level):
    data = content()
    for annotation in data['annotations'][:number]:
        annotation['segmentation'] = dict(size=[48, 64], counts=[100, 200, 2772])
    folder.write(data)
    dataset = folder.dataset()
    dataset.pipeline.transforms[1].poly2mask = False
    (finding,) = findings(dataset)
    assert finding.level == level and f'{number} of 4' in finding.text and 'set poly2mask=True' in finding.text
    for annotation in data['annotations'][:number]:
        annotation['iscrowd'] = 1  # whose masks are not trained on
    folder.write(data)
    assert findings(dataset) == []


def test_boxes_alone_need_no_segmentation(folder):
    data = content()
    for annotation in data['annotations']:
        del annotation['segmentation']
    folder.write(data)
    assert findings(folder.dataset(masks=False)) == []
    assert 'has no segmentation for annotation 10' in refusal(folder.dataset(masks=True))


@pytest.mark.parametrize('classes', [('cat', 'dgo'), ('dgo', 'cat'), ('cta', 'dog')])
def test_a_misspelt_class(folder, classes):
    folder.write(content())
    wrong, right = next((c, r) for c, r in (('dgo', 'dog'), ('cta', 'cat')) if c in classes)
    text = refusal(folder.dataset(classes=classes))
    assert repr(wrong) in text and f'did you mean {right!r}' in text


def test_the_eighty_classes_of_coco_left_in(folder):
    folder.write(content())
    dataset = CocoDataset(ann_file=str(folder.path / 'train.json'), lazy_init=True)
    text = refusal(dataset)
    assert "'person'" in text and '78 of 80' in text and 'cat, dog' in text


def test_a_category_twice_and_one_of_them_unused(folder):
    data = content()
    data['categories'] = [dict(id=key, name='facade') for key in (0, 1, "x'y")]
    for annotation in data['annotations']:
        annotation['category_id'] = 1
    folder.write(data)
    text = refusal(folder.dataset(classes=('facade',)))
    assert """id 0 has no annotation, id 1 has 4 annotations, id "x'y" has no annotation; remove""" in text
    command = shlex.split(text.split('by the command python ')[1].split(' (which')[0])
    subprocess.run([sys.executable, *command], check=True)
    assert findings(folder.dataset(classes=('facade',))) == []


def test_a_category_twice_and_both_used(folder):
    data = content()
    data['categories'][1]['name'] = 'cat'
    folder.write(data)
    text = refusal(folder.dataset(classes=('cat',)))
    assert 'id 1 has 2 annotations, id 2 has 2 annotations; rename all but one' in text


def test_a_category_twice_without_annotations(folder):
    data = content()
    data['categories'][1]['name'] = 'cat'
    del data['annotations']
    folder.write(data)
    text = refusal(folder.dataset(classes=('cat',), test_mode=True))
    assert 'id 2 has no annotation; remove' in text and 'not in [2]' in text


def test_a_subset_of_the_categories_may_be_trained(folder):
    folder.write(content())
    check = CocoCheck(folder.dataset(classes=('dog',)), 'train_dataloader')
    assert collect(check.run()) == [] and check.labels == ('dog',)


def test_a_class_without_annotations_may_come_last(folder):
    """In training, the labels of the others are unchanged; in a test, predictions of this class would have no name."""
    folder.write(content())
    assert "'fish'" in notes(folder.dataset(classes=('cat', 'dog', 'fish')))[0]
    assert "'fish'" in refusal(folder.dataset(classes=('cat', 'dog', 'fish'), test_mode=True))


def test_labels_follow_the_file(folder):
    folder.write(content())
    check = CocoCheck(folder.dataset(classes=('dog', 'cat')), 'train_dataloader')
    assert 'should be cat, dog' in collect(check.run())[0].text and check.labels == ('cat', 'dog')
    assert len(notes(folder.dataset(classes=('dog', 'cat')))) == 1


def test_no_annotation_of_a_class(folder):
    data = content()
    for annotation in data['annotations']:
        annotation['category_id'] = 1
    folder.write(data)
    assert 'annotations of cat alone' in refusal(folder.dataset(classes=('dog',)))


def test_sizes_of_images(folder):
    folder.write(content())
    Image.new('RGB', (128, 96)).save(folder.path / '1.png')
    assert '1.png is 128 x 96, not 64 x 48' in refusal(folder.dataset())
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new('RGB', (48, 64)).save(folder.path / '1.png', exif=exif)  # 64 x 48 when loaded
    assert findings(folder.dataset()) == []
    Image.new('RGB', (64, 48)).save(folder.path / '1.png', exif=exif)
    assert 'EXIF' in notes(folder.dataset())[0]


def test_images_are_read_as_the_pipeline_reads_them(folder):
    folder.write(content())
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new('RGB', (64, 48)).save(folder.path / '1.png', exif=exif)
    dataset = folder.dataset()
    load = dataset.pipeline.transforms[0]
    load.color_type = 'color_ignore_orientation'
    assert findings(dataset) == []
    Image.new('RGB', (48, 64)).save(folder.path / '1.png', exif=exif)  # which the pipeline does not turn
    assert '1.png is 48 x 64, not 64 x 48' in refusal(dataset)


@pytest.mark.parametrize('exif', MALFORMED_EXIF)
def test_malformed_exif_is_the_backends_affair(folder, exif):
    folder.write(content())
    write_png(folder.path / '1.png', 64, 48, exif)
    assert findings(folder.dataset()) == []
    dataset = folder.dataset()
    dataset.pipeline.transforms[0].imdecode_backend = 'pillow'
    found = findings(dataset)
    assert not found or '1.png cannot be read' in found[-1].text


def test_an_image_beyond_the_limit_of_a_backend(folder, monkeypatch):
    folder.write(content())
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1000)  # Pillow refuses twice as many
    assert findings(folder.dataset()) == []
    dataset = folder.dataset()
    dataset.pipeline.transforms[0].imdecode_backend = 'pillow'
    assert "Pillow reads up to 2000 pixels: set imdecode_backend='cv2'" in refusal(dataset)
    write_png(folder.path / '0.png', 8, 8)
    broken = bytearray((folder.path / '0.png').read_bytes())
    broken[16:24] = (40000).to_bytes(4, 'big') * 2  # width and height
    (folder.path / '0.png').write_bytes(broken)
    text = refusal(folder.dataset())
    assert '0.png cannot be read' in text


def test_a_cut_off_image(folder):
    folder.write(content())
    whole = (folder.path / '0.png').read_bytes()
    (folder.path / '0.png').write_bytes(whole[:30])
    assert '0.png cannot be read: it is damaged, or no image that cv2 reads' in refusal(folder.dataset())


def test_a_missing_image(folder):
    folder.write(content())
    (folder.path / '0.png').unlink()
    assert '0.png cannot be read' in refusal(folder.dataset())


def test_only_a_bounded_number_of_images_is_opened(folder, monkeypatch):
    boxes = [(4, 4, 16, 16)] * 400
    folder.write(content(boxes))
    opened = []
    real = image_size.read_image_size
    monkeypatch.setattr(coco_check, 'read_image_size', lambda load, path: opened.append(path) or real(load, path))
    assert findings(folder.dataset()) == []
    assert len(opened) == 50 and opened[0].endswith('/0.png') and opened[-1].endswith('/199.png')


def test_a_test_needs_no_annotations(folder):
    data = content()
    del data['annotations']
    folder.write(data)
    check = CocoCheck(folder.dataset(test_mode=True), 'test_dataloader')
    assert collect(check.run()) == [] and len(check.images) == 2
    assert "has no 'annotations'" in refusal(folder.dataset())


def test_a_file_elsewhere_is_let_through(folder):
    dataset = folder.dataset()
    dataset.ann_file = 'http://example.com/train.json'
    assert notes(dataset) == [
        'train_dataloader: http://example.com/train.json is not on this machine and is not checked.'
    ]


def test_other_readers_are_left_alone():
    """A subclass that reads boxes in its own way may accept any form of them."""

    class Corners(CocoDataset):
        def parse_data_info(self, raw_data_info):
            return super().parse_data_info(raw_data_info)

    class Same(CocoDataset):
        METAINFO = dict(classes=('cat',))

    assert is_plain_coco(Same(lazy_init=True)) and is_plain_coco(CocoDataset(lazy_init=True))
    assert not is_plain_coco(Corners(lazy_init=True))
    from mmdet.datasets import CocoPanopticDataset, LVISV1Dataset, Objects365V1Dataset, VOCDataset

    for kind in (CocoPanopticDataset, LVISV1Dataset, Objects365V1Dataset):
        assert not is_plain_coco(kind(data_prefix=dict(img='', seg=''), lazy_init=True))
    assert not is_plain_coco(VOCDataset(data_prefix=dict(sub_data_root='VOC2007/'), lazy_init=True))


class TestEvaluatedImages:
    @pytest.fixture
    def data(self, folder):
        folder.write(content())
        check = CocoCheck(folder.dataset(), 'val_dataloader')
        assert collect(check.run()) == []
        return check

    def metric(self, folder, data, **kwargs):
        folder.write(data, 'other.json')
        return CocoMetric(ann_file=str(folder.path / 'other.json'), **kwargs)

    def findings(self, metric, data):
        return collect(check_evaluated_images(metric, data, 'val_evaluator'))

    def test_a_copy_passes(self, folder, data):
        metric = self.metric(folder, content(), metric=['bbox', 'segm'])
        assert self.findings(metric, data) == []
        metric._coco_api.imgs[1]['file_name'] = 'other.png'
        assert len(self.findings(metric, data)) == 1

    def test_a_metric_that_takes_the_file_of_the_data_set(self, data):
        assert self.findings(CocoMetric(), data) == []

    @pytest.mark.parametrize(
        'spoil, words',
        [
            (change('images', 0, file_name='other.png'), "has no image 1 called '0.png'"),
            (change('images', 1, id=3), "has no image 2 called '1.png'"),
            (lambda data: data['images'].append(dict(data['images'][0], id=7)), 'has 1 images more'),
        ],
    )
    def test_other_images(self, folder, data, spoil, words):
        other = copy.deepcopy(content())
        spoil(other)
        (error,) = self.findings(self.metric(folder, other), data)
        assert error.level == logging.ERROR and words in error.text
        assert error.text.startswith('val_evaluator: ') and 'another file' in error.text

    def test_other_boxes_of_the_same_images_are_noted(self, folder, data):
        assert self.findings(self.metric(folder, content()), data) == []
        (note,) = self.findings(self.metric(folder, content([(1, 1, 8, 8)] * 4)), data)
        assert note.level == logging.WARNING and 'has other boxes' in note.text

    def test_masks(self, folder, data):
        other = content()
        del other['annotations'][1]['segmentation']
        assert self.findings(self.metric(folder, other, metric='bbox'), data) == []
        (error,) = self.findings(self.metric(folder, other, metric='segm'), data)
        assert (
            error.level == logging.ERROR
            and 'ann_file of CocoMetric has no segmentation for annotation 11' in error.text
        )

    @pytest.mark.parametrize(
        'segmentation, words',
        [
            (dict(counts=[3072]), 'of run lengths without a size: add "size": [48, 64]'),
            (SQUARE[0], 'annotation 11 that is neither'),
            ([[4, 4]], 'fewer than two points for annotation 11'),
        ],
    )
    def test_masks_that_pycocotools_does_not_take(self, folder, data, segmentation, words):
        other = content()
        other['annotations'][1]['segmentation'] = segmentation
        assert self.findings(self.metric(folder, other, metric='bbox'), data) == []
        (error,) = self.findings(self.metric(folder, other, metric='segm'), data)
        assert words in error.text and error.text.startswith('val_evaluator: ann_file of CocoMetric has')

    def test_categories_in_another_order(self, folder, data):
        other = content()
        assert collect(check_categories(self.metric(folder, other), data, 'val_evaluator')) == []
        other['categories'].reverse()
        (error,) = collect(check_categories(self.metric(folder, other), data, 'val_evaluator'))
        assert error.level == logging.ERROR and 'the categories dog, cat, and' in error.text


class TestYieldedImages:
    """What built data sets yield, and what the metric scores."""

    def check(self, folder, *files, ann_file='all.json', **kwargs):
        datasets = [folder.dataset(name, test_mode=True, **kwargs) for name in files]
        for dataset in datasets:
            dataset.full_init()
        metric = CocoMetric(ann_file=ann_file and str(folder.path / ann_file))
        findings = collect(check_yielded_images(metric, datasets, 'val_evaluator', 'val_dataloader'))
        assert all(finding.level == logging.ERROR for finding in findings)
        return ''.join(finding.text for finding in findings)

    @pytest.fixture(autouse=True)
    def _files(self, folder):
        whole, second = content(), content()
        for image in second['images']:
            image.update(id=image['id'] + 10, file_name=f'b{image["id"]}.png')
        for annotation in second['annotations']:
            annotation.update(id=annotation['id'] + 100, image_id=annotation['image_id'] + 10)
        both = dict(
            whole,
            images=whole['images'] + second['images'],
            annotations=whole['annotations'] + second['annotations'],
        )
        for name, data in (('all.json', whole), ('second.json', second), ('both.json', both)):
            folder.write(data, name)

    def test_the_same_images_pass(self, folder):
        assert self.check(folder, 'all.json') == self.check(folder, 'all.json', ann_file=None) == ''
        assert self.check(folder, 'all.json', 'second.json', ann_file='both.json') == ''

    @pytest.mark.parametrize('ann_file', ['all.json', None])
    def test_ids_of_two_files_collide(self, folder, ann_file):
        text = self.check(folder, 'all.json', 'all.json', ann_file=ann_file)
        assert '2 image ids in common, such as 1' in text and 'MultiDatasetsEvaluator' in text

    def test_images_that_the_metric_lacks(self, folder):
        text = self.check(folder, 'all.json', 'second.json')
        assert 'lacks 2 of the 4 images of val_dataloader, such as 11 (b1.png)' in text

    def test_a_subset(self, folder):
        text = self.check(folder, 'all.json', indices=1)
        assert 'has 1 images with annotations that val_dataloader does not yield, such as 2' in text


def test_nothing_to_learn(folder):
    def check(*files):
        checks = [CocoCheck(folder.dataset(name), 'train_dataloader') for name in files]
        for one in checks:
            assert all(finding.level < logging.ERROR for finding in collect(one.run()))
        return [finding.text for finding in collect(check_learnable(checks, 'train_dataloader'))]

    crowds = content()
    for annotation in crowds['annotations']:
        annotation['iscrowd'] = 1
    folder.write(crowds, 'crowds.json')
    folder.write(content())
    (text,) = check('crowds.json')
    assert 'no box is left to learn from' in text and 'of 4 annotations 4 have iscrowd=1' in text
    assert check('train.json') == check('crowds.json', 'train.json') == []
