"""What ends a training or a test from outside is one sentence with the cure; other errors keep their traceback."""

import errno
import itertools
import os
import signal
import sys

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, TRANSFORMS

from rmt_mm.errors import DataError, UsageError
from rmt_mm.tools.commands import test as test_tool
from rmt_mm.tools.commands import train
from rmt_mm.training.faults import NamingCompose, explaining_faults

from support import toy_training
from support.toy import ToyConvNet

numbers = itertools.count()
KILLED = 'DataLoader worker (pid 123) is killed by signal: Killed. '


@pytest.mark.parametrize(
    'error, words',
    [
        (OSError(errno.ENOSPC, 'No space left on device', 'log.txt'), ['log.txt is full', 'free space', '--resume']),
        (OSError(errno.ENOSPC, 'No space left on device'), ['the disk of WORK is full']),
        (OSError('Caught OSError in worker.\nOSError: [Errno 122] Disk quota exceeded'), ['the disk of WORK is full']),
        (PermissionError(errno.EACCES, 'Permission denied', 'a.log'), ['a.log', 'Permission denied', '--resume']),
        (RuntimeError(KILLED), ['killed', 'num_workers', '--resume']),
        (RuntimeError('DataLoader worker (pid(s) 1, 2) exited unexpectedly'), ['killed', 'num_workers']),
        (
            RuntimeError(f"{KILLED}It is possible that dataloader's workers are out of shared memory (shm)."),
            ['/dev/shm'],
        ),
        (RuntimeError('CUDA out of memory. Tried to allocate 2 GiB'), ['GPU is full', 'batch_size', 'with_cp']),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), ['memory of this machine is full', 'batch_size']),
        (
            RuntimeError('[gloo/transport/tcp/pair.cc:538] Read error [127.0.0.1]:64659: Connection reset by peer'),
            ['another process of this run has ended', '--resume'],
        ),
        (MemoryError(), ['memory of this machine is full']),
    ],
)
def test_known_faults_are_sentences(error, words):
    with pytest.raises(UsageError) as raised, explaining_faults('WORK'):
        raise error
    assert all(word in str(raised.value) for word in words), raised.value
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize(
    'error', [RuntimeError('shapes differ'), KeyError('a'), OSError('odd'), cv2.error('odd'), SystemError('odd')]
)
def test_unknown_errors_pass(error):
    with pytest.raises(type(error)) as raised, explaining_faults('WORK'):
        raise error
    assert raised.value is error


# Files that a transform cannot load.


@TRANSFORMS.register_module(force=True)
class Odd:
    """A transform with a mistake of its own, or one that meets an image without pixels."""

    def __init__(self, error):
        self.error = error

    def __call__(self, data):
        raise dict(value=ValueError('a mistake'), cv2=cv2.error('(-215) !ssize.empty()'))[self.error]


@DATASETS.register_module(force=True)
class OneImage(BaseDataset):
    """A data set of one image, in which a worker may be killed."""

    def __init__(self, path, kill=False, **kwargs):
        self.path, self.kill = str(path), kill
        super().__init__(**kwargs)

    def load_data_list(self):
        return [dict(img_path=self.path, label=0)]

    def prepare_data(self, index):
        if self.kill:
            os.kill(os.getpid(), signal.SIGKILL)
        data = self.pipeline(self.get_data_info(index))
        return torch.as_tensor(data['img'], dtype=torch.float32).permute(2, 0, 1), data['label']


@pytest.fixture
def training(tmp_path, monkeypatch):
    """Train a toy model on one image file; return the text of the exit, '' for success."""
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')

    def run(content, workers=0, more=(), kill=False, iterations=False):
        image, path = tmp_path / 'image.png', tmp_path / f'{next(numbers)}.py'
        if content is not None:
            image.write_bytes(content)
        toy_training.write_config(path, workers, iterations)
        cfg = Config.fromfile(path)
        cfg.experiment_name = f'faults{next(numbers)}'
        cfg.train_cfg.update(dict(max_iters=3) if iterations else dict(max_epochs=1))
        pipeline = [dict(type='LoadImageFromFile'), *more]
        cfg.train_dataloader.dataset = dict(type='OneImage', path=str(image), kill=kill, pipeline=pipeline)
        cfg.dump(path)
        monkeypatch.setattr(sys, 'argv', ['train.py', str(path), '--work-dir', str(tmp_path / 'work')])
        return toy_training.run_here(train.main)

    return run


PNG = cv2.imencode('.png', np.random.RandomState(0).randint(0, 256, (32, 32, 3), np.uint8))[1].tobytes()


@pytest.mark.parametrize('content', [b'', b'no image', PNG[:40], None])
def test_an_image_that_cannot_be_loaded_is_named(content, training, tmp_path):
    text = training(content)
    assert text.startswith('error: ') and len(text.splitlines()) == 1
    assert str(tmp_path / 'image.png') in text and 'replace the file' in text and '--resume' in text


@pytest.mark.parametrize('iterations', [False, True])
def test_a_worker_names_the_image_too(iterations, training, tmp_path):
    text = training(b'', workers=1, iterations=iterations)
    assert (
        text.startswith(f'error: {tmp_path / "image.png"} cannot be used (it is empty)') and len(text.splitlines()) == 1
    )


def test_a_worker_that_is_killed(training):
    text = training(PNG, workers=1, kill=True)
    assert text.startswith('error: a worker process') and 'num_workers' in text and len(text.splitlines()) == 1


def test_errors_of_opencv_name_the_image(training, tmp_path):
    text = training(PNG, more=[dict(type='Odd', error='cv2')])
    assert str(tmp_path / 'image.png') in text and 'ssize.empty' in text


def test_a_mistake_in_a_transform_keeps_its_traceback(training):
    with pytest.raises(ValueError, match='a mistake'):
        training(PNG, more=[dict(type='Odd', error='value')])


def test_a_good_image_trains(training):
    assert training(PNG) == ''


def test_label_maps_are_named():
    class LoadAnnotations:
        def __call__(self, data):
            raise OSError('truncated')

    with pytest.raises(DataError, match='labels.png cannot be used'):
        NamingCompose([LoadAnnotations()])(dict(img_path='image.jpg', seg_map_path='labels.png'))


def test_the_disk_is_full_while_a_checkpoint_is_written(training, tmp_path, monkeypatch):
    def fsync(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, 'fsync', fsync)
    text = training(PNG)
    assert text.startswith('error: ') and 'epoch_1.pth' in text and 'No space left' in text
    assert not list((tmp_path / 'work').glob('epoch*'))


# The same faults of tools/test.py.


@pytest.fixture
def testing(tmp_path, monkeypatch):
    """Test a toy model on one image file; return the text of the exit, '' for success."""
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')

    def run(content, workers=0, kill=False, options=()):
        (tmp_path / 'image.png').write_bytes(content)
        path = tmp_path / f'{next(numbers)}.py'
        toy_training.write_config(path, workers)
        cfg = Config.fromfile(path)
        cfg.experiment_name = f'faults{next(numbers)}'
        pipeline = [dict(type='LoadImageFromFile')]
        dataset = dict(type='OneImage', path=str(tmp_path / 'image.png'), kill=kill, pipeline=pipeline)
        cfg.test_dataloader = dict(cfg.pop('val_dataloader'), dataset=dataset)
        cfg.test_cfg, cfg.test_evaluator = dict(), cfg.pop('val_evaluator')
        for key in ('train_dataloader', 'train_cfg', 'optim_wrapper', 'val_cfg'):
            cfg.pop(key)
        cfg.dump(path)
        torch.save(dict(state_dict=ToyConvNet().state_dict()), tmp_path / 'a.pth')
        argv = ['test.py', str(path), str(tmp_path / 'a.pth'), '--work-dir', str(tmp_path / 'work'), *options]
        monkeypatch.setattr(sys, 'argv', argv)
        return toy_training.run_here(test_tool.main)

    return run


@pytest.mark.parametrize('content', [b'', PNG[:40]])
@pytest.mark.parametrize('workers', [0, 1])
def test_a_test_names_the_image(content, workers, testing, tmp_path):
    text = testing(content, workers)
    assert text.startswith(f'error: {tmp_path / "image.png"} cannot be used') and len(text.splitlines()) == 1
    assert 'then test again' in text and '--resume' not in text


@pytest.mark.slow
def test_a_worker_of_a_test_that_is_killed(testing):
    text = testing(PNG, workers=1, kill=True)
    assert text.startswith('error: a worker process') and text.endswith('then test again.')


def test_the_disk_is_full_while_predictions_are_written(testing, tmp_path):
    (tmp_path / 'a.pkl').symlink_to('/dev/full')  # a device without space
    text = testing(PNG, options=['--out', str(tmp_path / 'a.pkl')])
    assert text.startswith(f'error: the disk of {tmp_path / "work"} is full') and text.endswith('then test again.')


def test_the_memory_of_a_test_is_full():
    with pytest.raises(UsageError) as raised, explaining_faults('WORK', training=False):
        raise RuntimeError('CUDA out of memory. Tried to allocate 2 GiB')
    assert 'test_dataloader.batch_size (' in str(raised.value) and 'with_cp' not in str(raised.value)
    assert str(raised.value).endswith('then test again.')


def test_a_good_image_is_tested(testing, tmp_path):
    assert testing(PNG, options=['--out', str(tmp_path / 'a.pkl')]) == ''
    assert (tmp_path / 'a.pkl').stat().st_size
