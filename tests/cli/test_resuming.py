"""train.py --resume after a kill: the newest whole checkpoint, whole files, and the training as without a pause."""

import errno
import os
import shutil
import sys

import pytest
import torch
from mmengine.config import Config
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook

from rmt_mm.checkpoints import read_checkpoint
from rmt_mm.errors import CheckpointError, UsageError
from rmt_mm.tools.cli.saving import WholeFiles, write_whole
from rmt_mm.tools.cli.weights import choose_checkpoint
from rmt_mm.tools.commands import train

from support import ROOT, toy_training
from support.scripts import run_script


def save(path, time=None):
    torch.save(dict(state_dict={'stages.0.0.attn.qkv.weight': torch.zeros(2)}, meta=dict(epoch=1, iter=1)), path)
    if time is not None:
        os.utime(path, (time, time))
    return path


def cut(path, time=None, length=200):
    save(path)
    path.write_bytes(path.read_bytes()[:length])
    if time is not None:
        os.utime(path, (time, time))


@pytest.fixture
def work(tmp_path):
    """Return a work dir with the checkpoints of epochs 1, 2 and 3, the last one recorded."""
    folder = tmp_path / 'work'
    folder.mkdir()
    for epoch in (1, 2, 3):
        save(folder / f'epoch_{epoch}.pth', 1000 + epoch)
    save(folder / 'best_sum_epoch_9.pth')
    record(folder, folder / 'epoch_3.pth')
    return folder


def record(folder, text):
    (folder / 'last_checkpoint').write_text(str(text))
    os.utime(folder / 'last_checkpoint', (1003.5, 1003.5))


def resume(folder, given='auto', **cfg):
    cfg = Config(dict(cfg, work_dir=str(folder)))
    choose_checkpoint(cfg, given)
    return cfg.load_from and os.path.relpath(cfg.load_from, folder)


@pytest.mark.parametrize('length', [0, 1, 200, -1])
def test_a_file_that_is_cut_off_is_passed_over(length, work, capsys):
    cut(work / 'epoch_3.pth', length=length)
    assert resume(work) == 'epoch_2.pth'
    passed, taken = capsys.readouterr().out.splitlines()
    assert 'Passed over' in passed and str(work / 'epoch_3.pth') in passed
    assert taken == f'Resuming from {work / "epoch_2.pth"}.'
    cut(work / 'epoch_2.pth', length=length)
    assert resume(work) == 'epoch_1.pth'


@pytest.mark.parametrize('content', ['', '\n', '\0' * 30, '\x01\x02'])
def test_a_record_that_is_empty(content, work, capsys):
    record(work, content)
    assert resume(work) == 'epoch_3.pth'
    assert 'last_checkpoint is' in capsys.readouterr().out


def test_a_file_newer_than_the_record(work):
    """The training was killed before it wrote the record."""
    save(work / 'epoch_4.pth', 1004)
    assert resume(work) == 'epoch_4.pth'
    cut(work / 'epoch_4.pth', 1004)
    assert resume(work) == 'epoch_3.pth'


def test_files_of_an_earlier_training(work, capsys):
    save(work / 'epoch_12.pth', 500)
    assert resume(work) == 'epoch_3.pth'
    cut(work / 'epoch_3.pth')
    assert resume(work) == 'epoch_2.pth'
    record(work, '')
    assert resume(work) == 'epoch_2.pth'


def test_numbers_are_no_words(work):
    save(work / 'epoch_10.pth', 1003)
    record(work, work / 'epoch_10.pth')
    cut(work / 'epoch_10.pth')
    save(work / 'epoch_9.pth', 1002)
    assert resume(work) == 'epoch_9.pth'


def test_a_copied_work_dir_is_resumed_from_the_copy(work, tmp_path):
    shutil.copytree(work, tmp_path / 'copy')
    assert resume(tmp_path / 'copy') == 'epoch_3.pth'
    shutil.rmtree(work)
    assert resume(tmp_path / 'copy') == 'epoch_3.pth'


def test_checkpoints_in_another_folder_and_of_another_name(work, tmp_path):
    hook = dict(out_dir=str(tmp_path / 'out'), filename_tmpl='e{}.pth')
    out = tmp_path / 'out/work'
    out.mkdir(parents=True)
    save(out / 'e1.pth')
    cut(out / 'e2.pth')
    record(work, out / 'e2.pth')
    assert resume(work, default_hooks=dict(checkpoint=hook)) == '../out/work/e1.pth'
    save(out / 'e2.pth')
    assert resume(work, default_hooks=dict(checkpoint=hook)) == '../out/work/e2.pth'


def test_nothing_whole_starts_anew_and_says_so(work, tmp_path, capsys):
    for epoch in (1, 2, 3):
        cut(work / f'epoch_{epoch}.pth')
    assert resume(work, load_from=None) is None
    text = capsys.readouterr().out
    assert text.count('Passed over') == 3 and 'Nothing to resume' in text
    start = save(tmp_path / 'start.pth')
    assert resume(work, load_from=str(start)) == '../start.pth'


def test_a_file_that_is_named_is_never_replaced(work):
    cut(work / 'epoch_3.pth')
    with pytest.raises(CheckpointError, match='epoch_3.pth'):
        resume(work, str(work / 'epoch_3.pth'))
    with pytest.raises(CheckpointError, match='epoch_3.pth'):
        resume(work, None, load_from=str(work / 'epoch_3.pth'), resume=True)
    with pytest.raises(UsageError, match='epoch_4.pth does not exist'):
        resume(work, str(work / 'epoch_4.pth'))


def test_a_whole_file_that_cannot_be_resumed_is_an_error(work):
    torch.save(dict(state_dict={'a.weight': torch.zeros(2)}, meta=dict(config='import os')), work / 'epoch_3.pth')
    with pytest.raises(CheckpointError, match='epoch_3.pth.*config'):
        resume(work)


# Whole files.


def test_a_full_disk_leaves_the_earlier_file(tmp_path, monkeypatch):
    path, old = tmp_path / 'epoch_1.pth', tmp_path / 'epoch_0.pth'
    path.write_bytes(b'whole')
    old.write_bytes(b'whole')

    def put(self, obj, filepath):
        with open(filepath, 'wb') as file:
            file.write(obj[:1])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(WholeFiles, '_outdated', [])
    with monkeypatch.context() as patch:
        patch.setattr(LocalBackend, 'put', put)
        WholeFiles().remove(str(old))
        with pytest.raises(CheckpointError, match='epoch_1.pth .5 bytes. cannot be written: No space left.*--resume'):
            WholeFiles().put(b'other', str(path))
    assert sorted(os.listdir(tmp_path)) == ['epoch_0.pth', 'epoch_1.pth'] and path.read_bytes() == b'whole'
    WholeFiles().put(b'other', str(path))
    assert os.listdir(tmp_path) == ['epoch_1.pth'] and path.read_bytes() == b'other'


def test_a_file_that_is_written_anew_is_not_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(WholeFiles, '_outdated', [])
    path = tmp_path / 'best.pth'
    path.write_bytes(b'old')
    WholeFiles().remove(str(path))
    WholeFiles().put(b'new', str(path))
    assert path.read_bytes() == b'new'


@pytest.mark.parametrize(
    'settings, whole',
    [
        (dict(), True),
        (dict(out_dir='out'), True),
        (dict(out_dir='http://example.com/out'), False),
        (dict(backend_args=dict(backend='local')), False),
    ],
)
def test_which_hooks_write_whole_files(settings, whole, tmp_path):
    hook = CheckpointHook(**settings)
    write_whole(hook, str(tmp_path))
    assert (hook.backend_args == dict(backend='rmt_mm.whole')) == whole


# The same training as without a pause.


def weights(path):
    return read_checkpoint(str(path))['state_dict']


@pytest.mark.parametrize(
    'iterations, workers',
    [(False, 0), (True, 0), *(pytest.param(iterations, 2, marks=pytest.mark.slow) for iterations in (False, True))],
)
def test_a_resumed_training_draws_the_same(iterations, workers, tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')

    def run(work_dir, length, name, *args):
        path = tmp_path / f'{name}.py'  # mmengine keeps one logger for each name in a process
        toy_training.write_config(path, workers, iterations)
        option = f'train_cfg.{"max_iters" if iterations else "max_epochs"}={length * (3 if iterations else 1)}'
        monkeypatch.setattr(
            sys,
            'argv',
            ['train.py', str(path), '--work-dir', str(tmp_path / work_dir), *args, '--cfg-options', option]
            + [f'experiment_name=resuming-{iterations}-{workers}-{name}'],
        )
        train.main()

    last = 'iter_6.pth' if iterations else 'epoch_2.pth'
    run('whole', 2, 'whole')
    run('paused', 1, 'first')
    run('paused', 2, 'second', '--resume')
    whole, paused = weights(tmp_path / 'whole' / last), weights(tmp_path / 'paused' / last)
    assert all(torch.equal(whole[name], paused[name]) for name in whole)


@pytest.mark.slow
@pytest.mark.parametrize('loop', [[], ['--iterations']])
def test_killed_trainings_end_as_those_that_were_not(loop):
    """In a process of its own: trainings fork from it, which one that has computed gradients cannot."""
    done = run_script(ROOT / 'tests/kill_trainings.py', '--kills', 8, *loop)
    assert done.returncode == 0 and 'seed 0: 8 kills' in done.stdout and 'all ended' in done.stdout, done.stderr
