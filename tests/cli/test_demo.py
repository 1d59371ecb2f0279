"""tools/demo.py: pictures of every kind, three tasks, tiles, video, and results that other programs read."""

import json
import pickle
import subprocess
import sys
import tracemalloc

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO

from rmt_mm.errors import CheckpointError, UsageError
from rmt_mm.tools.cli.images import find_images, read_image
from rmt_mm.tools.cli.predictor import as_shown, build_predictor
from rmt_mm.tools.cli.tiles import TileMask, draw_objects, merge_boxes, tile_windows
from rmt_mm.tools.commands.demo import main
from rmt_mm.tools.deployment.inputs import Preparation, read_preprocessor
from rmt_mm.tools.flops import input_channels

from support import ROOT, load_tool
from support.miniature import call
from support.pictures import MALFORMED_EXIF, write_png

CONFIGS = dict(
    mmdet='detection/mask-rcnn_rmt-mini_fpn_4e_digits',
    mmseg='segmentation/rmt-mini_fpn_digits',
    mmpretrain='classification/rmt-digits',
)
CLASSES = ('background', *'0123456789')
RED = (200, 30, 40)


# Pictures.


def picture(mode='RGB', size=(40, 30)):
    return Image.new('RGB', size, RED).convert(mode)


@pytest.mark.parametrize(
    'name, image',
    [
        ('a.jpg', picture()),
        ('a.png', picture()),
        ('cmyk.jpg', picture('CMYK')),
        ('palette.gif', picture('P')),
        ('opaque.png', picture('RGBA')),
        ('a.webp', picture()),
    ],
)
def test_pictures_have_their_colours(name, image, tmp_path):
    image.save(tmp_path / name)
    read = read_image(tmp_path / name)
    assert read.shape == (30, 40, 3) and read.dtype == np.uint8
    assert np.abs(read.reshape(-1, 3).mean(0) - RED).max() < 12


def test_gray_and_16_bits_are_gray_pictures(tmp_path):
    ramp = np.linspace(0, 255, 40 * 30).reshape(30, 40)
    Image.fromarray(ramp.astype(np.uint8)).save(tmp_path / '8.png')
    Image.fromarray((ramp * 257).astype(np.uint16)).save(tmp_path / '16.png')
    Image.fromarray((ramp * 257).astype(np.uint16)).save(tmp_path / '16.tif')
    Image.fromarray(np.full((4, 4), 250, np.uint16)).save(tmp_path / 'dark.png')
    assert read_image(tmp_path / 'dark.png').max() == 1
    for name in ('8.png', '16.png', '16.tif'):
        read = read_image(tmp_path / name)
        assert read.shape == (30, 40, 3) and read.dtype == np.uint8
        assert np.abs(read[..., 0] - ramp).max() <= 1 and (read[..., 0] == read[..., 2]).all()


FLOATS = np.linspace(0, 1, 40 * 30, dtype=np.float32).reshape(30, 40)


@pytest.mark.parametrize('scale', [1, 255, 65535, 1e6])
def test_pictures_of_floats_are_scaled_by_their_finite_values(scale, tmp_path):
    values = FLOATS * scale
    Image.fromarray(values).save(tmp_path / 'a.tif')
    read = read_image(tmp_path / 'a.tif')
    assert np.abs(read[..., 0] - FLOATS * 255).max() <= 1
    values[0, 0], values[0, 1], values[0, 2] = np.nan, np.inf, -np.inf
    Image.fromarray(values).save(tmp_path / 'a.tif')
    again = read_image(tmp_path / 'a.tif')
    assert again[0, :3, 0].tolist() == [0, 255, 0] and (again[1:] == read[1:]).all()


def test_pictures_of_16_bits_take_little_memory(tmp_path):
    Image.fromarray(np.full((2000, 3000), 65535, np.uint16)).save(tmp_path / 'a.png')
    tracemalloc.start()
    try:
        read = read_image(tmp_path / 'a.png')
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (read == 255).all() and peak < 8 * read.size / 3


@pytest.mark.parametrize('kind', ['16.png', 'float.tif', 'int.tif', 'rgb.png', 'rgba.png', 'la.png', 'turned.png'])
def test_the_exported_model_reads_pictures_alike(kind, tmp_path):
    pytest.importorskip('onnxruntime')
    path = tmp_path / kind
    layers = (np.stack([FLOATS, FLOATS.T.reshape(30, 40), 1 - FLOATS, FLOATS], 2) * 255).astype(np.uint8)
    images = {
        '16.png': (FLOATS * 65535).astype(np.uint16),
        'float.tif': np.where(FLOATS < 0.1, np.nan, FLOATS * 40000),
        'int.tif': (FLOATS * 90000).astype(np.int32),
        'rgb.png': layers[..., :3],
        'rgba.png': layers,
        'la.png': layers[..., 2:],
        'turned.png': layers[..., :3],
    }
    exif = Image.Exif()
    exif[0x0112] = 6 if kind == 'turned.png' else 1
    Image.fromarray(images[kind]).save(path, **(dict(exif=exif) if kind.endswith('png') else {}))
    read = load_tool('deployment/run.py').read(path)
    assert np.array_equal(read, read_image(path)) and read.std() > 1


def test_transparent_pictures_are_white(tmp_path):
    layers = np.zeros((4, 4, 4), np.uint8)
    layers[:2] = (*RED, 255)
    Image.fromarray(layers).save(tmp_path / 'a.png')
    read = read_image(tmp_path / 'a.png')
    assert (read[:2] == RED).all() and (read[2:] == 255).all()


def test_pictures_are_upright(tmp_path):
    image = np.zeros((20, 40, 3), np.uint8)
    image[:, :20] = RED  # the left half
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise: left becomes top
    Image.fromarray(image).save(tmp_path / 'a.png', exif=exif)
    read = read_image(tmp_path / 'a.png')
    assert read.shape == (40, 20, 3) and (read[:20] == RED).all() and (read[20:] == 0).all()


@pytest.mark.parametrize('exif', MALFORMED_EXIF)
def test_pictures_with_malformed_exif(exif, tmp_path):
    write_png(tmp_path / 'a.png', 40, 30, exif)
    assert read_image(tmp_path / 'a.png').shape == (30, 40, 3)


def test_pictures_beyond_the_limit_of_pillow(tmp_path, monkeypatch):
    picture().save(tmp_path / 'a.png')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 100)
    assert (read_image(tmp_path / 'a.png') == RED).all()


@pytest.mark.parametrize('content', [b'', b'no picture', 'truncated'])
def test_what_is_no_picture_is_named(content, tmp_path):
    path = tmp_path / 'a.jpg'
    if content == 'truncated':
        picture(size=(400, 300)).save(path)
        content = path.read_bytes()[:800]
    path.write_bytes(content)
    with pytest.raises(UsageError, match='a.jpg cannot be read as an image'):
        read_image(path)


def test_find_images(tmp_path):
    for name in ('b.png', 'a.JPG', 'notes.txt', 'sub/c.png'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def found(source):
        return [path.name for path in find_images(str(source))]

    assert found(tmp_path) == ['a.JPG', 'b.png']
    assert found(tmp_path / 'b.png') == ['b.png']
    assert found(tmp_path / '**/*.png') == ['b.png', 'c.png']
    (tmp_path / 'empty').mkdir()
    with pytest.raises(UsageError, match='no image in this folder'):
        find_images(str(tmp_path / 'empty'))
    with pytest.raises(UsageError, match='no such file'):
        find_images(str(tmp_path / 'x*.png'))


# Tiles.


@pytest.mark.parametrize('size', [(100, 100), (96, 300), (97, 250), (5, 1000), (500, 333)])
def test_tiles_cover_the_picture_and_overlap(size):
    count = np.zeros(size, int)
    windows = list(tile_windows(*size, size=96, overlap=32))
    for rows, columns in windows:
        part = count[rows, columns]
        part += 1
        assert part.shape == tuple(min(length, 96) for length in size)
    assert count.min() >= 1
    lefts = sorted({columns.start for _, columns in windows})
    assert all(right - left <= 64 for left, right in zip(lefts, lefts[1:]))


def test_parts_of_an_object_in_two_tiles_become_the_whole():
    boxes = np.array(
        [[0, 0, 10, 10], [0, 0, 4, 10], [0, 0, 4, 10], [50, 0, 60, 10], [52, 0, 62, 10], [90, 90, 90, 90.0]]
    )
    scores = np.array([0.81, 0.85, 0.84, 0.5, 0.7, 0.3])
    labels = np.array([1, 1, 2, 1, 1, 1])
    assert merge_boxes(np.array(boxes, float), scores, labels) == [2, 0, 4, 5]
    assert merge_boxes(np.zeros((0, 4)), np.zeros(0), np.zeros(0)) == []


@pytest.mark.parametrize('empty', [False, True])
@pytest.mark.parametrize('size', [(30, 40), (9, 12)])
def test_masks_of_tiles_are_those_of_the_picture(size, empty):
    """The tile of 9 x 12 pixels may touch every border; pixels at both ends of a column join in COCO's order."""
    generator = np.random.RandomState(0)
    for left, top in ((0, 0), (size[1] - 12, size[0] - 9)):
        mask = (generator.rand(9, 12) > 0.5) & (not empty)
        whole = np.zeros(size, np.uint8, order='F')
        whole[top : top + 9, left : left + 12] = mask
        found = TileMask(mask, left, top).encode(*size)
        assert (rle.decode(found) == whole).all() and rle.area(found) == mask.sum()
        assert rle.iou([found], [rle.encode(whole)], [0]) == (0 if empty else 1)


def test_objects_are_drawn_where_they_are_without_a_map_for_each():
    image = np.full((400, 600, 3), 100, np.uint8)
    mask = np.zeros((64, 64), bool)
    mask[8:40, 8:40] = True
    masks = [TileMask(mask, 500, 300) for _ in range(200)]
    boxes = np.tile([508.0, 308, 540, 340], (200, 1))
    tracemalloc.start()
    drawn = draw_objects(image, boxes, ['é'] * 200, [RED] * 200, masks)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5 * image.nbytes
    changed = np.argwhere((drawn != image).any(2))
    assert changed.min(0).tolist() == [308, 508] and changed.max(0).tolist() == [340, 540]
    assert (drawn[308, 520] == RED).all() and np.abs(drawn[335, 535].astype(int) - RED).max() < 5
    assert (image == 100).all()


# Models, of random weights.


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('demo')


@pytest.fixture(scope='module')
def models(folder):
    """Return the path of a checkpoint for each library's digit config."""
    paths = {}
    for scope, name in CONFIGS.items():
        pytest.importorskip(f'{scope}.utils').register_all_modules(init_default_scope=False)
        with DefaultScope.overwrite_default_scope(scope):
            torch.manual_seed(0)
            model = MODELS.build(Config.fromfile(ROOT / f'configs/{name}.py').model)
            model.init_weights()
        classes = CLASSES if scope == 'mmseg' else CLASSES[1:]
        paths[scope] = str(folder / f'{scope}.pth')
        torch.save(dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes=classes))), paths[scope])
    return paths


@pytest.fixture(scope='module')
def scene(folder):
    """Return the path of a picture of 120 x 160 pixels."""
    generator = np.random.RandomState(0)
    small = generator.randint(0, 256, (6, 8, 3), dtype=np.uint8)
    (folder / 'pictures').mkdir()
    path = folder / 'pictures/scene.png'
    Image.fromarray(small).resize((160, 120)).save(path)
    return path


@pytest.fixture
def demo(models, monkeypatch, capsys):
    """Run the tool in this process, and return what it prints to stdout and stderr."""

    def run(scope, *args):
        config = str(ROOT / f'configs/{CONFIGS[scope]}.py')
        monkeypatch.setattr(sys, 'argv', ['demo.py', config, models[scope], *map(str, args), '--device', 'cpu'])
        with DefaultScope.overwrite_default_scope(scope):
            main()
        return capsys.readouterr()

    return run


def test_detector(demo, scene, tmp_path):
    (scene.parent / 'broken.jpg').write_bytes(b'no picture')
    picture('L').save(scene.parent / 'gray.jpg')
    done = demo('mmdet', scene.parent, '--out-dir', tmp_path, '--json', '--score-thr', '0.05')
    assert '2 predicted, 1 skipped' in done.out
    assert 'skipped: ' in done.err and 'broken.jpg cannot be read' in done.err
    results = json.loads((tmp_path / 'predictions.json').read_text())
    assert {result['file_name'] for result in results} <= {'gray.jpg', 'scene.png'} and results
    assert all(result['score'] >= 0.05 for result in results)

    # COCO's own code reads them.
    truth = COCO()
    truth.dataset = dict(
        images=[dict(id=1, height=30, width=40), dict(id=2, height=120, width=160)],
        annotations=[],
        categories=[dict(id=i + 1, name=name) for i, name in enumerate(CLASSES[1:])],
    )
    truth.createIndex()
    truth.loadRes([{k: v for k, v in result.items() if k != 'segmentation'} for result in results])
    sizes = {1: [30, 40], 2: [120, 160]}
    for result in results:
        assert result['segmentation']['size'] == sizes[result['image_id']]
        assert rle.decode(result['segmentation']).shape == tuple(sizes[result['image_id']])
        assert CLASSES[result['category_id']] == result['category']
    for name, size in (('gray.jpg', (40, 30)), ('scene.png', (160, 120))):
        assert Image.open(tmp_path / name).size == size


def test_segmentor(models, scene, tmp_path):
    call('tools/demo.py', f'configs/{CONFIGS["mmseg"]}.py', models['mmseg'], scene, '--out-dir', tmp_path, '--json')
    labels = np.array(Image.open(tmp_path / 'labels/scene.png.png'))
    [entry] = json.loads((tmp_path / 'predictions.json').read_text())
    assert labels.shape == (120, 160) and sum(p['pixels'] for p in entry['predictions']) == labels.size
    assert all(p['category'] == CLASSES[p['label']] for p in entry['predictions'])
    assert (tmp_path / 'scene.png').is_file()


def test_classifier(demo, scene, tmp_path):
    demo('mmpretrain', scene, '--out-dir', tmp_path, '--json')
    [entry] = json.loads((tmp_path / 'predictions.json').read_text())
    scores = [p['score'] for p in entry['predictions']]
    assert entry['file_name'] == 'scene.png' and len(scores) == 5 and scores == sorted(scores, reverse=True)
    assert all(p['category'] == CLASSES[p['label'] + 1] for p in entry['predictions'])


def test_video(demo, scene, tmp_path):
    writer = cv2.VideoWriter(str(tmp_path / 'a.avi'), cv2.VideoWriter.fourcc(*'MJPG'), 10, (160, 120))
    for _ in range(3):
        writer.write(cv2.imread(str(scene)))
    writer.release()
    out = tmp_path / 'out'
    demo('mmseg', tmp_path / 'a.avi', '--out-dir', out, '--json')
    video = cv2.VideoCapture(str(out / 'a.mp4'))
    assert (video.get(cv2.CAP_PROP_FRAME_COUNT), video.get(cv2.CAP_PROP_FPS)) == (3, 10)
    names = [entry['file_name'] for entry in json.loads((out / 'predictions.json').read_text())]
    assert names == ['a.avi/000001', 'a.avi/000002', 'a.avi/000003']


def test_a_picture_beyond_the_memory_is_skipped(demo, scene, tmp_path, monkeypatch):
    def draw(*_):
        raise MemoryError('Unable to allocate 5.43 GiB')

    monkeypatch.setattr('rmt_mm.tools.cli.predictor.Classifier.draw', draw)
    with pytest.raises(SystemExit):
        demo('mmpretrain', scene, '--out-dir', tmp_path)


def test_pictures_of_odd_sizes_are_predicted_or_skipped(demo, scene, tmp_path):
    (tmp_path / 'odd').mkdir()
    scene_copy = tmp_path / 'odd/b.png'
    scene_copy.write_bytes(scene.read_bytes())
    picture(size=(3000, 7)).save(tmp_path / 'odd/a.png')  # resized to a height of 0
    done = demo('mmdet', tmp_path / 'odd', '--out-dir', tmp_path / 'out', '--json', '--score-thr', '0.05')
    assert '1 predicted, 1 skipped' in done.out and 'a.png cannot be predicted' in done.err
    results = json.loads((tmp_path / 'out/predictions.json').read_text())
    assert {(result['image_id'], result['file_name']) for result in results} == {(1, 'b.png')}


@pytest.fixture(params=['mmdet', 'mmseg'])
def predictor(request, models):
    cfg = Config.fromfile(ROOT / f'configs/{CONFIGS[request.param]}.py')
    with DefaultScope.overwrite_default_scope(request.param):
        yield build_predictor(cfg, models[request.param], 'cpu')


def test_one_tile_is_the_whole_picture(predictor, scene):
    image = read_image(scene)
    whole, tiled = predictor.predict(image), predictor.predict_by_tiles(image, 500, 100)
    if 'pred_sem_seg' in whole:
        assert torch.equal(whole.pred_sem_seg.data, tiled.pred_sem_seg.data)
    else:
        boxes, found = whole.pred_instances, tiled.pred_instances
        assert 0 < len(found) <= len(boxes)
        for box, mask in zip(found.bboxes, found.masks):
            [same] = torch.nonzero((boxes.bboxes == box).all(1)).flatten()[:1]
            assert (rle.decode(mask.encode(*image.shape[:2])) == np.asarray(boxes.masks[same])).all()
        shown = predictor.describe(whole, 0.0)
        for entry in predictor.describe(tiled, 0.0):
            assert entry in shown


def test_tiles_lie_where_they_were_cut(predictor, scene, monkeypatch):
    """A model that marks the reddest pixel of a tile finds it at its place in the picture."""
    image = np.zeros((120, 160, 3), np.uint8)
    image[100, 140] = 255
    real = predictor.predict

    def predict(tile):
        sample = real(tile)
        rows, columns = np.nonzero(tile[..., 0])
        if 'pred_sem_seg' in sample:
            sample.seg_logits.data.zero_()
            sample.seg_logits.data[3, rows, columns] = 1
        else:
            found = sample.pred_instances[:1]
            found.scores[:], found.labels[:] = (0.9 if len(rows) else 0.0), 3
            if len(rows):
                found.bboxes[:] = torch.tensor([columns[0], rows[0], columns[0] + 1, rows[0] + 1])
            found.masks[:] = torch.as_tensor(tile[..., 0] > 0)
            sample.pred_instances = found
        return sample

    monkeypatch.setattr(predictor, 'predict', predict)
    sample = predictor.predict_by_tiles(image, 64, 16)
    if 'pred_sem_seg' in sample:
        assert torch.nonzero(sample.pred_sem_seg.data[0] == 3).tolist() == [[100, 140]]
    else:
        found = sample.pred_instances
        assert found.bboxes.tolist() == [[140, 100, 141, 101]]
        [entry] = predictor.describe(sample, 0.5)
        assert np.argwhere(rle.decode(entry['segmentation'])).tolist() == [[100, 140]]
    assert predictor.draw(image, sample, 0.5).shape == image.shape


@pytest.mark.parametrize('predictor', ['mmdet'], indirect=True)
def test_a_mask_of_a_tile_does_not_grow_with_the_picture(predictor, scene):
    image = np.tile(read_image(scene), (4, 4, 1))
    masks = predictor.predict_by_tiles(image, 400, 100).pred_instances.masks
    assert masks and len(pickle.dumps(masks)) < 5000 * len(masks) < len(masks) * image[..., 0].size / 10


@pytest.mark.parametrize('predictor', ['mmseg'], indirect=True)
def test_tiles_are_averaged_where_they_overlap(predictor, monkeypatch):
    real = predictor.predict
    tiles = iter([(3, 5.0), (4, 1.0)])  # class and logit of the left tile, and of the right one

    def predict(tile):
        sample = real(tile)
        label, value = next(tiles)
        sample.seg_logits.data.zero_()
        sample.seg_logits.data[label] = value
        return sample

    monkeypatch.setattr(predictor, 'predict', predict)
    labels = predictor.predict_by_tiles(np.zeros((64, 96, 3), np.uint8), 64, 32).pred_sem_seg.data[0]
    assert (labels[:, :64] == 3).all() and (labels[:, 64:] == 4).all()


def test_names_are_those_of_the_checkpoint_else_of_the_data_set_else_numbers(models, tmp_path):
    content = torch.load(models['mmseg'])
    name = f'configs/{CONFIGS["mmseg"]}.py'
    path = str(tmp_path / 'a.pth')
    torch.save(dict(state_dict=content['state_dict']), path)
    cfg = Config.fromfile(ROOT / name)
    of_config = cfg.test_dataloader.dataset.metainfo['classes']
    assert build_predictor(cfg, path, 'cpu').classes == list(of_config)
    cfg = Config.fromfile(ROOT / name)
    torch.save(dict(state_dict=content['state_dict'], meta=dict(dataset_meta=dict(classes=['a', 'b']))), path)
    assert build_predictor(cfg, path, 'cpu').classes == list(map(str, range(11)))


def test_checkpoints_that_lack_a_part_are_refused(models, tmp_path):
    content = torch.load(models['mmdet'])
    del content['state_dict']['roi_head.bbox_head.fc_cls.weight']
    torch.save(content, tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match=r'1 missing \(roi_head\.bbox_head\.fc_cls\.weight\)'):
        build_predictor(Config.fromfile(ROOT / f'configs/{CONFIGS["mmdet"]}.py'), str(tmp_path / 'a.pth'), 'cpu')


@pytest.mark.parametrize(
    'args, words',
    [
        (['nowhere.jpg'], 'nowhere.jpg: there is no such file'),
        (['SCENE', '--score-thr', '7'], '--score-thr 7.0: scores are from 0 to 1'),
        (['SCENE', '--tile', '64', '--overlap', '64'], 'the overlap is at least 0, and below the tile'),
        (['SCENE', '--tile', '256'], '--tile: a classifier looks at the whole image'),
        (['SCENE', '--out-dir', 'FOLDER'], 'holds the images themselves'),
        (['BROKEN'], '0 predicted, 1 skipped'),
        (['VIDEO'], 'cannot be read as a video'),
        (['SCENE', '--device', 'cuda:77'], '--device cuda:77 cannot be used'),
        (['SCENE', '--device', 'toaster'], '--device toaster cannot be used'),
    ],
)
def test_mistakes_are_one_sentence(args, words, models, scene, tmp_path, monkeypatch, capsys):
    (tmp_path / 'broken.jpg').write_bytes(b'no picture')
    (tmp_path / 'a.mp4').write_bytes(b'no video')
    places = dict(SCENE=scene, FOLDER=scene.parent, BROKEN=tmp_path / 'broken.jpg', VIDEO=tmp_path / 'a.mp4')
    args = [str(places.get(arg, arg)) for arg in args]
    out = [] if '--out-dir' in args else ['--out-dir', str(tmp_path / 'out')]
    before = scene.read_bytes()
    config = str(ROOT / f'configs/{CONFIGS["mmpretrain"]}.py')
    monkeypatch.setattr(sys, 'argv', ['tools/demo.py', config, models['mmpretrain'], *args, *out])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code and words in str(stop.value.code) + capsys.readouterr().out
    assert scene.read_bytes() == before


@pytest.mark.parametrize('channels, color_type, mode', [(1, 'grayscale', 'L'), (4, 'unchanged', 'RGBA')])
def test_other_channels_are_read_as_the_pipeline_reads_them(channels, color_type, mode, tmp_path):
    cfg = Config.fromfile(ROOT / f'configs/{CONFIGS["mmseg"]}.py')
    cfg.model.backbone.in_channels = channels
    # One mean for all channels: the mmseg of the continuation takes one or three.
    cfg.model.data_preprocessor.update(mean=[120.0], std=[60.0], bgr_to_rgb=False)
    cfg.test_dataloader.dataset.pipeline[0].color_type = color_type
    pytest.importorskip('mmseg.utils').register_all_modules(init_default_scope=False)
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(cfg.model)
        torch.save(dict(state_dict=model.state_dict(), meta={}), tmp_path / 'model.pth')
        predictor = build_predictor(cfg, str(tmp_path / 'model.pth'), 'cpu')
        picture(mode).save(tmp_path / 'a.png')
        image = predictor.read(tmp_path / 'a.png')
        assert image.shape[2:] == ((4,) if channels == 4 else ())
        assert predictor.labels(predictor.predict(image)).shape == (30, 40)
        assert as_shown(image).shape == (30, 40, 3)
        if channels == 4:
            assert (as_shown(image) == RED).all()
            with pytest.raises(UsageError, match='read with 3 channels, and the model takes 4'):
                predictor.predict(np.zeros((30, 40, 3), np.uint8))
    norm = read_preprocessor(model.data_preprocessor, input_channels(model))
    assert norm.mean == (120.0,) * channels and not norm.is_bgr
    assert Preparation(norm, True).example(2, 8, 16).shape == (2, 8, 16, channels)


def test_postscript_is_handed_to_no_program(tmp_path, monkeypatch):
    """Pillow would start Ghostscript for it, whatever the file is called."""
    (tmp_path / 'a.png').write_text('%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n')
    monkeypatch.setattr(subprocess, 'check_call', None)
    with pytest.raises(UsageError, match='a.png cannot be read as an image'):
        read_image(tmp_path / 'a.png')
    pytest.importorskip('onnxruntime')
    with pytest.raises(OSError, match='cannot identify'):
        load_tool('deployment/run.py').read(tmp_path / 'a.png')
