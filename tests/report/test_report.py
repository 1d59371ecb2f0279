"""tools/analysis_tools/report.py: the page in a browser, scores as the libraries', gaps, mistakes, hostile files."""

import io
import json
import os
import pickle
import re
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from PIL import Image

pytest.importorskip('plotly', reason='the extra [report] is not installed')
pytest.importorskip('matplotlib', reason='the extra [report] is not installed')

from rmt_mm.errors import DataError, UsageError
from rmt_mm.tools.commands import report
from rmt_mm.tools.pictures import choose_colours
from rmt_mm.tools.report.detection import match
from rmt_mm.tools.report.logs import read_environment, read_logs
from rmt_mm.tools.report.predictions import read_predictions
from rmt_mm.tools.report.run_config import compare, read_dumped
from rmt_mm.tools.report.scenes import (
    Instances,
    _find_place,
    add_caption,
    contact_sheet,
    draw_instances,
    draw_label_map,
    side_by_side,
)
from rmt_mm.tools.report.sections import read_run

from support import ROOT
from support.browser import open_browser
from support.miniature import call, make_data, shorten
from support.work_dirs import CLASSES, IMAGES, make_classifier, make_detector, make_segmentor, make_work_dir


def write_report(*args):
    """Run the tool in this process, as for the command line ``args``."""
    sys_argv, sys.argv = sys.argv, ['report.py', *map(str, args)]
    try:
        report.main()
    finally:
        sys.argv = sys_argv
        DefaultScope._instance_dict.clear()


@pytest.fixture(scope='module')
def detector(tmp_path_factory):
    folder = make_detector(tmp_path_factory.mktemp('detector'))
    write_report(folder, '--no-eval', '--show-dir', folder / 'scenes')
    return folder


@pytest.fixture(scope='module')
def segmentor(tmp_path_factory):
    folder = make_segmentor(tmp_path_factory.mktemp('segmentor'))
    write_report(folder, '--no-eval')
    return folder


@pytest.fixture(scope='module')
def classifier(tmp_path_factory):
    folder = make_classifier(tmp_path_factory.mktemp('classifier'))
    write_report(folder, '--no-eval')
    return folder


def evaluate(folder, *options):
    """Return the evaluation of a work dir, and where its predictions are from or why there is none."""
    sys_argv, sys.argv = sys.argv, ['report.py', str(folder), '--no-eval', *options]
    try:
        args = report.parse_args()
    finally:
        sys.argv = sys_argv
    return report.evaluate(args, read_run(folder))[:2]


# The page.


@pytest.mark.parametrize('task', ['detector', 'segmentor', 'classifier'])
def test_names_of_classes_have_no_control_characters(task, request):
    text = (request.getfixturevalue(task) / 'report.html').read_text()
    assert '\x1b' not in text and '\u202e' not in text


@pytest.fixture(scope='module')
def browser():
    with open_browser() as chromium:
        yield chromium


@pytest.mark.parametrize(
    'task, charts',
    [
        ('detector', 9),
        pytest.param('segmentor', 8, marks=pytest.mark.slow),
        pytest.param('classifier', 8, marks=pytest.mark.slow),
    ],
)
def test_page_draws_every_chart_and_asks_nothing_of_the_network(task, charts, browser, request):
    path = request.getfixturevalue(task) / 'report.html'
    page = browser.new_page(viewport=dict(width=1300, height=900))
    requests, problems = [], []
    page.on('request', lambda asked: requests.append(asked.url))
    page.on('console', lambda message: problems.append(message.text))
    page.on('pageerror', lambda error: problems.append(str(error)))
    page.on('dialog', lambda dialog: (problems.append(dialog.message), dialog.dismiss()))
    page.goto(path.as_uri())
    figures = page.locator('figure')
    assert figures.count() == charts
    for figure in figures.all():
        traces = len(json.loads(figure.locator('script').text_content())['data'])
        shown = figure.locator('.scatterlayer .trace, .barlayer .trace, .heatmaplayer .hm, .legend .traces')
        assert figure.locator('svg.main-svg').count() and shown.count() >= traces
    assert page.title() == 'stranger'
    text = page.inner_text('main')
    assert all(name in text for name in CLASSES[:2]) and '<img src=x onerror=alert(1)>' in text
    assert page.locator('.gallery img').evaluate_all('list => list.every(image => image.naturalWidth > 400)')
    assert page.locator('.gallery img').count() == 2 * 3 if task != 'classifier' else 12
    links = page.locator('nav a').evaluate_all('list => list.map(a => document.querySelector(a.hash) !== null)')
    assert len(links) > 8 and all(links)
    assert problems == [] and [url for url in requests if not url.startswith('data:')] == [path.as_uri()]
    page.close()


def test_sheet_and_all_scenes(detector):
    assert Image.open(detector / 'predictions.png').size[0] > 2000
    scenes = sorted(path.name for path in (detector / 'scenes').iterdir())
    assert len(scenes) == IMAGES and scenes[0] == '0001_0.jpg'  # the exact one
    assert Image.open(detector / 'scenes' / scenes[0]).size[0] == 2 * 480 + 12


def test_other_runs_are_compared(detector, tmp_path):
    cfg = dict(default_scope='mmdet', optim_wrapper=dict(lr=0.5))
    lines = [{'coco/bbox_mAP': value, 'step': step} for step, value in ((1, 0.7), (2, 0.6))]
    other = make_work_dir(tmp_path / 'other', cfg, 'other_config', lines)
    write_report(detector, other, '--no-eval', '--out', tmp_path / 'both.html')
    text = (tmp_path / 'both.html').read_text()
    assert 'id="comparison"' in text and 'optim_wrapper.lr' in text and 'other_config' in text
    for row in ('mAP, best</td><td>0.200</td><td>0.700', 'mAP, last</td><td>0.200</td><td>0.600'):
        assert row in text


# Scores.


def test_detector_has_the_scores_of_mmdet(detector):
    from mmdet.evaluation import CocoMetric

    result, _ = evaluate(detector)
    metric = CocoMetric(str(detector.parent / 'data/annotations.json'), metric=['bbox', 'segm'], classwise=True)
    metric.dataset_meta = dict(classes=CLASSES)
    metric.process({}, read_predictions(detector / 'predictions.pkl'))
    expected = metric.compute_metrics(metric.results)
    for ours, theirs in (('box', 'bbox'), ('mask', 'segm')):
        for part, of_mmdet in (('AP', 'mAP'), ('AP50', 'mAP_50'), ('AP75', 'mAP_75')):
            value = result.summary[f'{ours} {part}']
            assert 0 < value < 1 and round(value, 3) == expected[f'{theirs}_{of_mmdet}']
    for name, value in zip(CLASSES, result.per_class['mask AP']):
        assert round(value, 3) == expected[f'{name}_precision']
    assert result.confusion.sum(1)[:3].sum() == 2 * IMAGES  # every object is in a row
    assert result.confusion[:3, :3].trace() == 10 and result.confusion[:, -1].sum() == 2
    assert result.ranked()[0].score == 1 and result.scenes[0].score == 1
    # A scene counts what has the mask and the class of an object.
    found = [int(re.search(r'(\d) of 2 found', scene.caption)[1]) for scene in result.scenes]
    assert sum(found) == result.confusion[:3, :3].trace()


def test_segmentor_has_the_scores_of_mmseg(segmentor):
    result, _ = evaluate(segmentor)
    matrix = result.confusion
    iou = np.diag(matrix) / (matrix.sum(0) + matrix.sum(1) - np.diag(matrix))
    assert np.allclose(result.per_class['IoU'], 100 * iou) and np.isclose(result.summary['mIoU'], 100 * iou.mean())
    assert matrix.sum() == IMAGES * 38 * 56  # without the two rows of ignored pixels
    assert result.scenes[0].score == 1 and result.ranked()[-1].score < 0.9


def test_classifier_has_the_scores_of_mmpretrain(classifier):
    result, _ = evaluate(classifier)
    assert np.isclose(result.summary['top-1 accuracy'], 100 * 5 / 7)
    assert result.confusion.tolist() == [[5, 2, 0], [0, 5, 2], [2, 0, 5]]
    assert np.allclose(result.per_class['recall'], 100 * 5 / 7)
    assert all(curve.precision[0] == 1 and curve.recall[-1] == 1 for curve in result.curves)
    assert result.selected(2)['Worst'][0].score == min(scene.score for scene in result.scenes)


def test_matches_are_one_to_one_and_the_best_choose_first():
    assert match(np.array([[0.6, 0.9], [0.7, 0.95], [0.4, 0.2]])) == [(0, 1), (1, 0)]
    assert match(np.zeros((2, 0))) == [] and match(np.zeros((0, 2))) == []


# Pictures.


def test_a_name_stands_where_no_mask_is():
    covered = np.zeros((160, 160), np.uint8)
    box, size = (60, 60, 100, 100), (30, 19)
    assert _find_place(box, size, (160, 160), cv2.integral(covered), []) == (60, 40)
    covered[:60] = 1
    assert _find_place(box, size, (160, 160), cv2.integral(covered), []) == (60, 101)


def test_names_cover_neither_masks_nor_each_other():
    masks = [np.zeros((160, 160), bool) for _ in range(3)]
    boxes = np.array([[60, 60, 100, 100], [60, 60, 100, 100], [62, 60, 100, 102]])
    for mask, (left, top, right, bottom) in zip(masks, boxes):
        mask[top:bottom, left:right] = True
    gray = np.full((160, 160, 3), 128, np.uint8)
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    drawn = np.array(
        draw_instances(gray, Instances(boxes, np.array([0, 1, 2]), masks), ['one', 'two', 'three'], colours)
    )
    assert drawn.shape == (480, 480, 3)
    areas = [(drawn == colour).all(2).sum() for colour in colours]
    assert min(areas) > 400  # each name's plate is seen whole, but for its letters
    inside = drawn[195:285, 200:285]
    assert not any((inside == colour).all(2).any() for colour in colours[:2])


def test_a_class_has_one_colour_in_truth_and_prediction():
    image = np.full((20, 30, 3), 90, np.uint8)
    labels = np.zeros((20, 30), np.uint8)
    labels[5:15, 5:20] = 1
    colours = choose_colours(2)
    drawn = [np.array(draw_label_map(image, part, colours, [0])) for part in (labels, np.roll(labels, 4, 1))]
    assert (drawn[0][160, 160] == drawn[1][160, 224]).all() and (drawn[0][5, 5] == 90).all()
    assert len(set(choose_colours(200))) > 150 and choose_colours(2, [[1, 2, 3], [4, 5, 6]]) == [(1, 2, 3), (4, 5, 6)]
    assert choose_colours(2, [[1, 2, 3], [4, 5, float('nan')]]) == choose_colours(2, 'ab') == colours


def test_sheets_hold_pictures_of_any_size():
    wide, high = Image.new('RGB', (300, 20)), Image.new('RGB', (10, 400))
    sheet = contact_sheet({'Best': [add_caption(side_by_side(wide, high), 'x' * 500), high], 'Worst': [wide]}, 'title')
    assert sheet.size[0] > 600 and sheet.size[1] > 500
    empty = Instances(np.zeros((0, 4)), np.zeros(0, int), [])
    assert draw_instances(np.zeros((1, 3000, 3), np.uint8), empty, [], []).size == (480, 1)


# Logs and configs.


def test_logs_of_resumed_runs_are_one(tmp_path):
    folder = make_work_dir(tmp_path, {}, lines=[dict(mIoU=1.0, step=0), dict(mIoU=2.0, step=40)], by_epoch=False)
    later = folder / '20260102_000000/vis_data'
    later.mkdir(parents=True)
    later.joinpath('scalars.json').write_text(
        '{"loss": 9.0, "iter": 80, "step": 80}\n{"loss": NaN, "iter": 90, "step": 90}\n[1]\n{"loss": 1.0, "it'
    )
    logs = read_logs(folder)
    assert [x for x, _ in logs.curve('loss')] == [*range(10, 91, 10)] and logs.curve('loss')[7] == (80, 9.0)
    assert logs.val_curve('mIoU') == [(40, 2.0)]  # without the test, at step 0
    assert logs.last_run == later.parent and not logs.by_epoch
    assert [note.split(': ')[-1].split(',')[0] for note in logs.notes] == [
        'line 3 is cut off or damaged',
        'line 4 is cut off or damaged',
        'loss is not finite at 1 logged steps',
    ]
    environment = dict(read_environment(folder / '20260101_000000'))
    assert environment['MMEngine'] == '0.10.0' and environment['seed'] == '7' and len(environment) == 5


@pytest.mark.skipif(sys.platform != 'linux', reason='other systems have no names that are no text')
def test_a_folder_whose_name_is_no_text(tmp_path):
    """Python reads the bytes of such a name as halves of surrogate pairs."""
    folder = make_work_dir(tmp_path / os.fsdecode(b'w\xff'), {})
    done = call('tools/analysis_tools/report.py', folder, '--no-eval')
    assert 'Report: ' in done.stdout and 'w\\udcff' in (folder / 'report.html').read_text()


@pytest.mark.parametrize('number', ['9' * 400, '1e308', '"\\ud800"'])
def test_odd_numbers_of_a_log_are_a_page(number, tmp_path):
    line = '{"loss": 1.0, "iter": 90, "step": 90, "time": %s, "memory": %s}\n{"mIoU": %s, "step": 90}\n'
    folder = make_work_dir(tmp_path, {}, by_epoch=False)
    path = folder / '20260101_000000/vis_data/scalars.json'
    path.write_text(path.read_text() + line % (number, number, number))
    write_report(folder, '--no-eval')
    assert 'Curves' in (folder / 'report.html').read_text()


@pytest.mark.parametrize('name', ['detection/dino-4scale_rmt-t_8xb2-12e_coco', 'segmentation/rmt-mini_fpn_digits'])
def test_dumped_configs_are_read_without_running_them(name, tmp_path):
    cfg = Config.fromfile(ROOT / f'configs/{name}.py')
    cfg.dump(tmp_path / 'a.py')
    read = read_dumped(tmp_path / 'a.py')
    assert read.to_dict() == Config.fromfile(tmp_path / 'a.py').to_dict() and compare(cfg, read) == []
    read.optim_wrapper.optimizer.lr = 7
    [change] = compare(cfg, read)
    assert change.key == 'optim_wrapper.optimizer.lr' and change.run == '7'


@pytest.mark.parametrize(
    'text',
    ['import os', 'a = open("x")', 'a = dict(b=__import__("os"))', 'a = dict(**{})', 'a = [', 'a = b', 'a.b = 1']
    + ['default_scope = 5', 'model = [1]', 'val_dataloader = "x"', 'test_dataloader = dict(dataset=5)'],
)
def test_a_config_with_code_is_not_read(text, tmp_path):
    (tmp_path / 'a.py').write_text(text)
    with pytest.raises(UsageError, match='is not a config that mmengine dumped'):
        read_dumped(tmp_path / 'a.py')


# Hostile predictions.


class Attack:
    def __init__(self, function, *args):
        self.reduced = function, args

    def __reduce__(self):
        return self.reduced


def storage(payload):
    stream = io.BytesIO()
    torch.save(payload, stream, _use_new_zipfile_serialization=False)
    return Attack(torch.storage._load_from_bytes, stream.getvalue())


@pytest.mark.parametrize(
    'content',
    [
        [Attack(os.system, 'touch ran')],
        [dict(a=Attack(eval, 'open("ran", "w")'))],
        storage(Attack(os.system, 'touch ran')),
        Attack(torch.storage._load_from_bytes, pickle.dumps(Attack(os.system, 'touch ran'))),
        [dict(a=Attack(torch._utils._rebuild_tensor_v2, torch.ones(2).storage(), 0, (9**9,), (0,), False, {}))],
        [dict(a=Attack(torch._utils._rebuild_tensor_v2, torch.ones(2).storage(), 0, (100,), (1,), False, {}))],
        dict(a=1),
        [],
        [1],
    ],
)
def test_predictions_that_are_no_predictions_are_refused(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('a.pkl').write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(DataError, match='a.pkl'):
        read_predictions(Path('a.pkl'))
    assert not Path('ran').exists()


def test_predictions_come_back_as_they_were(tmp_path):
    content = [
        dict(a=torch.arange(6.0).view(2, 3)[:, 1:], b=b'\x00\xff', c=('d', 1.5, None), e=torch.tensor([], dtype=int))
    ]
    (tmp_path / 'a.pkl').write_bytes(pickle.dumps(content, protocol=2))
    [read] = read_predictions(tmp_path / 'a.pkl')
    assert torch.equal(read['a'], content[0]['a']) and torch.equal(read['e'], content[0]['e'])
    assert read['b'] == b'\x00\xff' and read['c'] == content[0]['c']
    (tmp_path / 'a.pkl').write_bytes((tmp_path / 'a.pkl').read_bytes()[:-20])
    with pytest.raises(DataError, match='is damaged'):
        read_predictions(tmp_path / 'a.pkl')


def damage(folder, change):
    samples = pickle.loads((folder / 'predictions.pkl').read_bytes())
    change(samples)
    (folder / 'damaged.pkl').write_bytes(pickle.dumps(samples, protocol=2))
    return folder / 'damaged.pkl'


@pytest.mark.parametrize(
    'task, change, words',
    [
        ('detector', lambda s: s[0].update(img_id=99), 'of other images'),
        ('detector', lambda s: s[0]['pred_instances']['labels'].fill_(3), 'of other classes'),
        ('detector', lambda s: s[0]['pred_instances'].update(scores=torch.ones(5)), 'differ in number'),
        ('detector', lambda s: s[0]['pred_instances']['masks'][0].update(size=[9000, 9000]), 'is damaged'),
        ('detector', lambda s: s[0].update(pred_instances=None), 'not of a detector'),
        ('segmentor', lambda s: s.pop(), 'of 6 images'),
        ('segmentor', lambda s: s.reverse(), 'of other images'),
        ('segmentor', lambda s: s[0]['pred_sem_seg']['data'].fill_(7), 'of other classes'),
        ('segmentor', lambda s: s[0].update(pred_sem_seg=None), 'is no map'),
        ('classifier', lambda s: s[0].update(pred_score=torch.ones(4)), 'of other classes'),
        ('classifier', lambda s: s[0].update(pred_score=None), 'of other classes'),
    ],
)
def test_predictions_that_do_not_fit_are_a_gap(task, change, words, request):
    folder = request.getfixturevalue(task)
    result, gap = evaluate(folder, '--predictions', str(damage(folder, change)))
    assert result is None and words in gap


# Gaps and mistakes.


def test_an_interrupted_run_of_two_configs_has_a_page(tmp_path):
    folder = make_work_dir(tmp_path / 'work', dict(default_scope='mmdet'))
    (folder / 'another.py').write_text('a = 1\n')
    os.utime(folder / 'another.py', (0, 0))
    write_report(folder, '--no-eval')
    text = (folder / 'report.html').read_text()
    for words in (
        'There was no validation yet',
        'runs of several configs: stranger, another',
        'predictions.pkl does not exist, and --no-eval evaluates no checkpoint',
        '--no-eval builds no model',
        'No config of rmt_mm is called stranger',
    ):
        assert words in text
    assert '</script><b>' not in text


def test_images_that_are_gone_are_noted(tmp_path):
    folder = make_detector(tmp_path)
    (tmp_path / 'data/images/0.png').write_bytes(b'no picture')
    write_report(folder, '--no-eval')
    assert '0.png cannot be read as an image' in (folder / 'report.html').read_text()
    (tmp_path / 'data/annotations.json').unlink()
    result, gap = evaluate(folder)
    assert result is None and 'the validation set cannot be read' in gap


@pytest.mark.parametrize(
    'kind', ['os.system', 'mmengine.dataset.ConcatDataset', 'torch.utils.data.Dataset', 'Nothing', 7]
)
def test_only_data_sets_of_the_libraries_are_built(kind):
    cfg = Config(dict(default_scope='mmdet', test_dataloader=dict(dataset=dict(type=kind, command='touch ran'))))
    with pytest.raises(UsageError, match='evaluation takes data sets of mmdet itself'):
        report.build_dataset(cfg)


@pytest.mark.parametrize(
    'args, words',
    [
        (['nowhere'], 'nowhere is no folder'),
        (['EMPTY'], 'is no work dir: it has no log'),
        (['WORK', '--out', 'a.txt'], 'the page is an .html file'),
        (['WORK', '--out', 'nowhere/a.html'], 'the folder nowhere does not exist'),
        (['WORK', '--score-thr', '2'], 'scores are from 0 to 1'),
        (['WORK', '--show', '0'], 'it takes 1 or more'),
        (['WORK', '--base', 'nothing'], 'config nothing does not exist'),
        (['WORK', '--predictions', 'no.pkl'], 'there is no such file'),
    ],
)
def test_mistakes_are_one_sentence(args, words, tmp_path):
    (tmp_path / 'empty').mkdir()
    make_work_dir(tmp_path / 'work', dict(default_scope='mmdet'))
    places = dict(EMPTY=tmp_path / 'empty', WORK=tmp_path / 'work')
    with pytest.raises(SystemExit) as stop:
        write_report(*(places.get(arg, arg) for arg in args), '--no-eval')
    assert words in str(stop.value.code) and str(stop.value.code).startswith('error: ')


def test_missing_libraries_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(report, 'EXTRA', ('plotly', 'no_such_library'))
    with pytest.raises(SystemExit) as stop:
        write_report(tmp_path)
    assert 'the report needs no_such_library: run `pip install rmt-mm[report]`' in str(stop.value.code)


@pytest.mark.slow
@pytest.mark.parametrize('scope', ['mmdet', 'mmseg', 'mmpretrain'])
def test_a_training_without_predictions_is_evaluated(scope, tmp_path):
    configs = dict(
        mmdet='detection/mask-rcnn_rmt-mini_fpn_4e_digits',
        mmseg='segmentation/rmt-mini_fpn_digits',
        mmpretrain='classification/rmt-digits',
    )
    cfg = Config.fromfile(ROOT / f'configs/{configs[scope]}.py')
    shorten(cfg, make_data(tmp_path / 'data'))
    if scope == 'mmdet':  # make_data gives the digits other names
        names = 'person bicycle car motorcycle airplane bus train truck boat'.split()
        for split in ('train', 'val', 'test'):
            cfg[f'{split}_dataloader'].dataset.metainfo = dict(classes=[*names, 'traffic light'])
    cfg.dump(tmp_path / 'tiny.py')
    call('tools/train.py', tmp_path / 'tiny.py', '--work-dir', tmp_path / 'work')
    done = call('tools/analysis_tools/report.py', tmp_path / 'work')
    text = (tmp_path / 'work/report.html').read_text()
    assert (tmp_path / 'work/predictions.pkl').is_file() and 'id="confusion"' in text and 'id="size"' in text
    assert 'note: ' not in done.stderr and 'Nothing was counted' not in text
    read = read_predictions(tmp_path / 'work/predictions.pkl')
    assert len(read) > 1 and 'seg_logits' not in read[0]
    # The last checkpoint is cut off: a gap, and the rest of the page.
    (tmp_path / 'work/predictions.pkl').unlink()
    checkpoint = Path((tmp_path / 'work/last_checkpoint').read_text())
    checkpoint.write_bytes(checkpoint.read_bytes()[:5000])
    done = call('tools/analysis_tools/report.py', tmp_path / 'work')
    assert 'is cut off: its end is missing' in done.stderr and 'could not be evaluated' in done.stderr
    assert 'id="curves"' in (tmp_path / 'work/report.html').read_text()
