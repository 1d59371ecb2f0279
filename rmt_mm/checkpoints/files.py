"""Checkpoint files: read without executing anything that they hold, and written atomically."""
import contextlib
import hashlib
import json
import os
import os.path as osp
import pickle
import re
import struct
import tempfile
import zipfile
import zlib
from argparse import Namespace
from collections import OrderedDict
from typing import Iterator, Sequence

import torch

from ..compat import allow_own_checkpoints
from ..errors import CheckpointError

ZIP_MAGIC = b'PK\x03\x04'
# torch's format before 1.6 starts with this pickled number.
LEGACY_MAGIC = b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.'
# What else is found under the name of a checkpoint, by its first bytes.
OTHER_FORMATS = (
    (re.compile(rb'\s*<(!doctype|html|\?xml)', re.IGNORECASE),
     'is a web page, not a checkpoint: open the link in a browser and save the file that it leads to'),
    (re.compile(rb'version https://git-lfs'), 'is a Git LFS pointer, not the checkpoint itself: run `git lfs pull`'),
    (re.compile(rb'\x89HDF\r\n'), 'is an HDF5 file (Keras, TensorFlow), not a PyTorch checkpoint'),
    (re.compile(rb'\x93NUMPY'), 'is a NumPy array, not a PyTorch checkpoint'),
    (re.compile(rb'\x1f\x8b|BZh|\xfd7zXZ|Rar!|7z\xbc\xaf'), 'is a compressed archive: unpack it first'),
    (re.compile(rb'\x80[\x02-\x05]'), 'is a plain pickle (as PaddlePaddle and Detectron write them), '
     'not a PyTorch checkpoint, and is not opened because a pickle can run any code'),
)
# What torch's reader raises for nonsense.
DAMAGE = (RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, AssertionError, ArithmeticError,
          MemoryError, struct.error)
SAFETENSORS = '.safetensors'
SUFFIXES = ('.pth', '.pt', SAFETENSORS)


def read_checkpoint(path: str, map_location: str = 'cpu', allow_types: Sequence[str] = ()) -> dict:
    """Read a checkpoint without executing anything that it holds.

    ``torch.load(weights_only=True)``, with ``argparse.Namespace`` (in the authors' files) and what mmengine itself
    writes allow-listed.

    Args:
        path (str): a ``.pth`` or a ``.safetensors`` file.
        map_location (str): where the tensors go; ``'meta'`` leaves their data unread. Default ``'cpu'``.
        allow_types (Sequence[str]): full names of further types that the file may hold, such as
            ``'yacs.config.CfgNode'``. Their objects become empty placeholders: nothing is imported or called.

    Returns:
        dict: the file's contents; those of a safetensors file under ``state_dict`` and ``meta``.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is empty, damaged, or something other than a PyTorch checkpoint, or it holds objects
            of types that are not allowed, which are named.
    """
    if not osp.exists(path):
        raise FileNotFoundError(f'checkpoint {path} does not exist.')
    if not osp.isfile(path):
        raise CheckpointError(f'{path} is a folder, not a checkpoint.')
    with open(path, 'rb') as file:
        head = file.read(512)
    if not head:
        raise CheckpointError(f'{path} is empty: it may have been cut off while it was written or downloaded.')
    for pattern, text in OTHER_FORMATS:
        if pattern.match(head) and not head.startswith(LEGACY_MAGIC):
            raise CheckpointError(f'{path} {text}.')
    if path.endswith(SAFETENSORS):
        return _read_safetensors(path, map_location)
    if not head.startswith((ZIP_MAGIC, LEGACY_MAGIC)):
        raise CheckpointError(f'{path} is not a PyTorch checkpoint (it starts with {head[:8]!r}).')
    if head.startswith(ZIP_MAGIC):
        _check_archive(path, sums=map_location != 'meta')
    with _allowed(allow_types):
        try:
            checkpoint = torch.load(path, map_location=map_location, weights_only=True)
        except pickle.UnpicklingError as error:
            raise CheckpointError(_explain_refusal(path, str(error))) from error
        except DAMAGE as error:
            first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CheckpointError(f'{path} is damaged, or is not a PyTorch checkpoint ({first_line}).') from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f'{path} holds a {type(checkpoint).__name__}, not a dict of tensors.')
    return checkpoint


def _check_archive(path: str, sums: bool) -> None:
    """Raise CheckpointError if a zip file is damaged, which torch does not look for, or is not of torch.save."""
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:  # the directory is at its end
        raise CheckpointError(f'{path} is cut off: its end is missing, download or copy it again.') from error
    with archive:
        names = {name.partition('/')[2] for name in archive.namelist()}
        if 'data.pkl' not in names:
            raise CheckpointError(f'{path} is a zip file, but not a PyTorch checkpoint.')
        if 'constants.pkl' in names:
            raise CheckpointError(f'{path} is a TorchScript program, not a checkpoint.')
        for entry in archive.infolist() if sums else ():
            try:
                # 0 stands for a sum that was not computed: torch.serialization.set_crc32_options.
                with archive.open(entry) as file:
                    while entry.CRC and file.read(2**20):
                        pass
            except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
                raise CheckpointError(f'{path} is damaged ({error}): download or copy it again.') from error


@contextlib.contextmanager
def _allowed(names: Sequence[str]) -> Iterator[None]:
    """Allow-list what official files and our own hold, and inert placeholders for the named types."""
    allow_own_checkpoints()
    if not hasattr(torch.serialization, 'safe_globals'):  # torch < 2.5: nothing can be allowed for a while only
        yield
        return
    types = [Namespace] + [_placeholder(name) for name in names]
    # What others have allowed must still be allowed afterwards.
    types = [t for t in types if t not in torch.serialization.get_safe_globals()]
    with torch.serialization.safe_globals(types):
        yield


def _placeholder(name: str) -> type:
    """Return a class that stands for ``name``, and whose objects come out as an OrderedDict whatever they hold."""
    # Not as objects of the class itself: the safe unpickler fills dicts of known types alone, and configs are dicts.
    module, _, attribute = name.rpartition('.')
    return type(attribute, (), {'__module__': module, '__new__': lambda cls, *args, **kwargs: OrderedDict()})


def _explain_refusal(path: str, text: str) -> str:
    found = re.search(r'(?:GLOBAL|Unsupported class) (\S+?)[, ]', text)
    if not found:
        reason = [line for line in text.splitlines() if line.strip() and 'documentation' not in line][-1]
        return f'{path} is damaged, or holds what no checkpoint needs, and was not read ({reason}).'
    name = found.group(1) if '.' in found.group(1) else f'builtins.{found.group(1)}'
    if 'is blocked' in text:
        return (f'{path} was refused: it holds {name}, which no checkpoint needs and which can run any program. '
                'Do not open this file.')
    return (f'{path} was refused: it holds an object of type {name}, and unpickling one can run any code; '
            f'convert the file with `tools/model_converters/rmt_to_mm.py --allow-type {name}`, which reads the tensors '
            'and leaves such objects out.')


def _safetensors(path: str):
    try:
        import safetensors.torch
    except ImportError as error:
        raise CheckpointError(f'{path}: .safetensors files need the package safetensors: '
                              'run `pip install safetensors`.') from error
    return safetensors


def _read_safetensors(path: str, map_location: str) -> dict:
    library = _safetensors(path)
    try:
        with library.safe_open(path, framework='pt', device='cpu') as file:
            tensors = {name: file.get_tensor(name).to(map_location) for name in file.keys()}
            texts = file.metadata() or {}
    except library.SafetensorError as error:
        raise CheckpointError(f'{path} is cut off, damaged, or not a safetensors file ({error}).') from error
    meta = {}
    for key, text in texts.items():
        try:
            meta[key] = json.loads(text)
        except json.JSONDecodeError:  # others write plain text
            meta[key] = text
    checkpoint = dict(meta=meta)
    for name, tensor in tensors.items():
        group, colon, rest = name.partition(':')
        checkpoint.setdefault(group if colon else 'state_dict', {})[rest if colon else name] = tensor
    return checkpoint


def write_checkpoint(checkpoint: dict, path: str, force: bool = False, publish: bool = False) -> str:
    """Write a checkpoint whole or not at all.

    Args:
        checkpoint (dict): for ``.safetensors``, ``state_dict`` and other groups of tensors, and ``meta``, a dict that
            JSON can hold.
        path (str): the file; its suffix chooses the format.
        force (bool): replace a file that exists. Default False.
        publish (bool): append the first 8 digits of the file's SHA-256 to its name, as OpenMMLab's published
            checkpoints have it. Default False.

    Returns:
        str: the path of the file that was written.

    Raises:
        CheckpointError: an unknown suffix, a folder that does not exist, or a file that does and ``force`` is False.
        OSError: the file could not be written.
    """
    check_destination(path, force)
    folder = osp.dirname(path) or '.'
    descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=f'.{osp.basename(path)}.', suffix=osp.splitext(path)[1])
    os.close(descriptor)
    try:
        if path.endswith(SAFETENSORS):
            _write_safetensors(checkpoint, temporary)
        else:
            with open(temporary, 'wb') as file:  # a file object, so that the file's name is not stored in it
                torch.save(checkpoint, file)
        with open(temporary, 'rb') as file:
            os.fsync(file.fileno())
        if publish:
            stem, suffix = osp.splitext(path)
            path = f'{stem}-{file_hash(temporary)[:8]}{suffix}'
            check_destination(path, force)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp's files are for their owner alone
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)
    return path


def _write_safetensors(checkpoint: dict, path: str) -> None:
    tensors, metadata = {}, {'format': 'pt'}
    for group, content in checkpoint.items():
        if group == 'meta':
            metadata.update({key: json.dumps(value) for key, value in content.items()})
            continue
        lead = '' if group in ('state_dict', 'model') else f'{group}:'
        tensors.update({lead + name: tensor.clone().contiguous() for name, tensor in content.items()})
    _safetensors(path).torch.save_file(tensors, path, metadata)


def check_destination(path: str, force: bool = False) -> None:
    """Raise CheckpointError if :func:`write_checkpoint` would refuse ``path``."""
    if not path.endswith(SUFFIXES):
        raise CheckpointError(f'{path}: the name of a checkpoint ends in one of {", ".join(SUFFIXES)}.')
    if not osp.isdir(osp.dirname(path) or '.'):
        raise CheckpointError(f'{path}: the folder {osp.dirname(path)} does not exist.')
    if osp.isdir(path):
        raise CheckpointError(f'{path} is a folder.')
    if osp.exists(path) and not force:
        raise CheckpointError(f'{path} exists already: choose another name, or replace it with --force.')


def file_hash(path: str) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        for block in iter(lambda: file.read(2**20), b''):
            digest.update(block)
    return digest.hexdigest()


def force_safe_loading() -> None:
    """Have every ``torch.load`` of this process, and of those it starts, refuse to execute what a file holds.

    mmengine 0.10.7 leaves ``weights_only`` to torch, whose default is False before torch 2.6; onedl-mmengine falls back
    to False when the safe way fails, torch.hub (checkpoints from the web) asks for False. torch's own switch stands
    above them all. For programs, not for libraries: tools/train.py and tools/test.py call it first thing.
    """
    os.environ.pop('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', None)  # torch accepts one of the two only
    os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] = '1'
    allow_own_checkpoints()


def local_copy(path: str) -> str:
    """Return a local file with the contents of ``path``: itself, or for http(s) a download, kept in torch's cache."""
    if not path.startswith(('http://', 'https://')):
        return path
    folder = osp.join(torch.hub.get_dir(), 'checkpoints')
    os.makedirs(folder, exist_ok=True)
    name = osp.basename(path.split('?')[0])
    cached = osp.join(folder, name)
    if not osp.exists(cached):
        torch.hub.download_url_to_file(path, cached)
    return cached
