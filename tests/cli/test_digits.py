"""The digit scenes: three layouts that agree, the same files from the same seed, no scan in both splits."""

import json

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from support import ROOT, load_tool
from support.scripts import run_script

TOOL = ROOT / 'tools/dataset_converters/make_digits.py'


def make(out, *args):
    return run_script(TOOL, out, '--train', 6, '--val', 4, '--size', 96, '--renderings', 2, *args)


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    out = tmp_path_factory.mktemp('data') / 'digits'
    result = make(out)
    assert result.returncode == 0, result.stderr
    return out


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob('*')) if path.is_file()}


def test_the_same_seed_gives_the_same_files(digits, tmp_path):
    assert make(tmp_path / 'again').returncode == 0
    assert files(tmp_path / 'again') == files(digits)
    assert make(tmp_path / 'other', '--seed', '1').returncode == 0
    assert (
        files(tmp_path / 'other')['coco/train2017/000000000001.jpg'] != files(digits)['coco/train2017/000000000001.jpg']
    )


def test_renderings_of_single_digits_differ_and_change_nothing_else(digits, tmp_path):
    assert make(tmp_path / 'once', '--renderings', '1').returncode == 0
    many, once = files(digits), files(tmp_path / 'once')
    del many['settings.json'], once['settings.json']
    assert all(many[name] == content for name, content in once.items())
    more = set(many) - set(once)
    assert len(more) == len([name for name in once if name.startswith('imagenet/train')])
    assert not {many[name] for name in more} & set(once.values())


@pytest.mark.parametrize('split, count, ade', [('train2017', 6, 'training'), ('val2017', 4, 'validation')])
def test_coco_and_ade20k_say_the_same(digits, split, count, ade):
    coco = COCO(str(digits / f'coco/annotations/instances_{split}.json'))
    assert [c['name'] for c in coco.loadCats(coco.getCatIds())] == list('0123456789')
    assert len(coco.imgs) == count
    for image_id, image in coco.imgs.items():
        pixels = cv2.imread(str(digits / 'coco' / split / image['file_name']))
        assert pixels.shape == (image['height'], image['width'], 3) == (96, 96, 3)
        stem = f'ADE_{split[:-4]}_{image_id:08d}'
        assert (digits / f'ade20k/images/{ade}/{stem}.jpg').is_file()
        labels = cv2.imread(str(digits / f'ade20k/annotations/{ade}/{stem}.png'), cv2.IMREAD_UNCHANGED)
        expected = np.zeros((96, 96), np.uint8)
        annotations = coco.imgToAnns[image_id]
        assert 2 <= len(annotations) <= 6
        for annotation in annotations:
            mask = coco.annToMask(annotation).astype(bool)
            assert not expected[mask].any(), 'visible parts do not overlap'
            expected[mask] = annotation['category_id']
            ys, xs = np.nonzero(mask)
            assert annotation['area'] == mask.sum() > 0
            assert annotation['bbox'] == [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
        np.testing.assert_array_equal(labels, expected)


def test_no_scan_is_in_both_splits(digits):
    images = {split: [path.stem for path in (digits / 'imagenet' / split).rglob('*.png')] for split in ('train', 'val')}
    scans = {split: {stem[:4] for stem in stems} for split, stems in images.items()}
    assert not scans['train'] & scans['val']
    assert len(scans['train'] | scans['val']) == 1797
    assert len(images['train']) == 2 * len(scans['train']) and len(images['val']) == len(scans['val'])
    for split in scans:
        assert sorted(p.name for p in (digits / 'imagenet' / split).iterdir()) == list('0123456789')


def test_scenes_use_only_the_scans_of_their_split():
    """The function that composes a scene draws its digits only from the given indices."""
    tool = load_tool('dataset_converters/make_digits.py')
    labels = np.repeat(np.arange(10), 20)
    splits = tool.split_scans(labels, np.random.default_rng(0))
    assert not set(splits['train']) & set(splits['val'])
    assert np.bincount(labels[splits['val']]).tolist() == [5] * 10
    photos = [np.full((200, 200, 3), 128, np.float32)]
    fours = np.full(8, 4)
    scene = tool.compose(np.full((8, 8, 8), 16.0), fours, photos, 96, np.random.default_rng(0))
    assert set(scene.digits) == {4} and len(scene.masks) == len(scene.digits)


def test_what_is_there_is_kept(digits, tmp_path):
    before = files(digits)
    again = make(digits)
    assert again.returncode == 0 and 'already there' in again.stdout
    other = make(digits, '--seed', '5')
    assert other.returncode == 1 and '--force' in other.stderr
    (tmp_path / 'mine').write_text('precious')
    mine = make(tmp_path)
    assert mine.returncode == 1 and 'holds no digit scenes' in mine.stderr
    assert files(digits) == before and (tmp_path / 'mine').read_text() == 'precious'


@pytest.mark.parametrize(
    'args, word', [(('--train', '0'), '--train'), (('--size', '20'), '--size'), (('--renderings', '0'), '--renderings')]
)
def test_wrong_arguments_are_named(tmp_path, args, word):
    result = make(tmp_path / 'digits', *args)
    assert result.returncode == 2 and word in result.stderr.splitlines()[-1]
    assert not (tmp_path / 'digits').exists()


def test_settings_are_recorded(digits):
    assert json.loads((digits / 'settings.json').read_text()) == dict(train=6, val=4, renderings=2, size=96, seed=0)
