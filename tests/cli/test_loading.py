"""tools/train.py and tools/test.py with checkpoints that fit, and with those that do not."""

import contextlib
import itertools
import os
import pickle
import re
import runpy
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.runner import load_checkpoint

from rmt_mm import RMT
from rmt_mm.checkpoints import read_checkpoint
from rmt_mm.errors import CheckpointError, UsageError
from rmt_mm.tools import cli
from rmt_mm.tools.cli.runner import _adapt_to_cpu
from rmt_mm.tools.cli.weights import choose_checkpoint

from support import ROOT
from support.official_files import NANO, nano_state_dict, save_classifier
from support.toy import ToyClassifier, ToyConvNet

numbers = itertools.count()
CONFIG = f"""
custom_imports = dict(imports=['rmt_mm', 'support.toy'], allow_failed_imports=False)
model = dict(type='ToyClassifier', backbone=dict(type='RMT', arch={NANO._asdict()}))
data = dict(batch_size=2, num_workers=0, dataset=dict(type='ToyData'),
            sampler=dict(type='DefaultSampler', shuffle=False), collate_fn=dict(type='default_collate'))
train_dataloader, test_dataloader = data, data
train_cfg = dict(by_epoch=True, max_epochs=1)
test_cfg = dict()
test_evaluator = dict(type='ToyMetric')
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1))
tta_model = dict(type='ToyTTA')
tta_pipeline = []
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / 'config.py'
    path.write_text(CONFIG)
    return path


@pytest.fixture
def tool(config, tmp_path, monkeypatch, capfd):
    """Run a tool in this process; return its exit status and its whole output."""
    # Undo the tools' changes of the environment at the end of the test.
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')
    monkeypatch.setenv('LOCAL_RANK', '0')

    def run(name, *args, options=(), work_dir=tmp_path / 'work'):
        monkeypatch.setattr(
            sys,
            'argv',
            [
                name,
                str(config),
                *map(str, args),
                '--work-dir',
                str(work_dir),
                '--cfg-options',
                f'experiment_name=loading{next(numbers)}',
                *options,
            ],
        )
        capfd.readouterr()
        try:
            runpy.run_path(str(ROOT / 'tools' / name), run_name='__main__')
            status, text = 0, ''
        except SystemExit as exit:
            status, text = (exit.code, '') if isinstance(exit.code, int) else (1, f'{exit.code}\n')
        return status, text + ''.join(capfd.readouterr())

    return run


def refused(result):
    """Assert that the tool ended with one sentence, and return it."""
    status, text = result
    assert status == 1
    (sentence,) = [line for line in text.splitlines() if line.startswith('error: ')]
    return sentence


def save(path, state_dict=None, **model):
    """Write a checkpoint of a model in the ordinary form, or of a changed state dict."""
    state_dict = ToyClassifier(**model).state_dict() if state_dict is None else state_dict
    torch.save(dict(state_dict=state_dict, meta={}), path)
    return path


def deployed():
    model = ToyClassifier().eval()
    model.backbone.switch_to_deploy()
    return model.state_dict()


def without(*starts, **model):
    state_dict = ToyClassifier(**model).state_dict()
    kept = {name: tensor for name, tensor in state_dict.items() if not name.startswith(starts)}
    assert len(kept) < len(state_dict)
    return kept


def deeper():
    state_dict = ToyClassifier().state_dict()
    block = 'backbone.stages.1.0.'
    return {
        **state_dict,
        **{
            name.replace(block, 'backbone.stages.1.2.'): tensor
            for name, tensor in state_dict.items()
            if name.startswith(block)
        },
    }


SWIN = {
    'backbone.patch_embed.projection.weight': torch.zeros(8, 3, 4, 4),
    'backbone.stages.0.blocks.0.norm1.weight': torch.zeros(8),
    'backbone.norm0.weight': torch.zeros(9),
}
# Files that neither training nor testing accepts, and words of the error.
MISFITS = dict(
    deployed=(deployed, ['form for inference', 'model.backbone.deploy=True']),
    no_stage_3=(lambda: without('backbone.stages.3'), ['missing', 'stages.3.0.']),
    no_stem=(lambda: without('backbone.stem'), ['missing', 'stem.0.weight']),
    half_a_norm=(lambda: without('backbone.norm2.bias'), ['1 missing', 'norm2.bias']),
    one_tensor=(lambda: {'backbone.stem.0.weight': torch.zeros(4, 3, 3, 3)}, ['missing', 'stem.0.bias']),
    one_head=(lambda: without('backbone'), ["no tensor of RMT below 'backbone.'"]),
    bare_backbone=(lambda: RMT(NANO._asdict()).state_dict(), ["below 'backbone.'", 'init_cfg']),
    deeper=(deeper, ['unexpected', 'stages.1.2.', 'an RMT of (1, 3, 2, 1) blocks']),
    swin=(lambda: SWIN, ['not a checkpoint of RMT', 'patch_embed.projection.weight']),
    empty_names=(lambda: {'what': torch.zeros(1)}, ["below 'backbone.'"]),
)


@pytest.mark.parametrize('kind', MISFITS)
def test_parts_of_a_backbone_are_refused_by_mmengine_alone(kind, tmp_path):
    make, words = MISFITS[kind]
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(ToyClassifier(), str(save(tmp_path / 'file.pth', make())), map_location='cpu')
    assert all(word in str(error.value) for word in words), error.value
    assert '(0, 0' not in str(error.value) and 'tools/' not in str(error.value)


@pytest.mark.parametrize(
    'kind, name', [('deployed', 'test.py'), ('one_head', 'test.py'), ('no_stage_3', 'train.py'), ('swin', 'train.py')]
)
def test_parts_of_a_backbone_are_refused(kind, name, tool, tmp_path):
    make, words = MISFITS[kind]
    path = save(tmp_path / 'file.pth', make())
    sentence = refused(tool('test.py', path) if name == 'test.py' else tool(name, options=[f'load_from={path}']))
    assert all(word in sentence for word in words), sentence


def test_ordinary_file_for_a_deployed_model(tool, tmp_path):
    sentence = refused(tool('test.py', save(tmp_path / 'file.pth'), options=['model.backbone.deploy=True']))
    assert 'ordinary' in sentence and 'model.backbone.deploy' in sentence


@pytest.mark.parametrize(
    'file, words',
    [
        (lambda: without('head'), ['2 missing', 'head.weight', 'head.bias']),
        (
            lambda: ToyClassifier(num_classes=5).state_dict(),
            ['2 of another shape', 'head.weight is [5, 48], not [3, 48]'],
        ),
        (lambda: without('backbone.norm0', 'backbone.norm1'), ['4 missing', 'backbone.norm0.weight']),
    ],
)
def test_heads_and_norms_may_start_anew_in_training_alone(file, words, tool, tmp_path):
    path = save(tmp_path / 'file.pth', file())
    sentence = refused(tool('test.py', path))
    assert all(word in sentence for word in [*words, str(path), 'random']), sentence
    status, text = tool('train.py', options=[f'load_from={path}'])
    assert status == 0
    (anew,) = [line for line in text.splitlines() if 'start anew' in line]
    assert words[-1] in anew or 'norm0' in anew
    torch.save(dict(torch.load(path), meta=dict(epoch=0, iter=0), optimizer={}), path)
    sentence = refused(tool('train.py', '--resume', path))
    assert all(word in sentence for word in [*words, 'resume']), sentence


@pytest.mark.parametrize(
    'change',
    [
        lambda name: name,
        lambda name: f'module.{name}',
        lambda name: f'_orig_mod.{name}',
        lambda name: name.replace('backbone.', 'backbone._orig_mod.'),
    ],
)
def test_files_that_fit_are_taken(change, tool, tmp_path):
    model = ToyClassifier()
    path = save(
        tmp_path / 'file.pth',
        {
            change(name): tensor
            for name, tensor in model.state_dict().items()
            if not name.endswith('num_batches_tracked')
        },
    )
    expected = sum(float(t.sum()) for t in model.eval()(torch.zeros(2, 3, 32, 32)))
    status, text = tool('test.py', path)
    assert status == 0 and f'{path} loaded into the model\n  complete' in text, text
    assert f'sum: {expected:.4f}' in text


def test_augmented_testing_and_training(tool, tmp_path):
    path = save(tmp_path / 'file.pth')
    for status, text in (tool('test.py', path, '--tta'), tool('train.py', options=[f'load_from={path}'])):
        assert status == 0 and f'{path} loaded into the model\n  complete' in text


def test_predictions_of_several_data_sets_are_written(tool, config, tmp_path, monkeypatch):
    pytest.importorskip('mmdet')
    monkeypatch.setattr('support.toy.ToyData.metainfo', dict(cumulative_sizes=[2, 4]))
    evaluator = dict(type='mmdet.MultiDatasetsEvaluator', metrics=[dict(type='ToyMetric')] * 2)
    evaluator['dataset_prefixes'] = ['a', 'b']
    both = dict(type='ConcatDataset', datasets=[dict(type='ToyData')] * 2)
    config.write_text(f'{CONFIG}\ntest_evaluator = {evaluator}\ntest_dataloader = dict(data, dataset={both})')
    status, text = tool('test.py', save(tmp_path / 'file.pth'), '--out', tmp_path / 'out.pkl')
    assert status == 0 and 'a/sum' in text and 'b/sum' in text
    assert len(pickle.loads((tmp_path / 'out.pkl').read_bytes())) == 4


def test_what_is_extra_is_named(tool, tmp_path):
    extra = {'data_preprocessor.mean': torch.zeros(3)}
    path = save(tmp_path / 'file.pth', {**extra, **ToyClassifier(extra=True).state_dict()})
    for result in (tool('test.py', path), tool('train.py', options=[f'load_from={path}'])):
        assert result[0] == 0
        assert 'unused: auxiliary_head.weight, auxiliary_head.bias, data_preprocessor.mean' in result[1]


def test_norms_that_the_model_lacks_are_named(tool, tmp_path):
    path = save(tmp_path / 'file.pth')
    status, text = tool('test.py', path, options=['model.backbone.out_indices=(2,3)'])
    assert status == 0 and 'unused: backbone.norm0.weight' in text


def test_deployed_file_for_a_deployed_model(tool, tmp_path):
    path = save(tmp_path / 'file.pth', deployed())
    status, text = tool('test.py', path, options=['model.backbone.deploy=True'])
    assert status == 0 and 'complete' in text


def test_deployed_file_that_names_do_not_tell(tool, tmp_path):
    """GroupNorm is not folded into convolutions: only the file's mark shows that identities are folded."""
    model = ToyClassifier(norm_cfg=dict(type='GN', num_groups=1), layer_scale_init=0.1).eval()
    model.backbone.stages[3][0].gamma1 = model.backbone.stages[3][0].gamma2 = None  # the names must not show the form
    path = tmp_path / 'file.pth'
    torch.save(dict(state_dict=model.state_dict(), meta=dict(rmt_mm=dict(deploy=True))), path)
    sentence = refused(
        tool('test.py', path, options=['model.backbone.norm_cfg.type=GN', 'model.backbone.norm_cfg.num_groups=1'])
    )
    assert 'form for inference' in sentence and 'model.backbone.deploy=True' in sentence


def test_moving_average(config, tool, tmp_path):
    """It is saved as state_dict; testing and resuming accept such files, with and without EMAHook in the config."""
    text = config.read_text()
    config.write_text(text + "custom_hooks = [dict(type='EMAHook')]")
    assert tool('train.py')[0] == 0
    path = tmp_path / 'work/epoch_1.pth'
    assert 'ema_state_dict' in read_checkpoint(str(path))
    assert 'complete, nothing unused' in tool('test.py', path)[1]
    status, log = tool('train.py', '--resume', options=['train_cfg.max_epochs=2'])
    assert status == 0 and 'resumed epoch: 1' in log and (tmp_path / 'work/epoch_2.pth').exists()
    config.write_text(text)
    assert tool('test.py', tmp_path / 'work/epoch_2.pth')[0] == 0
    status, log = tool('train.py', '--resume', options=['train_cfg.max_epochs=3'])
    assert status == 0 and 'resumed epoch: 2' in log


def test_models_without_rmt(config, tool, tmp_path):
    partial = {name: tensor for name, tensor in ToyConvNet().state_dict().items() if 'head' not in name}
    path = save(tmp_path / 'file.pth', partial)
    config.write_text(re.sub('model = .*', "model = dict(type='ToyConvNet')", CONFIG))
    status, text = tool('train.py', options=[f'load_from={path}'])
    assert status == 0 and 'missing, start anew: head.weight, head.bias' in text
    assert '2 missing (head.weight, head.bias)' in refused(tool('test.py', path))
    status, text = tool('train.py', options=[f'load_from={save(path, {"what": torch.zeros(1)})}'])
    assert status == 0 and 'unused: what' in text
    assert tool('test.py', save(path, ToyConvNet().state_dict()))[0] == 0


def test_copies_of_the_network_are_no_part_of_it(tmp_path):
    """From a file of the student alone, the teacher is not loaded, with a warning; the student must be complete."""
    model = torch.nn.ModuleDict(dict(student=ToyClassifier(), teacher=ToyClassifier()))
    student = {f'student.{name}': tensor for name, tensor in ToyClassifier().state_dict().items()}
    assert all(name.startswith('teacher.') for name in model.load_state_dict(student, strict=False).missing_keys)
    teacher = {name.replace('student', 'teacher'): tensor for name, tensor in student.items()}
    with pytest.raises(CheckpointError, match=r"below 'student\.backbone\.'"):
        model.load_state_dict(teacher, strict=False)


# The checkpoint that a training starts from.


def chosen(work_dir, resume=None, **cfg):
    cfg = Config(dict(work_dir=str(work_dir), **cfg))
    choose_checkpoint(cfg, resume)
    return bool(cfg.get('resume')), cfg.get('load_from')


@pytest.fixture
def files(tmp_path):
    """Write a file to start from, and a work dir with the last checkpoint of a training."""
    start, work = save(tmp_path / 'start.pth'), tmp_path / 'done'
    work.mkdir()
    last = save(work / 'epoch_1.pth')
    (work / 'last_checkpoint').write_text(str(last))
    return str(start), work, str(last)


def test_what_training_starts_from(files, tmp_path, capsys):
    start, done, last = files
    empty = tmp_path / 'empty'
    assert chosen(done) == (False, None)
    assert chosen(done, load_from=start) == (False, start)
    assert chosen(done, resume='auto', load_from=start) == (True, last)
    assert capsys.readouterr().out == f'Resuming from {last}.\n'
    assert chosen(done, resume=start) == (True, start)
    assert capsys.readouterr().out == ''
    assert chosen(empty, resume='auto') == (False, None)
    assert 'Nothing to resume' in capsys.readouterr().out
    # A fine-tuning that is started with --resume keeps its load_from.
    assert chosen(empty, resume='auto', load_from=start) == (False, start)
    assert start in capsys.readouterr().out


def test_resume_of_a_config(files, tmp_path):
    start, done, last = files
    config = Config(dict(work_dir=str(done), resume=True))
    choose_checkpoint(config)
    assert (config.resume, config.load_from) == (True, last)
    config = Config(dict(work_dir=str(tmp_path / 'empty'), resume=True))
    choose_checkpoint(config)
    assert not config.resume and not config.get('load_from')
    config = Config(dict(work_dir=str(done), resume=True, load_from=start))
    choose_checkpoint(config)
    assert (config.resume, config.load_from) == (True, start)


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(UsageError, match='--resume: .*no.pth does not exist'):
        chosen(tmp_path, 'no.pth')
    with pytest.raises(UsageError, match='load_from: .*no.pth does not exist'):
        chosen(tmp_path, load_from='no.pth')


def test_resume_of_nothing_keeps_load_from(tool, files, tmp_path):
    start, *_ = files
    status, text = tool('train.py', '--resume', options=[f'load_from={start}', 'optim_wrapper.optimizer.lr=0.'])
    assert status == 0 and f'{start} loaded into the model' in text
    trained = read_checkpoint(str(tmp_path / 'work/epoch_1.pth'))['state_dict']
    assert all(
        torch.equal(trained[name], tensor)
        for name, tensor in torch.load(start)['state_dict'].items()
        if 'running' not in name and 'tracked' not in name
    )


def test_weights_without_a_training_are_not_resumed(tool, files):
    assert 'load_from' in refused(tool('train.py', '--resume', files[0]))


@pytest.mark.parametrize(
    'path', ['torchvision://resnet50', 'open-mmlab://resnet50', 'mmcls://resnet50', 's3://bucket/a.pth']
)
def test_names_of_mmengine_are_its_own_to_find(path, tmp_path, monkeypatch):
    messages = []
    monkeypatch.setattr('rmt_mm.checkpoints.loading.print_log', lambda message, logger: messages.append(message))
    assert chosen(tmp_path, load_from=path) == (False, path)
    assert path in messages[0]


def test_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    path = save(tmp_path / 'file.pth')
    assert chosen(tmp_path, load_from='~/file.pth') == (False, str(path))
    model = ToyClassifier(init_cfg=None)
    model.backbone.init_cfg = dict(type='Pretrained', checkpoint='~/file.pth')
    model.init_weights()
    assert torch.equal(model.backbone.stem[0].weight, torch.load(path)['state_dict']['backbone.stem.0.weight'])


# init_cfg, of the backbone and of the whole model.


def with_init_cfg(config, path, whole):
    owner = 'ToyClassifier' if whole else 'RMT'
    config.write_text(
        CONFIG.replace(
            f"dict(type='{owner}', ",
            f"dict(type='{owner}', init_cfg=dict(type='Pretrained', checkpoint={str(path)!r}), ",
        )
    )


@pytest.mark.parametrize('whole, key', [(True, 'model.init_cfg'), (False, 'model.backbone.init_cfg')])
def test_init_cfg_without_its_file(whole, key, config, tool, tmp_path):
    with_init_cfg(config, tmp_path / 'no.pth', whole)
    sentence = refused(tool('train.py'))
    assert key in sentence and str(tmp_path / 'no.pth') in sentence
    # Testing does not initialise the model.
    assert tool('test.py', save(tmp_path / 'file.pth'))[0] == 0


@pytest.mark.parametrize('kind, whole', [('deployed', True), ('no_stage_3', False), ('swin', True)])
def test_init_cfg_with_a_file_that_does_not_fit(kind, whole, config, tool, tmp_path):
    make, words = MISFITS[kind]
    with_init_cfg(config, save(tmp_path / 'file.pth', make()), whole)
    sentence = refused(tool('train.py'))
    assert all(word in sentence for word in words), sentence


def test_official_files_are_for_the_init_cfg_of_the_backbone(config, tool, tmp_path):
    path = save_classifier(tmp_path / 'official.pth', nano_state_dict('classification'))
    with_init_cfg(config, path, whole=True)
    sentence = refused(tool('train.py'))
    assert 'model.init_cfg' in sentence and 'official' in sentence and path in sentence
    with_init_cfg(config, path, whole=False)
    status, text = tool('train.py')
    assert status == 0 and f'RMT loaded from {path}' in text


def test_reparameterized_files(config, tool, tmp_path, monkeypatch):
    path, out = save(tmp_path / 'file.pth'), tmp_path / 'deploy.pth'

    def reparameterize(*args):
        monkeypatch.setattr(sys, 'argv', ['reparameterize_model.py', *map(str, (config, *args))])
        runpy.run_path(str(ROOT / 'tools/model_converters/reparameterize_model.py'), run_name='__main__')

    reparameterize(path, out)
    assert torch.load(out)['meta']['rmt_mm']['deploy'] is True
    ordinary, deployed = tool('test.py', path), tool('test.py', out, options=['model.backbone.deploy=True'])
    (first,), (second,) = (re.findall(r'sum: (\S+)', text) for _, text in (ordinary, deployed))
    assert abs(float(first) - float(second)) < 1e-3
    assert 'form for inference' in refused(tool('test.py', out))
    with pytest.raises(SystemExit, match='form for inference'):
        reparameterize(out, tmp_path / 'again.pth')


# The end of several processes.


@pytest.mark.parametrize('error', [False, True])
def test_the_process_group_ends_with_the_block(error, tmp_path):
    with contextlib.suppress(SystemExit), cli.process_group():
        dist.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
        if error:
            sys.exit(1)
    assert not dist.is_initialized()
    with cli.process_group():
        pass  # without a group


def gloo_threads():
    return sum('gloo' in path.read_text() for path in Path('/proc/self/task').glob('*/comm'))


@pytest.mark.skipif(not Path('/proc/self/task').is_dir(), reason='threads are counted in /proc')
def test_no_thread_of_gloo_outlives_the_block(monkeypatch):
    """Such a thread could abort the process at its exit, after the training."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    for name, value in dict(RANK=0, WORLD_SIZE=1, MASTER_ADDR='127.0.0.1', MASTER_PORT=port).items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    before = gloo_threads()

    def work():
        _adapt_to_cpu(Config(dict(launcher='pytorch')))
        model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 2))
        model(torch.zeros(1, 2)).sum().backward()
        model.owner = [model]  # a reference cycle, like those between Runner, hooks and loops
        assert gloo_threads() > before

    with cli.process_group():
        work()
    assert gloo_threads() == before


@pytest.mark.slow
@pytest.mark.parametrize('tool', ['train.py', 'test.py'])
def test_two_processes_end_well(tool, config, tmp_path):
    path = save(tmp_path / 'file.pth')
    config.write_text(CONFIG.replace("dict(type='RMT', ", "dict(type='RMT', norm_eval=True, out_indices=(3, ), "))
    env = dict(os.environ, PYTHONPATH=os.pathsep.join([str(ROOT), str(ROOT / 'tests')]))
    args = ['--launcher', 'pytorch', '--work-dir', str(tmp_path / 'work')]
    script = tmp_path / 'script.py'
    script.write_text(f"""
import runpy
from pathlib import Path
runpy.run_path({str(ROOT / 'tools' / tool)!r}, run_name='__main__')
assert not sum('gloo' in path.read_text() for path in Path('/proc/self/task').glob('*/comm'))
""")
    result = subprocess.run(
        [
            sys.executable,
            '-m',
            'torch.distributed.run',
            '--standalone',
            '--nproc-per-node=2',
            script,
            config,
            *([path] if tool == 'test.py' else []),
            *args,
        ],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    if tool == 'test.py':
        assert 'loaded into the model\n  unused: backbone.norm0' in result.stdout + result.stderr
    else:
        assert (tmp_path / 'work/epoch_1.pth').exists()
