"""Read the predictions that ``tools/test.py --out`` pickles, without executing what the file holds."""

import io
import math
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO, List

import torch
from torch import Tensor
from torch.storage import TypedStorage

from ...checkpoints.safe import DAMAGE, LEGACY_MAGIC, LEGACY_PICKLES, Inspector, Unpickler, require
from ...errors import DataError, printable


def _storage(data: Any) -> TypedStorage:
    """Stand for ``torch.storage._load_from_bytes``, which unpickles the data of a tensor without any restriction."""
    require(type(data) is bytes and data.startswith(LEGACY_MAGIC), 'a storage in another format than torch.save wrote')
    stream, names = io.BytesIO(data), set()
    for _ in range(LEGACY_PICKLES):
        inspector = Inspector(stream, None, len(data))
        inspector.load()
        names |= inspector.names
    for name in names:
        module, _, kind = name.rpartition('.')
        require(module in ('torch', 'torch.storage') and kind.endswith('Storage'), f'{printable(name, 100)}')
    storage = torch.load(io.BytesIO(data), map_location='cpu', weights_only=True)
    require(type(storage) is TypedStorage, 'a storage of another type')
    return storage


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    """Stand for ``torch._utils._rebuild_tensor_v2``; no more elements than the file has data for."""
    require(type(storage) is TypedStorage, 'a tensor without a storage')
    numbers = (offset, *size, *stride)
    require(all(type(number) is int and number >= 0 for number in numbers), 'a tensor of no shape')
    require(len(size) == len(stride), 'a tensor of no shape')
    count = math.prod(size)
    end = offset + sum((length - 1) * step for length, step in zip(size, stride)) + 1 if count else 0
    # Check before torch makes the tensor: it enlarges a storage that is too small, by memory that nobody has written.
    require(max(end, count) * storage.dtype.itemsize <= storage._untyped_storage.nbytes(), 'a tensor without data')
    return torch._utils._rebuild_tensor_v2(storage, offset, size, stride, False, OrderedDict())


class PredictionsUnpickler(Unpickler):
    """Create tensors, numbers, texts, bytes, lists, tuples and dicts, and nothing else."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        kept = ('_codecs.encode', 'collections.OrderedDict')
        self._allowed = {
            **{name: self._allowed[name] for name in kept},
            'torch.Size': torch.Size,
            'torch.storage._load_from_bytes': _storage,
            'torch._utils._rebuild_tensor_v2': _tensor,
        }
        self._callable = {id(entry) for entry in self._allowed.values()}
        self._types = {OrderedDict}


def read_predictions(path: Path) -> List[dict]:
    """Return the data samples of a test as dicts.

    Args:
        path (Path): a file that ``DumpResults`` of mmengine, or ``DumpDetResults`` of mmdet, wrote.

    Raises:
        DataError: it is damaged, or holds anything but plain values and tensors.
    """
    try:
        with open(path, 'rb') as file:
            samples = PredictionsUnpickler(file).load()
    except OSError as error:
        raise DataError(f'{path} cannot be read ({error.strerror}).') from error
    except DAMAGE as error:
        reason = printable(' '.join(str(error).split()), 200)
        raise DataError(f'{path} is damaged, or holds what tools/test.py --out does not write ({reason}).') from error
    if not isinstance(samples, list) or not samples or not all(isinstance(sample, dict) for sample in samples):
        raise DataError(f'{path} holds no predictions: write it by tools/test.py --out.')
    return samples
