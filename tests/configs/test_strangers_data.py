"""Train and test the demo's models on data as public reports describe them, by our tools: what is right must run.

The refusals of what is wrong are tested beside their checks, in tests/training.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from mmengine.config import Config
from mmengine.fileio import load
from PIL import Image

from support import ROOT
from support.miniature import call
from support.pictures import MALFORMED_EXIF, write_png

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
pytest.importorskip('mmdet')
pytest.importorskip('mmseg')
pytest.importorskip('mmpretrain')

DETECTOR = 'detection/mask-rcnn_rmt-mini_fpn_4e_digits.py'
SEGMENTOR = 'segmentation/rmt-mini_fpn_digits.py'
CLASSIFIER = 'classification/rmt-digits.py'
FOLDERS = {DETECTOR: 'coco/', SEGMENTOR: 'ade20k/', CLASSIFIER: 'imagenet/'}


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data') / 'digits'
    call('tools/dataset_converters/make_digits.py', folder, '--train', 4, '--val', 2, '--size', 128, '--renderings', 1)
    for digit in (folder / 'imagenet').glob('*/*'):
        for image in sorted(digit.iterdir())[2:]:
            image.unlink()
    return folder


@pytest.fixture
def data(made, tmp_path):
    """Return a copy of the digit scenes, which a test changes."""
    return shutil.copytree(made, tmp_path / 'digits')


def write_config(name, data, folder, **changes):
    """Write a user's config: one of ours for the data, of one epoch or two iterations."""
    cfg = Config.fromfile(ROOT / 'configs' / name)
    root = f'{data}/{FOLDERS[name]}'
    for split in ('train', 'val', 'test'):
        cfg[f'{split}_dataloader'].dataset.data_root = root
        cfg[f'{split}_dataloader'].update(batch_size=2, num_workers=0, persistent_workers=False)
        if name == DETECTOR and split != 'train':
            cfg[f'{split}_evaluator'].ann_file = f'{root}annotations/instances_val2017.json'
    cfg.train_cfg.update(dict(max_iters=2, val_interval=2) if name == SEGMENTOR else dict(max_epochs=1, val_interval=1))
    if name == DETECTOR:  # an untrained head has low scores, and the metric needs boxes
        cfg.model.test_cfg.rcnn.score_thr = 0.0
    cfg.merge_from_dict(changes)
    path = folder / 'config.py'
    cfg.dump(path)
    return path


def train_and_test(config, folder, *args):
    """Return the checkpoint and the metrics of a training and of the test of its checkpoint."""
    trained = call('tools/train.py', config, '--work-dir', folder / 'work', *args)
    assert 'loss: nan' not in trained.stdout
    checkpoint = (folder / 'work/last_checkpoint').read_text()
    call('tools/test.py', config, checkpoint, '--work-dir', folder / 'test')
    (record,) = (folder / 'test').glob('*/*.json')
    return checkpoint, {k: v for k, v in json.loads(record.read_text()).items() if not k.endswith('time')}


def annotations(data, split='train'):
    return data / f'coco/annotations/instances_{split}2017.json'


def replace_first_image(data, name, width, height):
    """Let the first image of the training be a file of another name and size, whose one box is a quarter of it."""
    coco = json.loads(annotations(data).read_text())
    image, box = coco['images'][0], [0, 0, width // 2, height // 2]
    image.update(file_name=name, width=width, height=height)
    first, *others = coco['annotations']
    polygon = [[0, 0, box[2], 0, box[2], box[3], 0, box[3]]]
    first.update(image_id=image['id'], bbox=box, area=box[2] * box[3], segmentation=polygon)
    coco['annotations'] = [first, *(a for a in others if a['image_id'] != image['id'])]
    annotations(data).write_text(json.dumps(coco))
    return data / 'coco/train2017' / name


@pytest.mark.parametrize('exif', MALFORMED_EXIF)
def test_a_png_with_malformed_exif(data, tmp_path, exif):
    image = replace_first_image(data, 'photo.png', 128, 128)
    write_png(image, 128, 128, exif)
    config = write_config(DETECTOR, data, tmp_path)
    checkpoint, _ = train_and_test(config, tmp_path)
    done = call('tools/demo.py', config, checkpoint, image, '--out-dir', tmp_path / 'out')
    assert '1 predicted, 0 skipped' in done.stdout


def test_a_satellite_picture_of_182_megapixels(data, tmp_path):
    write_png(replace_first_image(data, 'satellite.png', 13500, 13500), 13500, 13500)
    pipeline = Config.fromfile(ROOT / 'configs' / DETECTOR).train_dataloader.dataset.pipeline
    pipeline.insert(2, dict(type='Resize', scale=(160, 160), keep_ratio=True))
    config = write_config(DETECTOR, data, tmp_path, **{'train_dataloader.dataset.pipeline': pipeline})
    _, metrics = train_and_test(config, tmp_path)
    assert 'coco/bbox_mAP' in metrics


def test_turned_photos_of_a_segmentor_that_ignores_the_orientation(data, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    for path in (data / 'ade20k/images/training').glob('*.jpg'):
        Image.open(path).crop((0, 0, 128, 96)).save(path, exif=exif)
    for path in (data / 'ade20k/annotations/training').glob('*.png'):
        Image.open(path).crop((0, 0, 128, 96)).save(path)
    pipeline = Config.fromfile(ROOT / 'configs' / SEGMENTOR).train_dataloader.dataset.pipeline
    pipeline[0].color_type = 'color_ignore_orientation'
    train_and_test(write_config(SEGMENTOR, data, tmp_path, **{'train_dataloader.dataset.pipeline': pipeline}), tmp_path)


@pytest.mark.parametrize('name', [DETECTOR, SEGMENTOR, CLASSIFIER])
def test_gray_images_of_one_channel(name, data, tmp_path):
    cfg = Config.fromfile(ROOT / 'configs' / name)
    changes = {'model.backbone.in_channels': 1}
    if name == CLASSIFIER:
        changes.update({'data_preprocessor': dict(mean=[128.0], std=[64.0], num_classes=10, to_rgb=False)})
        changes.update({'model.data_preprocessor': changes['data_preprocessor']})
    else:
        changes.update({'model.data_preprocessor.mean': [128.0], 'model.data_preprocessor.std': [64.0]})
        changes.update({'model.data_preprocessor.bgr_to_rgb': False})
    for split in ('train', 'val', 'test'):
        pipeline = cfg[f'{split}_dataloader'].dataset.pipeline
        pipeline[0].color_type = 'grayscale'
        colours = ('PhotoMetricDistortion', 'ColorJitter', 'RandomGrayscale', 'RandAugment')
        changes[f'{split}_dataloader.dataset.pipeline'] = [t for t in pipeline if t.type not in colours]
    config = write_config(name, data, tmp_path, **changes)
    checkpoint, _ = train_and_test(config, tmp_path)
    (image, *_) = sorted((data / FOLDERS[name]).rglob('*.png' if name == CLASSIFIER else '*.jpg'))
    done = call('tools/demo.py', config, checkpoint, image, '--out-dir', tmp_path / 'out')
    assert '1 predicted, 0 skipped' in done.stdout
    call('tools/analysis_tools/vis_masa.py', config, checkpoint, image, '--out-dir', tmp_path / 'prior')
    call('tools/get_flops.py', config, '--shape', 64, 64)
    call('tools/deployment/export.py', config, checkpoint, '--out', tmp_path / 'model.onnx', '--shape', 64, 64)


def test_two_data_sets_with_a_metric_each(data, tmp_path):
    """Equal ids in both files: each metric must see the predictions of its own images alone."""
    other = json.loads(annotations(data, 'val').read_text())
    for image, name in zip(other['images'], [i['file_name'] for i in reversed(other['images'])]):
        image['file_name'] = name  # the same ids stand for other images
    annotations(data, 'other').write_text(json.dumps(other))
    config = write_config(DETECTOR, data, tmp_path)
    checkpoint, alone = train_and_test(config, tmp_path)

    cfg = Config.fromfile(config)
    parts = [cfg.test_dataloader.dataset.copy() for _ in range(2)]
    parts[1].ann_file = 'annotations/instances_other2017.json'
    metrics = [dict(cfg.test_evaluator), dict(cfg.test_evaluator, ann_file=str(annotations(data, 'other')))]
    cfg.test_dataloader.dataset = dict(type='ConcatDataset', datasets=parts)
    cfg.test_evaluator = dict(type='MultiDatasetsEvaluator', metrics=metrics, dataset_prefixes=['first', 'second'])
    cfg.dump(tmp_path / 'both.py')
    call('tools/test.py', tmp_path / 'both.py', checkpoint, '--work-dir', tmp_path / 'both')
    (record,) = (tmp_path / 'both').glob('*/*.json')
    both = json.loads(record.read_text())
    for key, value in alone.items():
        assert both[f'first/{key}'] == pytest.approx(value, abs=1e-3)
        assert f'second/{key}' in both


def test_run_lengths_of_single_objects(data, tmp_path):
    """Run lengths with iscrowd=0, compressed as the scenes have them, and as lists."""
    from pycocotools import mask

    coco = json.loads(annotations(data).read_text())
    for annotation in coco['annotations'][::2]:
        pixels = mask.decode(annotation['segmentation']).flatten(order='F')
        counts, value = [0], 0
        for pixel in pixels.tolist():
            counts, value = (counts, value) if pixel == value else ([*counts, 0], pixel)
            counts[-1] += 1
        annotation['segmentation']['counts'] = counts
    annotations(data).write_text(json.dumps(coco))
    train_and_test(write_config(DETECTOR, data, tmp_path), tmp_path)


def test_a_category_twice_after_the_command_of_the_message(data, tmp_path):
    for split in ('train', 'val'):
        coco = json.loads(annotations(data, split).read_text())
        coco['categories'].insert(0, dict(id=0, name='0', supercategory='none'))
        annotations(data, split).write_text(json.dumps(coco))
    config = write_config(DETECTOR, data, tmp_path)
    for _ in ('train', 'val'):
        refused = call('tools/train.py', config, '--work-dir', tmp_path / 'work', fails=True)
        (command,) = re.findall(r'by the command python (-c .*? \S*\.json)', refused.stderr)
        subprocess.run([sys.executable, *shlex.split(command)], check=True)
    train_and_test(config, tmp_path)


def test_no_workers_over_a_config_of_persistent_ones(data, tmp_path):
    config = write_config(
        CLASSIFIER, data, tmp_path, **{'train_dataloader.num_workers': 1, 'train_dataloader.persistent_workers': True}
    )
    train_and_test(config, tmp_path, '--cfg-options', 'train_dataloader.num_workers=0')


def test_a_folder_of_classes_with_few_of_them(data, tmp_path):
    """Three classes, whose names come from their folders, and one accuracy."""
    for folder in (data / 'imagenet').glob('*/[3-9]'):
        shutil.rmtree(folder)
    changes = {'model.head.num_classes': 3, 'model.data_preprocessor.num_classes': 3}
    config = write_config(CLASSIFIER, data, tmp_path, **changes)
    checkpoint, metrics = train_and_test(config, tmp_path)
    assert 'accuracy/top1' in metrics
    out = tmp_path / 'predictions.pkl'
    call('tools/test.py', config, checkpoint, '--work-dir', tmp_path / 'again', '--out', out)
    assert len(load(out)) == 6
