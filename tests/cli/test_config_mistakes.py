"""What mmengine's Runner cannot build ends in one sentence that names the config key, before the first iteration."""

import sys
import uuid

import pytest
from mmengine.config import Config

from rmt_mm.tools.commands import train

LOADER = dict(
    batch_size=1,
    num_workers=0,
    dataset=dict(type='ToyData'),
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
CONFIG = dict(
    custom_imports=dict(imports=['support.toy', 'rmt_mm']),
    model=dict(type='ToyConvNet'),
    train_dataloader=LOADER,
    val_dataloader=LOADER,
    optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01)),
    val_cfg=dict(type='ValLoop'),
    val_evaluator=dict(type='ToyMetric'),
    train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=1, val_interval=1),
    default_hooks=dict(logger=dict(type='LoggerHook', interval=1)),
)


@pytest.fixture
def run(tmp_path, monkeypatch):
    def train_with(*args, **changes):
        path = tmp_path / f'{uuid.uuid4().hex}.py'  # mmengine keeps one logger for each name in a process
        Config({**CONFIG, **changes}).dump(path)
        monkeypatch.setattr(sys, 'argv', ['train.py', str(path), '--work-dir', str(tmp_path / path.stem), *args])
        train.main()
        return tmp_path / path.stem

    return train_with


def checkpoint_hook(**settings):
    return dict(default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1, **settings)))


DELETE = 'write _delete_=True in '
MISTAKES = {
    'optimizer': (
        dict(optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.1, momentum=0.9))),
        ['optim_wrapper.optimizer (AdamW)', "'momentum'", f'{DELETE}optim_wrapper.optimizer'],
    ),
    'wrapper': (
        dict(optim_wrapper=dict(type='OptimWrapper', loss_scale=1, optimizer=dict(type='SGD', lr=0.01))),
        ['optim_wrapper (OptimWrapper)', "'loss_scale'", f'{DELETE}optim_wrapper'],
    ),
    'constructor of other backbones': (
        dict(
            optim_wrapper=dict(
                constructor='mmseg.LearningRateDecayOptimizerConstructor',
                paramwise_cfg=dict(decay_rate=0.9, decay_type='stage_wise', num_layers=6),
                optimizer=dict(type='SGD', lr=0.1),
            )
        ),
        ["optim_wrapper.constructor='mmseg.Learn", "write constructor='LayerDecayOptimWrapperConstructor'"],
    ),
    'constructor': (
        dict(optim_wrapper=dict(constructor='LayerDecayOptimWrapperConstructor', optimizer=dict(type='SGD', lr=0.1))),
        ['optim_wrapper cannot be built', 'paramwise_cfg.layer_decay_rate'],
    ),
    'loop by two keys': (
        dict(train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=1, by_epoch=False, max_iters=10)),
        ['train_cfg has both type and by_epoch', f'{DELETE}train_cfg'],
    ),
    'loop of another type': (
        dict(train_cfg=dict(type='IterBasedTrainLoop', max_epochs=1, max_iters=10)),
        ['train_cfg (IterBasedTrainLoop)', "'max_epochs'", f'{DELETE}train_cfg'],
    ),
    'validation loop': (dict(val_cfg=dict(type='ValLoop', fp=True)), ['val_cfg (ValLoop)', "'fp'"]),
    'scheduler': (
        dict(param_scheduler=[dict(type='CosineAnnealingLR', T_max=3, eta=1, convert_to_iter_based=True)]),
        ['param_scheduler.0 (CosineAnnealingLR)', "'eta'"],
    ),
    'backbone': (
        dict(model=dict(type='ToyClassifier', backbone=dict(type='RMT', arch='tiny', depth=50))),
        ['model.backbone (RMT)', "'depth'", f'{DELETE}model.backbone'],
    ),
    'nothing to delete': (
        dict(model=dict(type='ToyClassifier', backbone=dict(type='RMT', arch='tiny', _delete_=True))),
        ['model.backbone (RMT) has _delete_', 'no base config sets model.backbone'],
    ),
    'sampler': (
        dict(val_dataloader=dict(LOADER, sampler=dict(type='DefaultSampler', shufle=True))),
        ['val_dataloader.sampler (DefaultSampler)', "'shufle'"],
    ),
    'loader': (dict(train_dataloader=dict(LOADER, shuffle=True)), ['train_dataloader cannot be built', 'shuffle']),
    'too few images': (
        dict(train_dataloader=dict(LOADER, batch_size=8, drop_last=True)),
        ['train_dataloader', 'drop_last=True', '2 images', 'batch_size=8'],
    ),
    'visualiser': (
        dict(visualizer=dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend', foo=1)])),
        ['visualizer.vis_backends.0 (LocalVisBackend)', "'foo'"],
    ),
    'hook': (dict(custom_hooks=[dict(type='EMAHook', momentun=0.1)]), ['custom_hooks.0 (EMAHook)', "'momentun'"]),
    'checkpoint hook': (checkpoint_hook(intervall=1), ['default_hooks.checkpoint', "'intervall'"]),
    'log level': (dict(log_level='INF'), ['log_level cannot be built', 'INF']),
    'torch.fx': (
        dict(model=dict(type='ToyClassifier'), efficient_conv_bn_eval=['backbone']),
        ["efficient_conv_bn_eval=['backbone'] cannot be used", 'TraceError', 'remove it'],
    ),
    'best score that the metric lacks': (
        dict(
            val_evaluator=dict(type='mmpretrain.Accuracy', topk=(1, 5), prefix='val'),
            **checkpoint_hook(save_best='val/top3', rule='greater'),
        ),
        ["save_best is 'val/top3'", 'set one of val/top1, val/top5'],
    ),
    'name of a metric': (
        dict(val_evaluator=dict(type='ToyMetric', prefix='toy'), **checkpoint_hook(save_best='sum', rule='less')),
        ["default_hooks.checkpoint.save_best is 'sum'", "set 'toy/sum'"],
    ),
    'clipping': (
        dict(optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1), clip_grad=dict(norm=1))),
        ["optim_wrapper.clip_grad does not take 'norm'", 'max_norm'],
    ),
    'unknown optimizer': (
        dict(optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='Adamw', lr=0.1))),
        ['optim_wrapper.optimizer', "'Adamw'", "did you mean 'AdamW'?"],
    ),
    'no optimizer': (dict(optim_wrapper=dict(type='OptimWrapper')), ['optim_wrapper has no optimizer']),
    'validation without metric': (
        dict(val_evaluator=None),
        ['sets val_dataloader and val_cfg, but not val_evaluator', 'or all to None'],
    ),
    'validation at no epoch': (
        dict(train_cfg=dict(by_epoch=True, max_epochs=1, val_interval=0)),
        ['train_cfg.val_interval is 0'],
    ),
    'epochs as text': (dict(train_cfg=dict(by_epoch=True, max_epochs='1')), ["train_cfg.max_epochs is '1'"]),
    'argument of the seed': (dict(randomness=dict(sed=0)), ["randomness does not take 'sed'"]),
    'sampler of no name': (
        dict(train_dataloader=dict(LOADER, sampler=dict(type='NoSampler'))),
        ["train_dataloader.sampler: type='NoSampler' is not in the registry", 'custom_imports'],
    ),
    'best score without a rule': (
        checkpoint_hook(save_best='auto'),
        ['default_hooks.checkpoint (CheckpointHook) cannot be used', 'a specific rule'],
    ),
    'unknown metric': (
        dict(val_evaluator=[dict(type='ToyMetric'), dict(type='NoSuchMetric')]),
        ["val_evaluator.1: type='NoSuchMetric'", 'custom_imports'],
    ),
}


@pytest.mark.parametrize('changes, words', MISTAKES.values(), ids=MISTAKES)
def test_a_sentence_names_the_key(run, changes, words):
    with pytest.raises(SystemExit) as stop:
        run(**changes)
    sentence = stop.value.code
    assert sentence.startswith('error: ') and '\n' not in sentence
    assert [word for word in words if word not in sentence] == []


def test_a_metric_of_another_library(run):
    pytest.importorskip('mmdet')
    with pytest.raises(SystemExit) as stop:
        run(val_evaluator=dict(type='CocoMetric'))
    assert "val_evaluator: type='CocoMetric'" in stop.value.code and 'write mmdet.CocoMetric' in stop.value.code


def test_other_errors_keep_their_traceback(run, monkeypatch):
    monkeypatch.setattr('support.toy.ToyConvNet.forward', lambda self, *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run()


def test_a_score_that_a_validation_does_not_give(run):
    work_dir = run('--brief', **checkpoint_hook(save_best=['sum', 'other'], rule='greater'))
    [log] = work_dir.glob('*/*.log')
    assert "gave no 'other', so that no best checkpoint is saved" in log.read_text() and 'one of sum' in log.read_text()
    assert list(work_dir.glob('best_sum*')) and not list(work_dir.glob('best_other*'))


def test_a_batch_is_filled_up_by_a_sampler_without_end(run):
    loader = dict(LOADER, batch_size=8, drop_last=True, sampler=dict(type='InfiniteSampler'))
    work_dir = run(
        train_dataloader=loader, train_cfg=dict(by_epoch=False, max_iters=1), **checkpoint_hook(by_epoch=False)
    )
    assert list(work_dir.glob('iter_1.pth'))


def test_a_delete_that_deletes_nothing(run, capsys):
    with pytest.raises(SystemExit):
        run(
            model=dict(type='ToyConvNet', chanels=1),
            env_cfg=dict(inner=dict(_delete_=True, a=1)),
            small=dict(_delete_=True, a=1),  # a variable, which may be for a place where a base sets something
        )
    notes = capsys.readouterr().err
    assert 'note: env_cfg.inner of config' in notes and 'small' not in notes


def test_an_option_for_parameters_that_nothing_reads(run, capsys):
    optimizer = dict(type='SGD', lr=0.1)
    run(optim_wrapper=dict(type='OptimWrapper', optimizer=optimizer, paramwise_cfg=dict(norm_decay_mul=0.0)))
    assert "does not read 'norm_decay_mul'; was 'norm_decay_mult' meant?" in capsys.readouterr().err
