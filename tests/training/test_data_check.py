"""Errors name data that cannot be used for training or evaluation, before the first iteration."""

import json
from functools import partial
from types import SimpleNamespace

import mmengine.runner
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset, ConcatDataset, RepeatDataset
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from torch import nn

from rmt_mm import DataCheckHook
from rmt_mm.errors import DataError
from rmt_mm.training.class_check import check_topk
from rmt_mm.training.data_check import build_data
from rmt_mm.training.datasets import find_datasets, pick_evenly

from support.scripts import run_script

HOOKS = dict(train='before_train', val='before_val', test='before_test')


class DataSet(list):
    def __init__(self, length, classes=None, **metainfo):
        super().__init__(range(length))
        self.metainfo = metainfo if classes is None else dict(metainfo, classes=classes)


def make_runner(model, **datasets):
    loops = {
        f'{split}_loop': SimpleNamespace(dataloader=SimpleNamespace(dataset=dataset))
        for split, dataset in datasets.items()
    }
    return SimpleNamespace(**{'train_loop': None, 'val_loop': None, 'test_loop': None, **loops}, model=model)


def check(dataset, model, split='train'):
    getattr(DataCheckHook(), HOOKS[split])(make_runner(model, **{split: dataset}))


def head(num_classes, kind=nn.Identity, **attributes):
    module = kind()
    module.num_classes = num_classes
    for name, value in attributes.items():
        setattr(module, name, value)
    return module


def named(name):
    return type(name, (nn.Identity,), {})


@pytest.fixture
def model():
    return nn.ModuleDict(dict(bbox_head=head(3), rpn_head=head(1), neck=nn.Identity()))


@pytest.mark.parametrize('split', HOOKS)
class TestEverySplit:
    def test_what_fits_passes(self, model, split):
        check(DataSet(1, ('cat', 'dog', 'fish')), model, split)
        check(DataSet(1), model, split)  # a data set without named classes

    def test_class_count(self, model, split):
        words = rf'model\.bbox_head\.num_classes is 3.*{split}_dataloader has 2 classes \(cat, dog'
        with pytest.raises(DataError, match=words):
            check(DataSet(1, ('cat', 'dog')), model, split)

    def test_class_count_in_a_wrapped_model(self, model, split):
        with pytest.raises(DataError, match=r'model\.bbox_head\.num_classes is 3'):
            check(DataSet(1, ('cat', 'dog')), nn.ModuleDict(dict(module=model)), split)

    def test_empty(self, model, split):
        with pytest.raises(DataError, match=f'{split}_dataloader: the data set is empty'):
            check(DataSet(0, ('cat', 'dog', 'fish')), model, split)

    def test_one_class_without_its_comma(self, model, split):
        with pytest.raises(DataError, match=rf"{split}_dataloader: metainfo\.classes is the text 'cat'.*\('cat', \)"):
            check(DataSet(1, ('cat')), model, split)


@pytest.mark.parametrize('defaults', [{}, dict(classes=('person', 'car'))])  # with CocoDataset's own names
def test_capitals_of_older_versions(model, defaults):
    data = DataSet(1, CLASSES=('cat', 'dog', 'fish'), **defaults)
    with pytest.raises(
        DataError, match=r'train_dataloader: nothing reads metainfo\.CLASSES; the key is metainfo\.clas'
    ):
        check(data, model)
    check(DataSet(1, ['cat', 'dog', 'fish'], CLASSES=('cat', 'dog', 'fish'), PALETTE=[[0, 0, 0]] * 3), model)


@pytest.mark.parametrize(
    'classes, words', [(None, 'names no classes, which IoUMetric'), (('cat',), "background too.*'background', 'cat'")]
)
def test_classes_that_a_metric_of_label_maps_needs(classes, words):
    metric = type('IoUMetric', (), dict(format_only=False))()
    runner = make_runner(nn.ModuleDict(), val=DataSet(1, classes))
    runner.val_evaluator = SimpleNamespace(metrics=[metric])
    with pytest.raises(DataError, match=f'val_dataloader: .*{words}'):
        DataCheckHook().before_val(runner)
    metric.format_only = True
    DataCheckHook().before_val(runner)


@pytest.mark.parametrize('metrics, prefixes, right', [(2, 2, True), (1, 2, False), (2, 1, False), (3, 3, False)])
def test_metrics_of_several_data_sets(metrics, prefixes, right):
    joined = SimpleNamespace(datasets=[DataSet(1), DataSet(1)])
    runner = make_runner(nn.ModuleDict(), val=joined)
    runner.val_evaluator = SimpleNamespace(metrics=[None] * metrics, dataset_prefixes=['a'] * prefixes)
    if right:
        DataCheckHook().before_val(runner)
    else:
        with pytest.raises(DataError, match=f'val_evaluator: .* has {metrics} metrics and {prefixes} dataset_prefixes'):
            DataCheckHook().before_val(runner)


@pytest.mark.parametrize('key, sigmoid, wanted', [('loss_cls', 0, 4), ('loss_cls', 1, 3), ('loss_module', 0, 3)])
def test_class_weights(key, sigmoid, wanted):
    for count in (1, 2, 3, 4, 5):
        model = nn.ModuleDict(dict(bbox_head=head(3, lambda: nn.ModuleDict({key: nn.Identity()}))))
        loss = model['bbox_head'][key]
        loss.class_weight, loss.use_sigmoid = [1.0] * count, bool(sigmoid)
        if count in (1, wanted):
            check(DataSet(1), model)
        else:
            with pytest.raises(DataError, match=rf'bbox_head\.{key}\.class_weight has {count} weights'):
                check(DataSet(1), model)


def test_validation_classes_are_checked_before_training(model):
    good, bad = DataSet(1, ('cat', 'dog', 'fish')), DataSet(1, ('cat', 'dog'))
    with pytest.raises(DataError, match='val_dataloader has 2 classes'):
        DataCheckHook().before_train(make_runner(model, train=good, val=bad))
    with pytest.raises(DataError, match='val_dataloader: the data set is empty'):
        DataCheckHook().before_train(make_runner(model, train=good, val=DataSet(0)))
    DataCheckHook().before_train(make_runner(model, train=good))  # a training without validation


def test_validation_classes_in_another_order(model, monkeypatch):
    train = DataSet(1, ('cat', 'dog', 'fish'))
    with pytest.raises(DataError, match="'fish' is label 1 there, and 2 in training"):
        DataCheckHook().before_train(make_runner(model, train=train, val=DataSet(1, ('cat', 'fish', 'dog'))))
    # As folders make it: the first is missing there, and another is new.
    with pytest.raises(DataError, match="'dog' is label 0 there, and 1 in training"):
        DataCheckHook().before_train(make_runner(model, train=train, val=DataSet(1, ('dog', 'fish', 'wolf'))))
    notes = []
    monkeypatch.setattr('rmt_mm.training.findings.print_log', lambda text, *args: notes.append(text))
    DataCheckHook().before_train(make_runner(model, train=train, val=DataSet(1, ('cat', 'dog', 'eel'))))
    assert "'eel' for 'fish'" in notes[0]


def test_files_are_looked_at_once(model, monkeypatch):
    calls = []
    monkeypatch.setattr(DataCheckHook, '_check_files', lambda self, runner, split, dataset: calls.append(split) or [])
    hook, data = DataCheckHook(), DataSet(1, ('cat', 'dog', 'fish'))
    runner = make_runner(model, train=data, val=data)
    hook.before_train(runner)
    hook.before_val(runner)
    hook.before_val(runner)
    assert calls == ['train', 'val']
    DataCheckHook(check_files=False).before_train(runner)
    assert calls == ['train', 'val']


PASSING = {
    'stuff beside things (HTC)': dict(roi_head=nn.ModuleDict(dict(bbox_head=head(3), semantic_head=head(183)))),
    'boundaries (STDC)': dict(decode_head=head(3), auxiliary_head=nn.ModuleList([head(3), head(2, named('STDCHead'))])),
    'proposals as a detector': dict(bbox_head=head(1, named('RPNHead'))),
    'proposals by a dense head': dict(rpn_head=head(1), roi_head=nn.ModuleDict(dict(bbox_head=head(3)))),
    'masks without classes': dict(bbox_head=head(3), mask_head=head(80, class_agnostic=True)),
    'a loss': dict(bbox_head=nn.ModuleDict(dict(loss_cls=head(1203)))),
    'a backbone with a head of its own': dict(backbone=nn.ModuleDict(dict(head=head(1000))), head=head(3)),
    'a teacher': dict(teacher=nn.ModuleDict(dict(bbox_head=head(80))), bbox_head=head(3)),
    'a detector in a tracker': dict(detector=nn.ModuleDict(dict(bbox_head=head(1)))),
    'identities': dict(track_head=head(500), bbox_head=head(3)),
    'a count per task': dict(head=head((3, 4))),
    'depth': dict(decode_head=head(1, named('VPDDepthHead'))),
    'words': dict(language_model=nn.Identity(), bbox_head=head(256)),
}


@pytest.mark.parametrize('parts', PASSING.values(), ids=PASSING)
def test_counts_of_something_else_pass(parts):
    check(DataSet(1, ('cat', 'dog', 'fish')), nn.ModuleDict(parts))


def test_binary_segmentation_may_have_one_output():
    check(DataSet(1, ('background', 'vessel')), nn.ModuleDict(dict(decode_head=head(1, out_channels=1))))
    with pytest.raises(DataError, match='decode_head'):
        check(DataSet(1, ('cat', 'dog', 'fish')), nn.ModuleDict(dict(decode_head=head(1, out_channels=1))))


def test_things_of_panoptic_data():
    metainfo = dict(thing_classes=('cat', 'dog'), stuff_classes=('sky',))
    data = DataSet(1, ('cat', 'dog', 'sky'), **metainfo)
    check(data, nn.ModuleDict(dict(roi_head=nn.ModuleDict(dict(bbox_head=head(2))), panoptic_head=head(3))))
    with pytest.raises(DataError, match='panoptic_head'):
        check(data, nn.ModuleDict(dict(panoptic_head=head(133))))


WRONG = {
    'bbox_head': dict(bbox_head=head(80)),
    'roi_head.bbox_head.1': dict(roi_head=nn.ModuleDict(dict(bbox_head=nn.ModuleList([head(3), head(80)])))),
    'roi_head.mask_head': dict(roi_head=nn.ModuleDict(dict(bbox_head=head(3), mask_head=head(80)))),
    'panoptic_head': dict(panoptic_head=head(80)),
    'decode_head': dict(decode_head=head(150), auxiliary_head=head(3)),
    'auxiliary_head': dict(decode_head=head(3), auxiliary_head=head(150)),
    'head': dict(head=head(1000)),
}


@pytest.mark.parametrize('name', WRONG)
def test_every_head_that_predicts_classes_is_compared(name):
    with pytest.raises(DataError, match=rf'model\.{name}\.num_classes is \d+'):
        check(DataSet(1, ('cat', 'dog', 'fish')), nn.ModuleDict(WRONG[name]))


def test_data_sets_of_several_metainfos(model):
    """mmdet's ConcatDataset has a list of metainfos if they differ."""
    data = DataSet(1)
    data.metainfo = [dict(classes=('cat', 'dog', 'fish'), year=1), dict(classes=('cat', 'dog', 'fish'), year=2)]
    check(data, model)
    data.metainfo = [dict(classes=('cat',)), dict(classes=('dog',))]
    check(data, model)
    data.metainfo = [dict(classes=('cat', 'dog'))] * 2
    with pytest.raises(DataError, match='has 2 classes'):
        check(data, model)


def test_wrappers_are_opened():
    leaves = [BaseDataset(lazy_init=True) for _ in range(3)]
    both = SimpleNamespace(datasets=[RepeatDataset(leaves[0], 2, lazy_init=True), leaves[1]])
    assert list(find_datasets(SimpleNamespace(dataset=both))) == leaves[:2]
    assert list(find_datasets(ConcatDataset(leaves[1:], lazy_init=True))) == leaves[1:]


def test_samples_reach_from_the_first_to_the_last():
    assert pick_evenly(range(7), 50) == list(range(7))
    assert len(set(pick_evenly(range(1000), 50))) == 50
    assert pick_evenly(range(1000), 50)[0] == 0 and pick_evenly(range(1000), 50)[-1] == 999


# In a program of its own, which forks: here, a child would inherit the locks of torch's threads.
IN_TWO_PROCESSES = """
import os, sys, torch
from rmt_mm.errors import DataError
from rmt_mm.training import data_check
from rmt_mm.training.findings import Finding

child = os.fork()
rank, address = int(child == 0), sys.argv[1]
torch.distributed.init_process_group('gloo', init_method=f'file://{address}', rank=rank, world_size=2)

def fail():
    print(rank, 'looks')
    yield Finding('train.json is broken')
    print(rank, 'looks behind the error')

try:
    data_check._report_of_main_process(fail())
except DataError as error:
    print(rank, error)
torch.distributed.barrier()
torch.distributed.destroy_process_group()
if child:
    os.waitpid(child, 0)
"""


def test_one_process_looks_and_all_stop(tmp_path):
    (tmp_path / 'script.py').write_text(IN_TWO_PROCESSES)
    lines = run_script(tmp_path / 'script.py', tmp_path / 'address').stdout.splitlines()
    found = [[line for line in lines if line.startswith(rank)] for rank in '01']
    assert found == [['0 looks', '0 train.json is broken'], ['1 train.json is broken']]


class Runner:
    """The parts of mmengine's Runner that build_data needs; the loop fails with ``error``."""

    def __init__(self, error, **cfg):
        self.error, self.cfg, self.hooks = error, Config(cfg), []

    @property
    def val_loop(self):
        raise self.error


class TestWhileItIsBuilt:
    def test_empty(self):
        with pytest.raises(DataError, match='val_dataloader: the data set is empty'):
            build_data(
                Runner(ValueError('need at least one array to concatenate'), val_dataloader=dict(dataset={})), 'val'
            )

    @pytest.mark.parametrize(
        'error',
        [
            KeyError('area'),
            AssertionError('The number of subfolders'),
            FileNotFoundError(2, 'No such file', 'x.txt'),
            RuntimeError('Found 0 files'),
        ],
    )
    def test_the_file_is_named(self, error):
        dataset = dict(type=BaseDataset, ann_file='val.json', data_root='data')
        with pytest.raises(DataError, match=r'val_dataloader cannot be built: .*reads data/val.json\)') as info:
            build_data(Runner(error, val_dataloader=dict(dataset=dict(type='RepeatDataset', dataset=dataset))), 'val')
        assert type(error).__name__ in str(info.value)

    def test_a_sentence_of_ours_stays(self):
        with pytest.raises(DataError, match='^no label maps$'):
            build_data(Runner(DataError('no label maps'), val_dataloader=dict(dataset={})), 'val')

    def test_a_fault_of_the_annotation_file_is_explained(self, tmp_path):
        pytest.importorskip('mmdet')
        path = tmp_path / 'val.json'
        path.write_text(
            json.dumps(
                dict(
                    images=[dict(id=1, file_name='1.jpg', width=8, height=8)],
                    categories=[dict(id=1, name='cat')],
                    annotations=[dict(id=3, image_id=1, category_id=1, bbox=[1, 1, 4, 4])],
                )
            )
        )
        dataset = dict(type='CocoDataset', ann_file=str(path), metainfo=dict(classes=('cat',)))
        runner = Runner(KeyError('area'), default_scope='mmdet', val_dataloader=dict(dataset=dataset))
        with pytest.raises(DataError, match="val.json has no 'area' for annotation 3"):
            build_data(runner, 'val')

    def test_a_broken_file_of_the_metric_is_named(self, tmp_path):
        path = tmp_path / 'other.json'
        path.write_text('{"images": [')
        runner = Runner(
            ValueError('Expecting value'),
            val_dataloader=dict(dataset={}),
            val_evaluator=[dict(type='CocoMetric', ann_file=str(path))],
        )
        with pytest.raises(DataError, match='val_evaluator: .*other.json ends too early'):
            build_data(runner, 'val')


def test_a_runner_without_the_hook_is_given_one(model):
    runner = make_runner(model, train=DataSet(1, ('cat', 'dog')))
    runner.hooks, runner.cfg = [], Config()
    runner.register_hook = runner.hooks.append
    with pytest.raises(DataError, match='has 2 classes'):
        build_data(runner, 'train')
    assert [type(hook) for hook in runner.hooks] == [DataCheckHook]
    runner.train_loop.dataloader.dataset = DataSet(1, ('cat', 'dog', 'fish'))
    build_data(runner, 'train')
    assert len(runner.hooks) == 1


class Images(BaseDataset):
    """Two samples, with a given number of classes."""

    def load_data_list(self):
        return [dict(value=0.0), dict(value=1.0)]


class Model(BaseModel):
    def __init__(self):
        super().__init__()
        self.head = head(2, partial(nn.Linear, 1, 2))
        self.steps = 0

    def forward(self, value, sample_idx=None, mode='tensor'):
        self.steps += 1
        out = self.head(torch.as_tensor(value, dtype=torch.float32)[:, None])
        return dict(loss=out.sum()) if mode == 'loss' else [dict(out=x) for x in out]


class NoMetric(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        return {}


@pytest.mark.parametrize('wrong', ['train', 'val'])
def test_a_plain_runner_stops_before_the_first_iteration(tmp_path, wrong):
    def loader(split):
        classes = ('cat', 'dog', 'fish') if split == wrong else ('cat', 'dog')
        return dict(
            batch_size=2,
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=dict(type='default_collate'),
            dataset=Images(metainfo=dict(classes=classes)),
        )

    runner = mmengine.runner.Runner(
        Model(),
        str(tmp_path),
        train_dataloader=loader('train'),
        val_dataloader=loader('val'),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        val_cfg=dict(),
        val_evaluator=[NoMetric()],
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        custom_hooks=[dict(type='DataCheckHook')],
        experiment_name=f'data_check_{wrong}',
    )
    with pytest.raises(DataError, match=rf'head\.num_classes is 2.*{wrong}_dataloader has 3 classes'):
        runner.train()
    assert runner.model.steps == 0


class Accuracy:
    topk = (1, 5)


@pytest.mark.parametrize('classes, refused', [(3, True), (5, False)])
def test_top_5_of_fewer_classes(classes, refused):
    for model, metrics, key in (
        (nn.ModuleDict(dict(head=head(classes))), [Accuracy()], 'val_evaluator'),
        (nn.ModuleDict(dict(head=head(classes, topk=(1, 5), cal_acc=True))), [], 'model.head'),
    ):
        found = [finding.text for finding in check_topk(model, metrics, 'val_evaluator')]
        assert len(found) == refused
        assert not refused or f'{key}.topk is (1, 5)' in found[0] and 'set topk=(1,)' in found[0]
