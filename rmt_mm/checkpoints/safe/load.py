"""Read files of ``torch.save`` without executing what they hold, and with no more memory than they can need."""

import contextlib
import io
import os.path as osp
import pickle
import re
import struct
import tarfile
import tokenize
import zipfile
import zlib
from collections import Counter, OrderedDict
from typing import Any, BinaryIO, Callable, Dict, List, Optional, Sequence, Set, Tuple

import torch
from torch import Tensor, nn

from ...errors import CheckpointError, DamagedCheckpointError, printable
from .process import allowing_only
from .types import STAND_INS
from .unpickler import Inspector, by_name, safe_globals

# What the readers of torch, NumPy, zip and JSON raise for nonsense.
DAMAGE = (
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    MemoryError,
    SystemError,
    SyntaxError,
    struct.error,
    tokenize.TokenError,
    zlib.error,
    zipfile.BadZipFile,
    pickle.UnpicklingError,
)
ZIP_MAGIC = b'PK\x03\x04'
# torch's format before 1.6 starts with this pickled number, and has four more pickles before the data.
LEGACY_MAGIC = b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.'
LEGACY_PICKLES = 5

# What torch's own list has and checkpoints hold: dense tensors and plain values. The rest of that list makes other
# kinds of tensors, whose indices it does not check, and tensors and storages of memory that nobody has written.
_PLAIN = re.compile(
    r'torch(\.cuda)?\.[A-Z]\w*Storage|torch\._utils\._rebuild_(tensor|tensor_v2|parameter)|'
    r'torch\.(Size|device)|collections\.(OrderedDict|Counter)|_codecs\.encode|builtins\.(set|complex)'
)
_OTHER_TENSORS = re.compile(r'torch\.(_\w+|storage|serialization|sparse|cuda|nn\.parameter)\..*|torch\.\w*Tensor')
# Nothing of these is left out either: torch refuses most of them whatever is allowed.
_PROGRAMS = re.compile(r'(os|posix|nt|sys|subprocess|pty|runpy)\..*|builtins\.(eval|exec|compile|__import__)')
# Official files keep the command line in one. The converter leaves it out without being asked.
OFFICIAL_TYPES = ('argparse.Namespace',)

# Unpacked, a zip file may be this many times as large as it is, and this much larger. torch.save does not compress.
UNPACKED_TIMES, UNPACKED_BYTES = 4, 64 * 2**20
# The same for all tensors together, which may have more elements than data: those of Tensor.expand do.
TENSOR_TIMES, TENSOR_BYTES = 4, 4 * 2**30


def safe_load(path: str, map_location: str = 'cpu', allow_types: Sequence[str] = ()) -> Any:
    """Read a file of ``torch.save`` by ``torch.load(weights_only=True)``, after a look at what it would make.

    Only dense tensors, plain Python values, and what mmengine writes (:mod:`rmt_mm.checkpoints.safe.types`) are made.
    The sizes of a zip file and its check sums are verified before it is read.

    Args:
        path (str): a file in one of torch's two formats.
        map_location (str): where the tensors go; ``'meta'`` leaves their data unread, with torch 2.4 or later.
            Default ``'cpu'``.
        allow_types (Sequence[str]): full names of further types that the file may hold, such as
            ``'yacs.config.CfgNode'``. Their objects become empty dicts: nothing is imported or called. Types that the
            program has allowed by ``torch.serialization.add_safe_globals`` are allowed too.

    Raises:
        CheckpointError: the file is damaged, or is none of ``torch.save``; it holds types that are not allowed, which
            are named; it would take more memory than its size explains.
    """
    for name in allow_types:
        if not _is_full_name(name):
            raise CheckpointError(
                f'{printable(name, 100)!r} is not the full name of a type, such as yacs.config.CfgNode.'
            )
    with open(path, 'rb') as file:
        zipped = file.read(len(ZIP_MAGIC)) == ZIP_MAGIC
    try:
        names, records = _look_into_archive(path) if zipped else (_look_into_pickles(path), None)
        allowed = _allowed_globals(allow_types)
        refused = sorted(name for name in names if name not in allowed and not _is_plain(name))
        if refused:
            raise _refusal(path, refused, allow_types)
        if map_location == 'meta' and torch.__version__ < (2, 4):  # type: ignore[operator]  # a TorchVersion
            map_location = 'cpu'  # there, a storage on meta takes the size of its last view, whatever its file holds
        with allowing_only(list(allowed.values())):
            content = torch.load(path, map_location=map_location, weights_only=True)
        _check_content(path, content, records)
    except CheckpointError:
        raise
    except DAMAGE as error:
        # torch wraps the reason in advice to trust the file.
        wrapped = isinstance(error, pickle.UnpicklingError) and isinstance(error.__context__, DAMAGE)
        cause = error.__context__ if wrapped else error
        reason = printable(' '.join(str(cause).split()) or type(cause).__name__, 200)
        raise CheckpointError(
            f'{path} is damaged, or is not a PyTorch checkpoint, or holds what no checkpoint needs ({reason}).'
        ) from cause
    return content


def _is_full_name(name: str) -> bool:
    parts = name.split('.')
    return len(parts) > 1 and all(part.isidentifier() and part.isascii() for part in parts)


def _is_plain(name: str) -> bool:
    dtype = name.startswith('torch.') and isinstance(getattr(torch, name[len('torch.') :], None), torch.dtype)
    return dtype or _PLAIN.fullmatch(name) is not None


def _look_into_archive(path: str) -> Tuple[Set[str], Set[int]]:
    """Return the full names of what a zip file of torch.save asks for, and the sizes of its records.

    Raises:
        CheckpointError: the file is damaged, not of torch.save, or would unpack to far more than its size.
    """
    try:
        archive = zipfile.ZipFile(path)
    except DAMAGE as error:  # the directory is at its end
        raise DamagedCheckpointError(f'{path} is cut off: its end is missing, download or copy it again.') from error
    with archive:
        entries = archive.infolist()
        names = [entry.filename.partition('/')[2] for entry in entries]
        if 'data.pkl' not in names:
            raise CheckpointError(f'{path} is a zip file, but not a PyTorch checkpoint.')
        if 'constants.pkl' in names:
            raise CheckpointError(f'{path} is a TorchScript program, not a checkpoint.')
        # torch's reader may take another one of two, and does not tell upper from lower case.
        if len({entry.filename.lower() for entry in entries}) < len(entries) or names.count('data.pkl') > 1:
            raise DamagedCheckpointError(f'{path} is damaged: it has two records of one name.')
        limit = UNPACKED_TIMES * osp.getsize(path) + UNPACKED_BYTES
        unpacked = sum(entry.file_size for entry in entries)
        if unpacked > limit:
            raise CheckpointError(
                f'{path} would unpack to {unpacked} bytes, more than {UNPACKED_TIMES} times its size '
                f'and {UNPACKED_BYTES // 2**20} MiB, and was not read.'
            )
        for entry in entries:
            try:
                # 0 stands for a sum that was not computed: torch.serialization.set_crc32_options.
                with archive.open(entry) as file:
                    while entry.CRC and file.read(2**20):
                        pass
            except DAMAGE as error:
                raise DamagedCheckpointError(
                    f'{path} is damaged ({printable(error, 200)}): download or copy it again.'
                ) from error
        pickled = archive.read(entries[names.index('data.pkl')])
        lead = len('data/')
        sizes = {name[lead:]: entry.file_size for name, entry in zip(names, entries) if name.startswith('data/')}
        return _read_names(io.BytesIO(pickled), sizes, limit), set(sizes.values())


def _look_into_pickles(path: str) -> Set[str]:
    """Return the full names of what a file of torch's format before 1.6 asks for."""
    if tarfile.is_tarfile(path):  # torch would read it as its very first format
        raise CheckpointError(f'{path} is a tar file, not a PyTorch checkpoint.')
    with open(path, 'rb') as file:
        return set().union(*(_read_names(file, None, osp.getsize(path)) for _ in range(LEGACY_PICKLES)))


def _read_names(file: BinaryIO, sizes: Optional[Dict[str, int]], limit: int) -> Set[str]:
    """Return the full names of the types and functions that a pickle asks for; the file is left behind it."""
    inspector = Inspector(file, sizes, limit)
    inspector.load()
    return inspector.names


def _allowed_globals(allow_types: Sequence[str]) -> Dict[str, Callable]:
    """Return what is on torch's list while a file is read, by the name that a pickle has for it."""
    entries = by_name([*safe_globals(), *map(_placeholder, allow_types), *STAND_INS])
    return {name: entry for name, entry in entries.items() if not _PROGRAMS.fullmatch(name)}


def _placeholder(name: str) -> type:
    """Return a class that stands for ``name``, and whose objects come out as an OrderedDict whatever they hold."""
    # Not as objects of the class itself: the safe unpickler fills dicts of known types alone, and configs are dicts.
    module, _, attribute = name.rpartition('.')
    return type(attribute, (), {'__module__': module, '__new__': lambda cls, *args, **kwargs: OrderedDict()})


def _refusal(path: str, names: List[str], allowed: Sequence[str]) -> CheckpointError:
    """Return the error for types that are not allowed; with the remedy only if it works for this file."""
    shown = ', '.join(printable(name, 100) for name in names[:10])
    shown += f' and {len(names) - 10} more' if len(names) > 10 else ''
    if any(_PROGRAMS.fullmatch(name) for name in names):
        return CheckpointError(
            f'{path} was refused: it holds {shown}, which no checkpoint needs and which can run any '
            'program. Do not open this file.'
        )
    if any(_OTHER_TENSORS.fullmatch(name) for name in names):
        return CheckpointError(
            f'{path} was refused: it holds {shown}, so tensors or storages of a kind that no '
            'checkpoint of a model needs; save its state_dict() of dense tensors.'
        )
    text = f'{path} was refused: it holds objects of type {shown}, and unpickling them can run any code'
    if len(names) <= 10 and all(map(_is_full_name, names)):
        with contextlib.suppress(CheckpointError):
            safe_load(path, 'meta', [*allowed, *names])
            advised = [name for name in (*allowed, *names) if name not in OFFICIAL_TYPES]
            return CheckpointError(
                f'{text}; read_checkpoint leaves out what allow_types names.',
                'allow_type' if advised else 'convert',
                allow_type=advised,
            )
    return CheckpointError(f'{text}; save the tensors alone, as a state_dict.')


def _has_data(tensor: Tensor, records: Set[int]) -> bool:
    """Tell whether a tensor on the meta device would lie within a record of its file."""
    storage, steps = tensor.untyped_storage().nbytes(), list(zip(tensor.shape, tensor.stride()))
    end = tensor.storage_offset() + sum((size - 1) * stride for size, stride in steps) + 1 if tensor.numel() else 0
    return storage in records and min(tensor.stride(), default=0) >= 0 and end * tensor.element_size() <= storage


def _check_content(path: str, content: Any, records: Optional[Set[int]]) -> None:
    """Raise CheckpointError if there are other than dense tensors, or more elements than a file of this size explains.

    Args:
        path (str): the file.
        content (object): what was read of it.
        records (set[int] | None): sizes of a zip file's records. torch does not check tensors on the meta device.
    """
    seen, stack, total = set(), [content], 0
    while stack:
        item = stack.pop()
        if isinstance(item, Tensor):
            if type(item) not in (Tensor, nn.Parameter) or item.layout != torch.strided or item.is_quantized:
                raise CheckpointError(f'{path} holds tensors that are not dense, which no checkpoint of a model needs.')
            if item.is_meta and records is not None and not _has_data(item, records):
                raise CheckpointError(f'{path} is damaged: a tensor of shape {tuple(item.shape)} has no data.')
            total += item.numel() * item.element_size()
        elif isinstance(item, (dict, list, tuple, set)) and id(item) not in seen:
            seen.add(id(item))
            if type(item) in (OrderedDict, Counter):
                vars(item).clear()  # a file may set any attribute, and hide methods such as items
            stack.extend(dict.values(item) if isinstance(item, dict) else item)
    if total > TENSOR_TIMES * osp.getsize(path) + TENSOR_BYTES:
        raise CheckpointError(
            f'{path} holds tensors of {total} bytes, more than {TENSOR_TIMES} times its size and '
            f'{TENSOR_BYTES // 2**30} GiB, and was not read.'
        )
