"""The effects of options of tools/train.py and tools/test.py on the Runner that they build; no training, no testing.

The tools run in this process, up to the call of mmengine's ``Runner.train`` or ``Runner.test``.
"""

import os
import runpy
import sys
import uuid

import pytest
import torch
from torch import nn

pytest.importorskip('mmdet')
pytest.importorskip('mmpretrain')
pytest.importorskip('mmseg')

from mmengine.config import Config  # noqa: E402
from mmengine.registry import MODELS, DefaultScope  # noqa: E402
from mmengine.runner import Runner  # noqa: E402

import rmt_mm  # noqa: E402
from rmt_mm.tools import cli  # noqa: E402
from rmt_mm.tools.cli.saving import known_keys  # noqa: E402

from support import ROOT  # noqa: E402
from support.miniature import call  # noqa: E402

DETECTOR = str(ROOT / 'configs/detection/mask-rcnn_rmt-mini_fpn_digits.py')
CLASSIFIER = str(ROOT / 'configs/classification/rmt-digits.py')
SEGMENTOR = str(ROOT / 'configs/segmentation/rmt-tiny_fpn_8xb2-80k_ade20k-512x512.py')


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    out = tmp_path_factory.mktemp('data') / 'digits'
    call('tools/dataset_converters/make_digits.py', out, '--train', 4, '--val', 2, '--size', 64, '--renderings', 1)
    return out


@pytest.fixture
def built(data, tmp_path, monkeypatch):
    """Return a function that runs a tool with a config, and returns the Runner that would have trained or tested."""
    runners = []
    monkeypatch.setattr(Runner, 'train', lambda self: runners.append(self))
    monkeypatch.setattr(Runner, 'test', lambda self: runners.append(self))
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '0')  # restored afterwards

    def run(tool, config, *args, options=()):
        root = data / {DETECTOR: 'coco', CLASSIFIER: 'imagenet'}.get(config, 'ade20k')
        name = uuid.uuid4().hex  # mmengine keeps one visualizer, logger and scope for each name in a process
        own = [f'experiment_name={name}', f'visualizer.name={name}']
        for split in ('train', 'val', 'test'):
            loader = f'{split}_dataloader'
            own += [
                f'{loader}.dataset.data_root={root}/',
                f'{loader}.num_workers=0',
                f'{loader}.persistent_workers=False',
            ]
        if config == DETECTOR:
            annotations = f'{root}/annotations/instances_val2017.json'
            own += [f'val_evaluator.ann_file={annotations}', f'test_evaluator.ann_file={annotations}']
        argv = [tool, config, *args, '--work-dir', str(tmp_path / 'work'), '--cfg-options', *own, *options]
        monkeypatch.setattr(sys, 'argv', list(map(str, argv)))
        with DefaultScope.overwrite_default_scope(None):
            runpy.run_path(str(ROOT / 'tools' / tool), run_name='__main__')
        return runners.pop()

    return run


@pytest.fixture
def checkpoint(tmp_path):
    cfg = Config.fromfile(SEGMENTOR)
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(cfg.model)
    torch.save(dict(state_dict=model.state_dict(), meta={}), tmp_path / 'model.pth')
    return tmp_path / 'model.pth'


def learning_rate(runner):
    """Return the learning rate after the steps that Runner.train takes before the first iteration."""
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    runner.scale_lr(runner.optim_wrapper, runner.auto_scale_lr)
    return runner.optim_wrapper.param_groups[0]['lr']


def test_auto_scale_lr(built):
    options = ['train_dataloader.batch_size=2']  # the config's rate is for 8
    assert learning_rate(built('train.py', DETECTOR, options=options)) == pytest.approx(1e-3)
    assert learning_rate(built('train.py', DETECTOR, '--auto-scale-lr', options=options)) == pytest.approx(1e-3 / 4)


def test_amp(built, capfd):
    """--amp changes a config without AMP. On a CPU the tool trains in fp32 and prints that."""
    cfg = Config.fromfile(DETECTOR)
    assert cfg.optim_wrapper.type == 'OptimWrapper'
    cli.use_amp(cfg)
    assert (cfg.optim_wrapper.type, cfg.optim_wrapper.loss_scale) == ('AmpOptimWrapper', 'dynamic')
    if torch.cuda.is_available():
        assert built('train.py', DETECTOR, '--amp').cfg.optim_wrapper.type == 'AmpOptimWrapper'
        return
    for args, said in ((), False), (('--amp',), True):
        assert built('train.py', DETECTOR, *args).cfg.optim_wrapper.type == 'OptimWrapper'
        assert ('fp32 instead of AMP' in ''.join(capfd.readouterr())) == said


def test_sync_bn_becomes_bn_without_a_gpu(built):
    if torch.cuda.is_available():
        pytest.skip('SyncBN stays as it is where there is a GPU')
    runner = built('train.py', DETECTOR)
    norms = [m for m in runner.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) == 7 and not any(isinstance(m, nn.SyncBatchNorm) for m in norms)
    assert runner.cfg.model.backbone.norm_cfg.type == 'BN'  # mmengine replaces it too, but in a single process alone


def test_tta_leaves_a_config_that_can_be_used_again(built, checkpoint, tmp_path):
    runner = built('test.py', SEGMENTOR, checkpoint, '--tta')
    left = [tmp_path / 'work' / os.path.basename(SEGMENTOR), *(tmp_path / 'work').glob('*/vis_data/config.py')]
    assert len(left) == 2 and type(runner.model).__name__ == 'SegTTAModel'
    for path in left:
        assert Config.fromfile(path).model.type == 'EncoderDecoder'
    again = built('test.py', str(left[0]), checkpoint, '--tta')
    assert type(again.model.module).__name__ == 'EncoderDecoder'


def test_tta(built, checkpoint):
    plain = built('test.py', SEGMENTOR, checkpoint)
    assert type(plain.model).__name__ == 'EncoderDecoder'
    runner = built('test.py', SEGMENTOR, checkpoint, '--tta')
    assert type(runner.model).__name__ == 'SegTTAModel' and type(runner.model.module).__name__ == 'EncoderDecoder'
    inputs = runner.test_dataloader.dataset[0]['inputs']
    assert len(inputs) == 12  # six sizes, each also mirrored
    assert isinstance(plain.test_dataloader.dataset[0]['inputs'], torch.Tensor)


@pytest.mark.parametrize(
    'config, options, name, metric',
    [
        (DETECTOR, ['model.roi_head.mask_head=None', 'test_evaluator.metric=bbox'], 'DetTTAModel', 'coco/bbox_mAP'),
        (CLASSIFIER, [], 'AverageClsScoreTTA', 'accuracy/top1'),
    ],
)
def test_the_default_tta_tests(config, options, name, metric, built, tmp_path):
    cfg = Config.fromfile(config)
    if config == DETECTOR:
        cfg.model.roi_head.mask_head = None
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict(), meta={}), tmp_path / 'model.pth')
    runner = built('test.py', config, tmp_path / 'model.pth', '--tta', options=options)
    runner.call_hook('before_run')
    metrics = runner.test_loop.run()
    assert type(runner.model).__name__ == name and metric in metrics
    assert set(metrics) == set().union(*map(known_keys, runner.test_evaluator.metrics))


@pytest.mark.parametrize('kinds', [['mIoU'], ['mDice', 'mFscore']])
def test_names_of_the_values_of_segmentation(kinds):
    from mmseg.evaluation import IoUMetric

    metric = IoUMetric(iou_metrics=kinds, prefix='a')
    metric.dataset_meta = dict(classes=('x', 'y'))
    areas = tuple(torch.ones(2) for _ in range(4))
    assert {f'a/{name}' for name in metric.compute_metrics([areas])} == known_keys(metric)


def test_a_test_keeps_the_config_of_the_training(built, checkpoint, tmp_path):
    path = tmp_path / 'work' / os.path.basename(SEGMENTOR)
    built('train.py', SEGMENTOR)
    before = path.read_text()
    built('test.py', SEGMENTOR, checkpoint, '--tta', '--show-dir', tmp_path / 'shown')
    assert path.read_text() == before and 'load_from=None' in before.replace(' ', '')


def test_a_short_palette_is_one_sentence(built, tmp_path):
    cfg = Config.fromfile(DETECTOR)
    with DefaultScope.overwrite_default_scope('mmdet'):
        torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict(), meta={}), tmp_path / 'model.pth')
    options = ['test_dataloader.dataset.metainfo.palette=[(1,2,3)]']
    with pytest.raises(SystemExit, match='--show-dir: metainfo.palette of the data set has 1 colours for 10 classes'):
        built('test.py', DETECTOR, tmp_path / 'model.pth', '--show-dir', tmp_path / 'shown', options=options)


@pytest.mark.parametrize('tool', ['train.py', 'test.py'])
def test_nothing_in_a_checkpoint_is_executed(tool, built, checkpoint):
    """Both tools turn torch's process-wide switch on, which also covers later loading by mmengine or a data set."""
    built(tool, SEGMENTOR, *([checkpoint] if tool == 'test.py' else []))
    assert os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] == '1'


def test_rmt_mm_is_the_one_of_this_folder():
    assert rmt_mm.__file__ == str(ROOT / 'rmt_mm/__init__.py')
