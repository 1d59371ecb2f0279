"""Read checkpoint files without executing anything that they hold, and write them atomically."""

import hashlib
import http.client
import json
import os
import os.path as osp
import re
import shutil
import urllib.request
from typing import Sequence

import torch
from mmengine.logging import print_log

from ..atomic import replacing
from ..errors import CheckpointError, DamagedCheckpointError, MissingCheckpointError, printable
from .safe import DAMAGE, LEGACY_MAGIC, OFFICIAL_TYPES, ZIP_MAGIC, safe_load

# Other formats that users pass as checkpoints: the first bytes of each, and the text of the error.
OTHER_FORMATS = (
    (
        re.compile(rb'\s*<(!doctype|html|\?xml)', re.IGNORECASE),
        'is a web page, not a checkpoint: open the link in a browser and save the file that it leads to',
    ),
    (re.compile(rb'version https://git-lfs'), 'is a Git LFS pointer, not the checkpoint itself: run `git lfs pull`'),
    (re.compile(rb'\x89HDF\r\n'), 'is an HDF5 file (Keras, TensorFlow), not a PyTorch checkpoint'),
    (re.compile(rb'\x93NUMPY'), 'is a NumPy array, not a PyTorch checkpoint'),
    (re.compile(rb'\x1f\x8b|BZh|\xfd7zXZ|Rar!|7z\xbc\xaf'), 'is a compressed archive: unpack it first'),
    (
        re.compile(rb'\x80[\x02-\x05]'),
        'is a plain pickle (as PaddlePaddle and Detectron write them), '
        'not a PyTorch checkpoint, and is not opened because a pickle can run any code',
    ),
)
SAFETENSORS = '.safetensors'
SUFFIXES = ('.pth', '.pt', SAFETENSORS)


def read_checkpoint(path: str, map_location: str = 'cpu', allow_types: Sequence[str] = OFFICIAL_TYPES) -> dict:
    """Read a checkpoint without executing anything that it holds.

    ``torch.load(weights_only=True)``, further restricted: see :func:`rmt_mm.checkpoints.safe.safe_load`. The
    types that mmengine itself writes are allowed.

    Args:
        path (str): a ``.pth`` or a ``.safetensors`` file.
        map_location (str): device of the tensors; ``'meta'`` leaves their data unread, with torch 2.4 or later.
            Default ``'cpu'``.
        allow_types (Sequence[str]): full names of further types that the file may hold, such as
            ``'yacs.config.CfgNode'``. Their objects become empty dicts: nothing is imported or called. Default:
            ``argparse.Namespace``, in which the authors' files keep the command line.

    Returns:
        dict: the file's contents; those of a safetensors file under ``state_dict`` and ``meta``.

    Raises:
        MissingCheckpointError: there is no such file. The error is a FileNotFoundError too.
        DamagedCheckpointError: the file is empty, cut off, changed, or not a PyTorch checkpoint. The error is a
            CheckpointError too.
        CheckpointError: it is a file of another known format, or holds what no checkpoint needs; it holds objects of
            types that are not allowed (the message names them); or it would take far more memory than space on the
            disk.
    """
    if not osp.exists(path):
        raise MissingCheckpointError(f'checkpoint {path} does not exist.')
    if not osp.isfile(path):
        raise CheckpointError(f'{path} is {"a folder" if osp.isdir(path) else "not a file"}, not a checkpoint.')
    try:
        with open(path, 'rb') as file:
            head = file.read(512)
        if not head:
            raise DamagedCheckpointError(
                f'{path} is empty: it may have been cut off while it was written or downloaded.'
            )
        for pattern, text in () if is_safetensors(head) or head.startswith(LEGACY_MAGIC) else OTHER_FORMATS:
            if pattern.match(head):
                raise CheckpointError(f'{path} {text}.')
        if is_safetensors(head) or path.endswith(SAFETENSORS):
            checkpoint = _read_safetensors(path, map_location)
        elif head.startswith((ZIP_MAGIC, LEGACY_MAGIC)):
            checkpoint = safe_load(path, map_location, allow_types)
        else:
            raise DamagedCheckpointError(f'{path} is not a PyTorch checkpoint (it starts with {head[:8]!r}).')
    except OSError as error:
        raise CheckpointError(f'{path} cannot be read ({error.strerror or error}).') from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f'{path} holds a {type(checkpoint).__name__}, not a dict of tensors.')
    return checkpoint


def is_safetensors(head: bytes) -> bool:
    """Tell by its first bytes whether a file is a safetensors file: 8 bytes of length, then JSON."""
    return head[8:9] == b'{'


def _safetensors(path: str):
    try:
        import safetensors.torch
    except ImportError as error:
        raise CheckpointError(
            f'{path}: .safetensors files need the package safetensors: run `pip install safetensors`.'
        ) from error
    return safetensors


def _read_safetensors(path: str, map_location: str) -> dict:
    library = _safetensors(path)
    try:
        with library.safe_open(path, framework='pt', device='cpu') as file:
            tensors = {name: file.get_tensor(name).to(map_location) for name in file.keys()}
            texts = file.metadata() or {}
    except (library.SafetensorError, *DAMAGE) as error:
        reason = printable(error, 200)
        raise CheckpointError(f'{path} is cut off, damaged, or not a safetensors file ({reason}).') from error
    meta = {}
    for key, text in texts.items():
        try:
            meta[key] = json.loads(text)
        except (ValueError, RecursionError):  # other programs write plain text
            meta[key] = text
    checkpoint = dict(meta=meta)
    for name, tensor in tensors.items():
        group, colon, rest = name.partition(':')
        if not colon or group == 'meta':
            group, rest = 'state_dict', name
        checkpoint.setdefault(group, {})[rest] = tensor
    return checkpoint


def write_checkpoint(checkpoint: dict, path: str, force: bool = False, publish: bool = False) -> str:
    """Write a checkpoint atomically: whole or not at all.

    Args:
        checkpoint (dict): for ``.safetensors``, ``state_dict`` and other groups of tensors, and ``meta``, a dict that
            JSON can hold.
        path (str): the file; its suffix chooses the format.
        force (bool): replace an existing file. Default False.
        publish (bool): append the first 8 digits of the file's SHA-256 to its name, as in the names of OpenMMLab's
            published checkpoints. Default False.

    Returns:
        str: the path of the file that was written.

    Raises:
        CheckpointError: the suffix is unknown, the folder does not exist, or the file exists and ``force`` is False.
        OSError: the file could not be written.
    """
    check_destination(path, force)
    with replacing(path) as temporary:
        if path.endswith(SAFETENSORS):
            _write_safetensors(checkpoint, temporary)
        else:
            with open(temporary, 'wb') as file:  # a file object, so that the file's name is not stored in it
                torch.save(checkpoint, file)
        if publish:
            stem, suffix = osp.splitext(path)
            path = f'{stem}-{file_hash(temporary)[:8]}{suffix}'
            check_destination(path, force)
            os.rename(temporary, osp.join(osp.dirname(temporary), osp.basename(path)))
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
        raise CheckpointError(f'{path} exists already: choose another name, or allow it to be replaced.', 'force')


def file_hash(path: str) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        for block in iter(lambda: file.read(2**20), b''):
            digest.update(block)
    return digest.hexdigest()


def local_copy(path: str) -> str:
    """Return a local file with the contents of ``path``: ``path`` itself, or an http(s) download in torch's cache.

    The name in the cache has a hash of the whole address, since many addresses end in ``latest.pth``. An interrupted
    download leaves no file.

    Raises:
        CheckpointError: the download failed.
    """
    if not path.startswith(('http://', 'https://')):
        return path
    stem, suffix = osp.splitext(osp.basename(re.split('[?#]', path)[0]))
    name = f'{re.sub("[^A-Za-z0-9_.-]", "_", stem)[-60:]}-{hashlib.sha256(path.encode()).hexdigest()[:16]}'
    folder = osp.join(torch.hub.get_dir(), 'checkpoints')
    cached = osp.join(folder, name + (suffix if suffix in SUFFIXES else ''))
    if osp.exists(cached):
        return cached
    os.makedirs(folder, exist_ok=True)
    print_log(f'Downloading {printable(path)} to {cached}', logger='current')
    try:
        with (
            urllib.request.urlopen(path, timeout=60) as response,
            replacing(cached) as temporary,
            open(temporary, 'wb') as file,
        ):
            shutil.copyfileobj(response, file, 2**20)
            length = response.headers.get('Content-Length', '')
            if length.isdigit() and int(length) != file.tell():
                raise CheckpointError(f'{path} was not downloaded: {file.tell()} of {length} bytes came.')
    except (OSError, http.client.HTTPException, ValueError) as error:  # urllib's own errors are OSErrors
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f'{path} cannot be downloaded ({printable(error, 200)}).') from error
    return cached
