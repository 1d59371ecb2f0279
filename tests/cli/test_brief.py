"""train.py --brief shows one line per epoch and logs as before; --vis-backend writes to another backend of mmengine."""

import re
import sys
import uuid

import pytest
from mmengine.config import Config

from rmt_mm.errors import UsageError
from rmt_mm.tools import cli
from rmt_mm.tools.commands import train

LOADER = dict(batch_size=1, num_workers=0, dataset=dict(type='ToyData'), collate_fn=dict(type='default_collate'))
CONFIG = dict(
    custom_imports=dict(imports=['support.toy']),
    model=dict(type='ToyConvNet'),
    train_dataloader=dict(LOADER, sampler=dict(type='DefaultSampler', shuffle=False)),
    val_dataloader=dict(LOADER, sampler=dict(type='DefaultSampler', shuffle=False)),
    optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01)),
    val_cfg=dict(type='ValLoop'),
    val_evaluator=dict(type='ToyMetric'),
    default_hooks=dict(logger=dict(type='LoggerHook', interval=1)),
)
EPOCHS = dict(type='EpochBasedTrainLoop', max_epochs=3, val_interval=2)
ITERATIONS = dict(type='IterBasedTrainLoop', max_iters=6, val_interval=3)
TIME_LEFT = r'\d+ (s|min) left'


def run(tmp_path, monkeypatch, train_cfg, *args, **changes):
    path = tmp_path / f'{uuid.uuid4().hex}.py'  # mmengine keeps one logger for each name in a process
    Config({**CONFIG, 'train_cfg': train_cfg, **changes}).dump(path)
    monkeypatch.setattr(sys, 'argv', ['train.py', str(path), '--work-dir', str(tmp_path / 'run'), *args])
    train.main()


@pytest.mark.parametrize(
    'train_cfg, changes, lines',
    [
        (
            EPOCHS,
            {},
            [
                'Training for 3 epochs',
                r'epoch 1/3   loss',
                r'epoch 2/3   loss \d\.\d{3}   sum -?\d+\.\d{3}',
                'epoch 3/3.* sum',
            ],
        ),
        (
            dict(EPOCHS, max_epochs=4),
            {},
            ['Training', *(f'epoch {i}/4   loss [0-9.]+   ' + (r'\d+ ', 'sum')[i % 2 == 0] for i in (1, 2, 3, 4))],
        ),
        (
            EPOCHS,
            dict(val_cfg=None, val_dataloader=None, val_evaluator=None),
            ['Training', *(f'epoch {i}/3' for i in (1, 2, 3))],
        ),
        (ITERATIONS, {}, ['Training for 6 iterations', 'iteration 3/6.* sum', 'iteration 6/6.* sum']),
    ],
)
def test_a_line_an_epoch(train_cfg, changes, lines, tmp_path, monkeypatch, capsys):
    run(tmp_path, monkeypatch, train_cfg, '--brief', **changes)
    out = capsys.readouterr().out
    assert '(train)' not in out
    shown = [line for line in out.splitlines() if re.match('Training for|epoch|iteration', line)]
    assert len(shown) == len(lines)
    for line, pattern in zip(shown, lines):
        assert re.match(pattern, line), line
        assert line.startswith('Training') or re.search(f'   {TIME_LEFT}$', line), line
    [log] = (tmp_path / 'run').glob('*/*.log')
    assert len(re.findall(r'(Epoch|Iter)\(train\)', log.read_text())) == 2 * train_cfg.get(
        'max_epochs', 3
    )  # every iteration


def test_without_brief_the_log_is_shown(tmp_path, monkeypatch, capsys):
    run(tmp_path, monkeypatch, EPOCHS)
    assert 'Epoch(train)' in capsys.readouterr().out


def test_a_failing_validation_gives_stdout_back(tmp_path, monkeypatch):
    stdout = sys.stdout
    monkeypatch.setattr('support.toy.ToyMetric.compute_metrics', lambda self, results: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, monkeypatch, EPOCHS, '--brief')
    assert sys.stdout is stdout


def test_tensorboard(tmp_path, monkeypatch):
    loader = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    run(tmp_path, monkeypatch, EPOCHS, '--vis-backend', 'tensorboard', '--brief')
    [events] = (tmp_path / 'run').glob('*/vis_data/events.*')
    accumulator = loader.EventAccumulator(str(events))
    accumulator.Reload()
    assert {'loss', 'lr', 'sum'} <= set(accumulator.Tags()['scalars'])
    assert len(list((tmp_path / 'run').glob('*/vis_data/scalars.json'))) == 1  # as without the option


def test_unknown_and_missing_backends(monkeypatch):
    with pytest.raises(UsageError, match='--vis-backend paper: mmengine has aim, .*tensorboard'):
        cli.use_vis_backend(Config(), 'paper')
    monkeypatch.setattr('rmt_mm.tools.cli.options.find_spec', lambda name: None)
    with pytest.raises(UsageError, match='needs the package wandb, which is not installed'):
        cli.use_vis_backend(Config(), 'Wandb')


def test_a_backend_is_not_added_twice():
    cfg = Config(dict(visualizer=dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')])))
    cli.use_vis_backend(cfg, 'local')
    assert [backend.type for backend in cfg.visualizer.vis_backends] == ['LocalVisBackend']
