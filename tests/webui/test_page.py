"""tools/webui.py: what the page answers, without a server; and in a browser (slow)."""

import json
import struct
import threading
import time
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData
from PIL import Image

gr = pytest.importorskip('gradio', reason='the page needs gradio')

from rmt_mm.errors import UsageError  # noqa: E402
from rmt_mm.tools.cli.images import read_image  # noqa: E402
from rmt_mm.tools.cli.predictor import build_predictor  # noqa: E402
from rmt_mm.tools.webui.attention import lay_over  # noqa: E402
from rmt_mm.tools.webui.examples import find_examples  # noqa: E402
from rmt_mm.tools.webui.listing import list_predictions  # noqa: E402
from rmt_mm.tools.webui.page import MAPS, Page  # noqa: E402
from rmt_mm.tools.webui.sizes import clickable, enlarge_with_sample  # noqa: E402
from rmt_mm.tools.webui.trial import Trial  # noqa: E402

from support import ROOT  # noqa: E402

CONFIGS = dict(
    mmdet='detection/mask-rcnn_rmt-mini_fpn_4e_digits',
    mmseg='segmentation/rmt-mini_fpn_digits',
    mmpretrain='classification/rmt-digits',
    resnet='detection/mask-rcnn_r18_fpn_digits',
)
CLASSES = ('background', *'012345678', '<b>nine</b>')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('webui')


def save_model(scope, folder):
    """Return a digit config and the path of a checkpoint with random weights."""
    cfg = Config.fromfile(ROOT / f'configs/{CONFIGS[scope]}.py')
    pytest.importorskip(f'{cfg.default_scope}.utils').register_all_modules(init_default_scope=False)
    path = folder / f'{scope}.pth'
    if not path.exists():
        cfg.model.backbone.pop('init_cfg', None)
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            torch.manual_seed(0)
            model = MODELS.build(cfg.model)
        classes = CLASSES if scope == 'mmseg' else CLASSES[1:]
        torch.save(dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes=classes))), path)
    return cfg, str(path)


@pytest.fixture(scope='module')
def predictors(folder):
    """Return a function from a library to a predictor, which is built once."""
    built = {}

    def get(scope):
        if scope not in built:
            cfg, path = save_model(scope, folder)
            with DefaultScope.overwrite_default_scope(cfg.default_scope):
                built[scope] = build_predictor(cfg, path, 'cpu')
        return built[scope]

    return get


@pytest.fixture
def page(request, predictors, tmp_path, monkeypatch):
    monkeypatch.setenv('GRADIO_TEMP_DIR', str(tmp_path / 'gradio'))
    (tmp_path / 'gradio').mkdir()
    return Page(Trial(predictors(getattr(request, 'param', 'mmdet')), 1_000_000), [])


def picture(seed=0, size=(160, 120)):
    small = np.random.RandomState(seed).randint(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size)


def upload(page, path, threshold=0.9, name=None):
    """Return the answer to an upload by its parts. By default there is nothing to draw, which takes longest."""
    answer = page.upload(dict(path=str(path), orig_name=name or path.name), threshold)
    names = ['image', 'status', 'state', 'drawn', 'listed', 'download', 'token', 'panels', *MAPS]
    return SimpleNamespace(**dict(zip(names, answer)), all=answer)


@pytest.fixture
def scene(tmp_path):
    picture().save(tmp_path / 'scene.png')
    return tmp_path / 'scene.png'


# Predictions.


@pytest.mark.parametrize('page', ['mmdet', 'mmseg', 'mmpretrain'], indirect=True)
def test_an_upload_is_drawn_listed_and_offered_as_the_json_of_demo(page, scene):
    answer = upload(page, scene, 0.05)
    assert 'scene.png, 160 x 120 pixels' in answer.status and answer.state.name == 'scene.png'
    assert answer.drawn.ndim == 3 and answer.image.shape == (720, 960, 3)
    sample = page.trial.predictor.predict(read_image(scene))
    written = json.loads(Path(answer.download['value']).read_text())
    assert written == json.loads(json.dumps(page.trial.predictor.entries(sample, 0.05, 'scene.png', 1))) and written
    assert answer.listed.count('<li>') == len(written if 'image_id' in written[0] else written[0]['predictions'])
    assert '<b>nine' not in answer.listed, 'names of classes come from a file: they are text'


HOSTILE = [
    '<img src=x onerror=alert(1)>',
    '\x1b[2J\x00',
    '\u202egnp',
    '\ud800',
    r'$\frac{$',
    7,
    None,
    '',
    'a' * 5000,
    'b\nc',
    'd',
]


@pytest.fixture
def named(page):
    """Return a function that gives the page's model names and colours of classes."""
    predictor = page.trial.predictor
    meta = dict(predictor.model.dataset_meta)
    yield lambda classes, palette: predictor.set_dataset_meta(dict(classes=classes, palette=palette))
    predictor.set_dataset_meta(meta)


def find_all_classes(page, path):
    """Predict a picture; detectors with random weights find an object of each class."""
    result = upload(page, path).state
    if 'pred_instances' in result.sample:
        number = page.trial.predictor.num_classes
        boxes = torch.tensor([[5.0, 5, 60, 60]]).repeat(number, 1)
        masks = torch.zeros(number, *result.sample.ori_shape, dtype=torch.bool)
        found = dict(bboxes=boxes, scores=torch.ones(number), labels=torch.arange(number), masks=masks)
        result.sample.pred_instances = InstanceData(**found)
    return page.redraw(result, 0.05)


@pytest.mark.parametrize('page', ['mmdet', 'mmseg', 'mmpretrain'], indirect=True)
def test_names_of_classes_are_text(page, scene, named):
    """Dollars are no formulas, and characters that are none to print are written as escapes."""
    number = page.trial.predictor.num_classes
    named(HOSTILE[:number], None)
    drawn, listed, download = find_all_classes(page, scene)
    assert drawn.ndim == 3 and '<img' not in listed
    assert all(c == '\n' or c.isprintable() for c in listed)
    json.loads(Path(download['value']).read_text())
    assert page.trial.predictor.classes[:5] == [HOSTILE[0], r'\x1b[2J\x00', r'\u202egnp', r'\ud800', HOSTILE[4]]


@pytest.mark.parametrize(
    'colour', ['red', [1, 2], [float('nan')] * 3, [300, 0, 0], [-1, 0, 0], [None] * 3, 5, [10**400] * 3]
)
def test_colours_that_are_none_are_replaced(colour, page, named):
    named('0123456789', [colour] * 10)
    assert page.trial.predictor.classes == list('0123456789')
    colours = page.trial.predictor.model.dataset_meta['palette']
    assert len(set(colours)) == 10 and all(len(c) == 3 and 0 <= min(c) and max(c) <= 255 for c in colours)


def test_a_text_is_no_list_of_names(page, named):
    named('abcdefghij', None)
    assert page.trial.predictor.classes == list('0123456789')


def test_the_threshold_redraws_without_computing_again(page, scene, monkeypatch):
    answer = upload(page, scene, 0.05)
    scores = answer.state.sample.pred_instances.scores
    monkeypatch.setattr(page.trial.predictor, 'predict', None)
    middle = float(scores.median())
    drawn, listed, download = page.redraw(answer.state, middle)
    assert listed.count('<li>') == len(json.loads(Path(download['value']).read_text())) == int((scores >= middle).sum())
    assert 0 < listed.count('<li>') < len(scores) and not np.array_equal(drawn, answer.drawn)
    assert 'No object' in page.redraw(answer.state, 1.0)[1]
    assert page.redraw(None, 0.5)[0] is None


def test_small_pictures_are_enlarged_with_what_is_drawn_on_them(predictors, scene):
    image = read_image(scene)
    sample = predictors('mmdet').predict(image)
    larger, drawn = enlarge_with_sample(image, sample)
    assert larger.shape == (240, 320, 3)
    assert torch.equal(drawn.pred_instances.bboxes, sample.pred_instances.bboxes * 2)
    assert torch.equal(drawn.pred_instances.masks[:, ::2, ::2], torch.as_tensor(sample.pred_instances.masks))
    assert sample.pred_instances.masks.shape[1:] == (120, 160), 'the sample itself must stay as it is'


def test_the_bar_of_a_class_is_its_share(predictors):
    predictor = predictors('mmpretrain')
    listed = list_predictions(predictor, [dict(predictions=[dict(label=1, category='a&b', score=0.25)])], 0.5)
    colour = ', '.join(map(str, predictor.model.dataset_meta['palette'][1]))
    assert f'rgb({colour})' in listed and 'a&amp;b' in listed and 'width: 25.0%' in listed


# Two users.


def test_two_users_get_their_own_results(page, tmp_path, monkeypatch):
    for seed in (1, 2):
        picture(seed).save(tmp_path / f'{seed}.png')
    alone = {seed: upload(page, tmp_path / f'{seed}.png', 0.05) for seed in (1, 2)}
    real, inside, most = page.trial.predictor.predict, [], []

    def predict(image):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.05)
        result = real(image)
        inside.pop()
        return result

    monkeypatch.setattr(page.trial.predictor, 'predict', predict)
    together = {}
    threads = [
        threading.Thread(target=lambda s=s: together.update({s: upload(page, tmp_path / f'{s}.png', 0.05)}))
        for s in (1, 2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1, 'one thread at a time is in the model'
    for seed in (1, 2):
        assert together[seed].state.name == f'{seed}.png'
        scores = [answer[seed].state.sample.pred_instances.scores for answer in (alone, together)]
        assert torch.equal(*scores) and together[seed].listed == alone[seed].listed
    assert together[1].listed != together[2].listed


# Attention.


def click(page, state, x, y, stage=1, block=0, head='mean'):
    return page.click(state, stage, block, head, SimpleNamespace(index=[x, y]))


def test_a_click_shows_the_maps_of_its_token(page, scene):
    state = upload(page, scene).state
    said, row, *maps = click(page, state, 480, 360)  # of 960 x 720: the centre
    # The model's input of 160 x 120 pixels is padded to 160 x 128, and stage 1 has a stride of 8.
    assert 'row 7, column 10' in said and '16 x 20 tokens' in said and row['visible']
    assert [update['label'].split(':')[0] for update in maps] == list(MAPS) and maps[0]['label'].endswith('0 to 1')
    assert all(update['value'].shape == (360, 480, 3) for update in maps)
    pixels = maps[0]['value'].astype(int)
    centre, corner = pixels[205:215, 225:235], pixels[:10, :10]  # beside the outline of the token, and far away
    assert centre.mean() > corner.mean() + 40

    other = click(page, state, 480, 360, head=0)
    assert not np.array_equal(other[-1]['value'], maps[-1]['value'])
    block, head, *answer = page.choose_stage(state, 2)
    stage = page.trial.backbone.stages[2]
    assert block['value'] == len(stage) - 1 and len(head['choices']) == stage[0].attn.num_heads + 1
    assert 'row 3, column 5' in answer[0]


def test_a_click_without_a_picture_asks_for_one(page, scene):
    state = upload(page, scene).state
    click(page, state, 10, 10)
    image, said, forgotten, *_ = page.clear()
    assert image is forgotten is None and 'Drop a picture' in said
    said, row, *maps = click(page, forgotten, 10, 10)
    assert 'Click into the picture' in said and not row['visible'] and maps == [None] * 3


def test_the_same_block_is_computed_once(page, scene, monkeypatch):
    state = upload(page, scene).state
    first = click(page, state, 10, 10)
    monkeypatch.setattr(page.trial.predictor, 'predict', None)
    assert np.array_equal(click(page, state, 10, 10)[-1]['value'], first[-1]['value'])
    assert not np.array_equal(click(page, state, 900, 700)[-1]['value'], first[-1]['value'])


@pytest.mark.parametrize('page', ['resnet'], indirect=True)
def test_another_backbone_has_no_attention_and_the_page_says_why(page, scene):
    assert len(upload(page, scene).all) == 6
    config = page.build('title', 'facts').get_config_file()
    texts = [str(part['props'].get('value')) for part in config['components']]
    assert any('Not shown: the backbone is a ResNet' in text for text in texts)
    assert not any(part['props'].get('label') == 'Stage' for part in config['components'])


def test_heat_is_brightest_at_its_maximum_and_absent_where_the_model_is_blind():
    heat = np.array([[0.0, 0.5, 1.0, np.nan]])
    shown = lay_over(np.full((1, 4, 3), 100, np.uint8), heat)[0].astype(int).sum(1)
    assert shown[0] < shown[1] < shown[2] and shown[3] == 300


# Files and sizes.


def damage(path, kind):
    if kind == 'text':
        path.write_text('no picture')
    elif kind == 'empty':
        path.write_bytes(b'')
    elif kind == 'truncated':
        picture(size=(400, 300)).save(path, format='JPEG')
        path.write_bytes(path.read_bytes()[:2000])
    elif kind == 'bomb':
        Image.new('1', (1, 1)).save(path, format='PNG')
        content = path.read_bytes()
        header = b'IHDR' + struct.pack('>II', 30000, 30000) + content[24:29]
        path.write_bytes(content[:12] + header + struct.pack('>I', zlib.crc32(header)) + content[33:])
    elif kind == 'large':
        Image.new('L', (1001, 1000)).save(path, format='PNG')
    elif kind == 'flat':
        picture(size=(2400, 6)).save(path, format='PNG')
    elif kind == 'postscript':
        path.write_text('%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n')


@pytest.mark.parametrize(
    'kind, words',
    [
        ('text', 'mine.png cannot be read as a picture'),
        ('empty', 'mine.png cannot be read as a picture'),
        ('truncated', 'mine.png is damaged: '),
        ('bomb', 'mine.png has more pixels than Pillow opens: |mine.png has 30000 x 30000 pixels, and this page takes'),
        ('large', 'mine.png has 1001 x 1000 pixels, and this page takes 1,000,000'),
        ('flat', 'mine.png, of 2400 x 6 pixels, cannot be predicted with this model: '),
        ('postscript', 'mine.png cannot be read as a picture'),
    ],
)
def test_a_bad_file_gets_a_sentence(kind, words, page, tmp_path):
    damage(tmp_path / 'x', kind)
    answer = upload(page, tmp_path / 'x', name='mine.png')
    assert any(word in answer.status for word in words.split('|')) and 'class="error"' in answer.status
    assert str(tmp_path) not in answer.status, "the server's folders are its own"
    assert answer.image is answer.state is answer.drawn is None and not answer.download['interactive']


def test_the_name_of_a_file_is_text_and_no_path(page, scene):
    answer = upload(page, scene, name='../../<img src=x>.png')
    assert '<img' not in answer.status and answer.state.name == '<img src=x>.png'


@pytest.mark.parametrize('size', [(1, 1), (400, 1), (1, 30)])
def test_odd_sizes_are_predicted_or_refused(size, page, tmp_path):
    picture(size=size).save(tmp_path / 'odd.png')
    answer = upload(page, tmp_path / 'odd.png')
    if answer.state is None:
        assert 'cannot be predicted' in answer.status
    else:
        drawn, listed, download = page.redraw(answer.state, 0.5)
        assert drawn is not None or 'cannot be drawn' in listed
        assert download['interactive']
        said = click(page, answer.state, 0, 0)[0]
        assert 'token' in said or 'class="error"' in said


@pytest.mark.parametrize('mode, name', [('L', 'a.png'), ('I;16', 'a.png'), ('CMYK', 'a.jpg'), ('RGBA', 'a.png')])
def test_pictures_of_every_kind(mode, name, page, tmp_path):
    image = picture().convert('L') if mode == 'I;16' else picture().convert(mode)
    if mode == 'I;16':
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    image.save(tmp_path / name)
    read = page.trial.read(tmp_path / name, name)
    assert read.shape == (120, 160, 3) and np.array_equal(read, read_image(tmp_path / name))


def test_pictures_of_four_channels_are_read_as_the_pipeline_does(tmp_path):
    cfg, _ = save_model('mmpretrain', tmp_path)
    cfg.model.backbone.in_channels = 4
    cfg.model.data_preprocessor = dict(type='ClsDataPreprocessor', mean=[120.0] * 4, std=[60.0] * 4, num_classes=10)
    cfg.test_dataloader.dataset.pipeline[0].color_type = 'unchanged'
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict()), tmp_path / 'four.pth')
        trial = Trial(build_predictor(cfg, str(tmp_path / 'four.pth'), 'cpu'), 1_000_000)
    pixels = np.random.RandomState(0).randint(0, 256, (48, 64, 4), np.uint8)
    Image.fromarray(pixels).save(tmp_path / 'bands.png')
    result = trial.predict(tmp_path / 'bands.png', 'bands.png')
    assert result.loaded.shape == pixels.shape and result.image.tolist() == pixels[..., :3].tolist()
    result.pixel = (3.0, 3.0)
    assert len(trial.attend(result, 0, 0, None).images) == len(MAPS) and trial.draw(result, 0.0).ndim == 3
    Image.fromarray(pixels[..., :3]).save(tmp_path / 'photo.png')
    with pytest.raises(UsageError, match='read with 3 channels, and the model takes 4'):
        trial.predict(tmp_path / 'photo.png', 'photo.png')


def test_pictures_for_clicks_are_neither_tiny_nor_huge():
    assert clickable(np.zeros((4, 2, 3), np.uint8)).shape == (960, 480, 3)
    assert clickable(np.zeros((1000, 1200, 3), np.uint8)).shape == (1000, 1200, 3)
    assert clickable(np.zeros((100, 3200, 3), np.uint8)).shape == (50, 1600, 3)


def test_examples_are_of_the_validation_set(tmp_path):
    (tmp_path / 'val').mkdir()
    for i in range(20):
        (tmp_path / f'val/{i:02}.jpg').touch()
    (tmp_path / 'val/notes.txt').touch()
    cfg = Config.fromfile(ROOT / f'configs/{CONFIGS["mmseg"]}.py')
    cfg.val_dataloader.dataset.update(data_root=str(tmp_path), data_prefix=dict(img_path='val'))
    assert [path.name for path in find_examples(cfg, 4)] == ['00.jpg', '05.jpg', '10.jpg', '15.jpg']
    cfg.val_dataloader.dataset.data_root = cfg.test_dataloader.dataset.data_root = str(tmp_path / 'nowhere')
    assert find_examples(cfg, 4) == []
