"""tools/train.py and tools/test.py: trainings and tests as processes, mistakes in this process."""

import runpy
import signal
import subprocess
import sys
import time

import pytest

from rmt_mm.tools import cli

from support import ROOT
from support.scripts import run_script

CONFIG = 'configs/detection/mask-rcnn_rmt-mini_fpn_digits.py'


def run(*args):
    return run_script(*args, cwd=ROOT)


@pytest.fixture(scope='module')
def options(tmp_path_factory):
    """Return options that point the demo's config at four small scenes."""
    data = tmp_path_factory.mktemp('data') / 'digits'
    made = run(
        'tools/dataset_converters/make_digits.py', data, '--train', 4, '--val', 2, '--size', 64, '--renderings', 1
    )
    assert made.returncode == 0, made.stderr
    out = [
        f'{loader}.dataset.data_root={data}/coco/'
        for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader')
    ]
    out += [
        f'{evaluator}.ann_file={data}/coco/annotations/instances_val2017.json'
        for evaluator in ('val_evaluator', 'test_evaluator')
    ]
    return [*out, 'train_dataloader.batch_size=2', 'default_hooks.logger.interval=1']


@pytest.fixture(scope='module')
def trained(tmp_path_factory, options):
    """Return the work dir of a training that was interrupted after an epoch or more."""
    work_dir = tmp_path_factory.mktemp('work')
    process = subprocess.Popen(
        [
            sys.executable,
            'tools/train.py',
            CONFIG,
            '--work-dir',
            str(work_dir),
            '--cfg-options',
            *options,
            'train_cfg.max_epochs=50',
            'train_cfg.val_interval=100',
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # Restore the handler: a background job of a shell ignores SIGINT, and its children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 300
    while not (work_dir / 'last_checkpoint').exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 130, output
    assert 'Interrupted' in output and '--resume' in output
    return work_dir


def last_epoch(work_dir):
    return int((work_dir / 'last_checkpoint').read_text().rsplit('_', 1)[1].split('.')[0])


def test_interrupted_training_resumes_and_evaluates(trained, options):
    done = last_epoch(trained)
    result = run(
        'tools/train.py',
        CONFIG,
        '--work-dir',
        trained,
        '--resume',
        '--cfg-options',
        *options,
        f'train_cfg.max_epochs={done + 1}',
        f'train_cfg.val_interval={done + 1}',
    )
    assert result.returncode == 0, result.stderr
    assert f'resumed epoch: {done}' in result.stdout + result.stderr
    assert 'coco/bbox_mAP' in result.stdout + result.stderr
    assert last_epoch(trained) == done + 1


def test_evaluation_writes_predictions_and_pictures(trained, options, tmp_path):
    result = run(
        'tools/test.py',
        CONFIG,
        (trained / 'last_checkpoint').read_text(),
        '--work-dir',
        tmp_path / 'work',
        '--out',
        tmp_path / 'predictions.pkl',
        '--show-dir',
        tmp_path / 'shown',
        '--cfg-options',
        *options,
    )
    assert result.returncode == 0, result.stderr
    assert 'coco/segm_mAP' in result.stdout + result.stderr
    assert (tmp_path / 'predictions.pkl').stat().st_size > 0
    assert len(list((tmp_path / 'shown').rglob('*.jpg'))) == 2


def test_reparameterized_checkpoint_evaluates(failing, trained, options, tmp_path):
    checkpoint = (trained / 'last_checkpoint').read_text()
    out = tmp_path / 'deploy.pth'
    result = run('tools/model_converters/reparameterize_model.py', CONFIG, checkpoint, out)
    assert result.returncode == 0, result.stderr
    result = run(
        'tools/test.py',
        CONFIG,
        out,
        '--work-dir',
        tmp_path / 'work',
        '--cfg-options',
        *options,
        'model.backbone.deploy=True',
    )
    assert result.returncode == 0, result.stderr
    assert 'coco/bbox_mAP' in result.stdout + result.stderr
    assert 'unexpected key' not in result.stdout + result.stderr
    assert 'deploy.pth' in failing('tools/model_converters/reparameterize_model.py', CONFIG, checkpoint, out)


def test_curves_are_drawn(trained, tmp_path):
    result = run('tools/analysis_tools/plot_curves.py', trained, tmp_path / 'curves.png')
    assert result.returncode == 0, result.stderr
    assert (tmp_path / 'curves.png').read_bytes().startswith(b'\x89PNG')
    empty = run('tools/analysis_tools/plot_curves.py', tmp_path, tmp_path / 'none.png')
    assert empty.returncode == 1 and str(tmp_path) in empty.stderr


def write_config(folder, text):
    path = folder / 'config.py'
    path.write_text(text)
    return path


@pytest.fixture
def failing(monkeypatch):
    """Run a tool, in this process, that must fail with one sentence, and return it."""
    # Undo the tools' changes of the environment at the end of the test.
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')
    monkeypatch.setenv('LOCAL_RANK', '0')
    monkeypatch.chdir(ROOT)

    def run_tool(tool, *args):
        monkeypatch.setattr(sys, 'argv', [tool, *map(str, args)])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(tool, run_name='__main__')
        sentence = stop.value.code
        assert isinstance(sentence, str) and sentence.startswith('error: ') and '\n' not in sentence
        return sentence

    return run_tool


def test_a_mistake_is_one_sentence_on_stderr():
    result = run('tools/train.py', 'configs/none.py')
    assert result.returncode == 1 and 'Traceback' not in result.stderr
    sentence = result.stderr.strip().splitlines()[-1]
    assert sentence.startswith('error: ') and 'configs/none.py does not exist' in sentence


@pytest.mark.parametrize(
    'name',
    [
        'mask-rcnn_rmt-mini_fpn_digits',
        'mask-rcnn_rmt-mini_fpn_digits.py',
        'detection/mask-rcnn_rmt-mini_fpn_digits',
        CONFIG,
    ],
)
def test_configs_by_name(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert cli.find_config(name) == str(ROOT / CONFIG)


@pytest.mark.parametrize(
    'name, hint',
    [
        ('mask-rcnn_rmt-mini_fpn_digit', 'did you mean mask-rcnn_rmt-mini_fpn_digits'),
        ('mine/mask-rcnn_rmt-mini_fpn_digits.py', f'rmt_mm has one of this name: {ROOT / CONFIG}'),
        ('', 'does not exist'),
    ],
)
def test_names_of_no_config(name, hint):
    with pytest.raises(cli.UsageError, match='does not exist') as caught:
        cli.find_config(name)
    assert hint in str(caught.value)


@pytest.mark.parametrize(
    'text',
    [
        'model = 1',
        'x = 1',
        '_base_ = ["none.py"]',
        'raise ValueError(3)',
        'a = {}["b"]',
        'a = 1 / 0',
        'assert False',
        'with open("a"): pass',
        'model = dict(',
    ],
)
def test_configs_that_cannot_be_read(tmp_path, text):
    path = write_config(tmp_path, text)
    with pytest.raises(cli.UsageError, match=f'config {path} '):
        cli.read_config(str(path))


def test_missing_data_folder(failing, tmp_path):
    sentence = failing(
        'tools/train.py', CONFIG, '--work-dir', tmp_path, '--cfg-options', 'train_dataloader.dataset.data_root=nowhere/'
    )
    assert 'nowhere/' in sentence and 'docs/datasets.md' in sentence


def test_missing_annotation_file(failing, tmp_path, options):
    sentence = failing(
        'tools/train.py',
        CONFIG,
        '--work-dir',
        tmp_path,
        '--cfg-options',
        *options,
        'train_dataloader.dataset.ann_file=annotations/none.json',
    )
    assert 'annotations/none.json' in sentence


def test_work_dir_that_cannot_be_written(failing, tmp_path):
    (tmp_path / 'file').write_text('')
    sentence = failing('tools/train.py', CONFIG, '--work-dir', tmp_path / 'file')
    assert str(tmp_path / 'file') in sentence and '--work-dir' in sentence


def test_option_that_does_not_exist(failing, tmp_path):
    sentence = failing('tools/train.py', CONFIG, '--work-dir', tmp_path, '--cfg-options', 'trian_cfg.max_epochs=3')
    assert "'trian_cfg'" in sentence and "'train_cfg'" in sentence
    sentence = failing('tools/train.py', CONFIG, '--work-dir', tmp_path, '--cfg-options', 'train_cfg.max_epoch=3')
    assert "'max_epoch'" in sentence and "'max_epochs'" in sentence


def test_config_that_does_not_import_rmt_mm(failing, tmp_path):
    config = write_config(tmp_path, "default_scope = 'mmdet'\nmodel = dict(backbone=dict(type='RMT', arch='tiny'))\n")
    sentence = failing('tools/train.py', config, '--work-dir', tmp_path)
    assert "custom_imports = dict(imports=['rmt_mm'], allow_failed_imports=False)" in sentence


@pytest.mark.parametrize(
    'arch, words',
    [
        ('base', ['[64, 128, 256, 512]', '[80, 160, 320, 512]', 'base']),  # the neck is for tiny
        ('huge', ["'huge'", 'tiny, small, base, large']),
    ],
)
def test_arch_that_does_not_fit_or_exist(failing, arch, words, tmp_path):
    config = 'configs/detection/mask-rcnn_rmt-t_fpn_amp-1x_coco.py'
    option = f'model.backbone.arch={arch}'
    sentence = failing('tools/train.py', config, '--work-dir', tmp_path, '--cfg-options', option)
    assert [word for word in words if word not in sentence] == []


@pytest.mark.parametrize('content', [b'', b'<!DOCTYPE html><html></html>', None])
def test_checkpoint_that_cannot_be_read(failing, tmp_path, options, content):
    path = tmp_path / 'weights.pth'
    if content is not None:
        path.write_bytes(content)
    sentence = failing('tools/test.py', CONFIG, path, '--work-dir', tmp_path, '--cfg-options', *options)
    assert str(path) in sentence


@pytest.mark.parametrize('tool', ['train.py', 'test.py'])
def test_help_names_every_argument(tool):
    text = run(f'tools/{tool}', '--help').stdout
    own = {'train.py': ('--resume', '--amp', '--auto-scale-lr'), 'test.py': ('--out', '--show-dir', '--tta')}[tool]
    for argument in ('--work-dir', '--cfg-options', '--launcher', *own):
        assert argument in text


def test_tools_work_from_another_folder(tmp_path):
    result = run_script(ROOT / 'tools/train.py', 'none.py', cwd=tmp_path)
    assert 'none.py does not exist' in result.stderr
