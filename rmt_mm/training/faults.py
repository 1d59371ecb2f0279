"""Errors of a running training or test that come from its machine or its files, as sentences. Others pass unchanged."""

import contextlib
import errno
import os.path as osp
import re
from typing import TYPE_CHECKING, Any, Iterator, Optional

import cv2
import torch
from mmengine.dataset import Compose
from PIL import Image
from torch.utils.data import DataLoader

from ..errors import DataError, RMTError, UsageError, in_one_line
from .datasets import find_datasets
from .image_size import PILLOW_ERRORS

if TYPE_CHECKING:
    from mmengine.runner import Runner

# What a transform raises for a file that is missing, empty, cut off, or no image.
FILE_ERRORS = (*PILLOW_ERRORS, AssertionError, cv2.error, Image.DecompressionBombError)
THEN = {True: 'continue with --resume', False: 'test again'}  # when the fault of a training, or of a test, is mended
# What gloo and NCCL say where another process is gone.
LOST_PROCESS = (r'gloo.*(closed by peer|reset by peer)', r'NCCL.*remote process exited')
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class NamingCompose(Compose):
    """The transforms of a data set; an error of a file that they load names the file.

    The name is known here alone: a worker process passes on the text of an error, without the values around it.

    Args:
        transforms (Sequence): of :class:`mmengine.dataset.Compose`.
        training (bool): of a training, or of a test. Default True.
    """

    def __init__(self, transforms: Any, training: bool = True) -> None:
        super().__init__(transforms)
        self.training = training

    def __call__(self, data: dict) -> Optional[dict]:
        for transform in self.transforms:
            given = data
            try:
                data = transform(data)
            except RMTError:
                raise
            except FILE_ERRORS as error:
                path = _find_path(transform, given)
                if not path or not (isinstance(error, cv2.error) or type(transform).__name__.startswith('Load')):
                    raise
                empty = osp.isfile(path) and not osp.getsize(path)
                reason = 'it is empty' if empty else f'{type(transform).__name__}: {in_one_line(error)}'
                raise DataError(
                    f'{path} cannot be used ({reason}): replace the file, or remove it from the data set; then '
                    f'{THEN[self.training]}.'
                ) from error
            if data is None:
                return None
        return data


def _find_path(transform: Any, data: Any) -> str:
    """Return the file that a transform reads of a sample, '' if unknown."""
    if not isinstance(data, dict):
        return ''
    keys = ['img_path', 'seg_map_path']
    if 'Ann' in type(transform).__name__:
        keys.reverse()
    return next((data[key] for key in keys if data.get(key)), '')


def name_images(runner: 'Runner', training: bool = True) -> None:
    """Let the data sets that a runner builds from now on name the file whose loading fails.

    Call it before the loops are built: one that counts iterations starts its workers then.
    """
    build = runner.build_dataloader

    def build_naming(*args: Any, **kwargs: Any) -> DataLoader:
        loader = build(*args, **kwargs)
        for dataset in find_datasets(loader.dataset):
            if type(getattr(dataset, 'pipeline', None)) is Compose:
                dataset.pipeline = NamingCompose(dataset.pipeline.transforms, training)
        return loader

    runner.build_dataloader = build_naming  # type: ignore[method-assign]


@contextlib.contextmanager
def explaining_faults(work_dir: str, training: bool = True) -> Iterator[None]:
    """Raise UsageError for an error in the block that the machine caused: a full disk, no memory, a killed worker.

    Errors that this function does not know pass with their traceback.

    Args:
        work_dir (str): named for a full disk where the error names no file.
        training (bool): the block trains, or tests: the cures differ. Default True.
    """
    try:
        yield
    except RMTError:
        raise
    except (OSError, RuntimeError, MemoryError, cv2.error) as error:
        text = _explain(error, work_dir, training)
        if text is None:
            raise
        raise UsageError(f'{text}; then {THEN[training]}.') from error


def _explain(error: BaseException, work_dir: str, training: bool) -> Optional[str]:
    reason = in_one_line(error)
    if isinstance(error, torch.cuda.OutOfMemoryError) or 'CUDA out of memory' in reason:
        cure = 'lower test_dataloader.batch_size'
        if training:
            cure = 'lower train_dataloader.batch_size, or set model.backbone.with_cp=True, or give --amp'
        return f'the memory of the GPU is full: {cure} ({reason[:200]})'
    if isinstance(error, MemoryError) or "can't allocate memory" in reason:
        return f'the memory of this machine is full: lower batch_size or num_workers of the loaders ({reason[:200]})'
    if isinstance(error, OSError):
        # The text of an error that a worker passed on has the number alone.
        number = error.errno or int((re.search(r'\[Errno (\d+)\]', reason) or [0, 0])[1])
        if number in NO_SPACE:
            return f'the disk of {error.filename or work_dir} is full: free space ({reason[:200]})'
        if number:
            place = error.filename or work_dir
            return f'{place} cannot be read or written: mend it ({reason[-200:]})'
    if any(re.search(pattern, reason) for pattern in LOST_PROCESS):
        return f'another process of this run has ended: see what it wrote last, and mend that ({reason[-200:]})'
    if 'DataLoader worker' in reason and ('killed' in reason or 'exited unexpectedly' in reason):
        shared = ' or enlarge /dev/shm' if 'shm' in reason or 'Bus error' in reason else ''
        return (
            'a worker process of a data loader was killed, as happens when memory runs out: lower num_workers or '
            f'batch_size{shared} ({reason[-200:]})'
        )
    return None
