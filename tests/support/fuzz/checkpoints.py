"""Checkpoints in torch's two formats and in safetensors, and label maps."""

import io
import json
import os
import pickle
import random
import struct
import zipfile
from pathlib import Path
from typing import Any, Callable, List

import numpy as np
import torch
from mmengine.logging import MessageHub

from rmt_mm import RMT
from rmt_mm.arch import ARCHS
from rmt_mm.checkpoints import read_checkpoint
from rmt_mm.checkpoints.files import write_checkpoint
from rmt_mm.checkpoints.loading import check_checkpoint_file
from rmt_mm.checkpoints.official_model import parse_checkpoint
from rmt_mm.classification.label_map import load_label_map, save_label_map
from rmt_mm.tools.commands import rmt_to_mm

from .. import forged
from ..official_files import NANO, nano_state_dict, save_classifier
from . import values
from .isolated import CANARY, WrongResult

CLASSES = 10


class Executed:
    """Unpickled by pickle itself, it creates the canary."""

    def __reduce__(self):
        return os.system, (f'touch {CANARY}',)


def equal(a: Any, b: Any) -> bool:
    """Tell whether two contents of files have equal keys, types and numbers; NaN equals NaN."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape
        return same and (a.is_meta or torch.equal(torch.nan_to_num(a), torch.nan_to_num(b)))
    if isinstance(a, (np.ndarray, np.generic)):
        return np.array_equal(a, b)
    if type(a) is type(b) and hasattr(a, '__dict__'):
        return equal(vars(a), vars(b))
    return a == b


def rezipped(data: bytes, generator: random.Random) -> bytes:
    """Damage a record of a zip file, with check sums that are right."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(made, 'w') as new:
        for name in archive.namelist():
            content = archive.read(name)
            new.writestr(name, values.damage(content, generator) if name.endswith(('.pkl', '.npy')) else content)
    return made.getvalue()


def trained(folder: Path) -> List[Path]:
    """Write the checkpoint of a training in all formats."""
    hub = MessageHub.get_instance('fuzz')
    hub.update_scalar('loss', 1.0)
    shared = torch.arange(24.0)
    weights = {
        'backbone.stages.0.0.attn.qkv.weight': torch.randn(6, 2),
        'backbone.a': shared[2:14].view(3, 4),
        'backbone.b': shared[8:20].view(4, 3).t(),
        'head.half': torch.randn(3).bfloat16(),
        'head.empty': torch.zeros(0, 4),
    }
    meta = dict(epoch=1, iter=3, dataset_meta=dict(classes=('a',)))
    content = dict(state_dict=weights, optimizer=dict(state={}), meta=meta, message_hub=hub.state_dict())
    torch.save(content, folder / 'new.pth')
    torch.save(content, folder / 'old.pth', _use_new_zipfile_serialization=False)
    write_checkpoint(dict(state_dict=weights, meta=meta), str(folder / 'a.safetensors'))
    return [folder / 'new.pth', folder / 'old.pth', folder / 'a.safetensors']


class Checkpoints:
    """Read by the reader of files, by the check of the tools, and by the converter."""

    def __init__(self, folder: Path) -> None:
        ARCHS['nano'] = NANO
        self.files = {path: path.read_bytes() for path in trained(folder)}
        self.whole = {path: read_checkpoint(str(path)) for path in self.files}
        self.official = folder / 'official.pth'
        save_classifier(self.official, nano_state_dict('classification'))
        attacks = {**forged.ALLOWED, **forged.TORCH}
        self.systematic: List[Callable[[random.Random], None]] = [
            *(lambda _, path=path, part=part: self.cut(path, part) for path in self.files for part in range(20)),
            *(lambda _, attack=attack: self.forge(attack) for attack in attacks.values()),
            *(lambda _, protocol=protocol: self.execute(protocol) for protocol in range(5)),
            *(lambda _, way=way: self.execute(way) for way in ('zip', 'legacy')),
            *(lambda _, value=value: self.not_finite(value) for value in (float('nan'), float('inf'))),
            *(lambda _, size=size: self.safetensors(size) for size in (2**20, 2**40, 2**62, 2**63, -1)),
            *(lambda _, size=size: self.aliases(size) for size in (10, 2**12, 2**31)),
        ]

    def good(self) -> None:
        for path, data in self.files.items():
            self.read(path.name, data, self.whole[path])
        self.convert(self.official.read_bytes())

    def at_random(self, generator: random.Random) -> None:
        if generator.random() < 0.3:
            return self.convert(rezipped(self.official.read_bytes(), generator))
        path = generator.choice(list(self.files))
        data = self.files[path]
        if path.name == 'new.pth' and generator.random() < 0.5:
            self.read(path.name, rezipped(data, generator))
        else:
            self.read(path.name, values.damage(data, generator), self.whole[path] if path.name == 'new.pth' else None)

    def cut(self, path: Path, part: int) -> None:
        self.read(path.name, values.cut(self.files[path], part), self.whole[path])

    def read(self, name: str, data: bytes, expected: Any = None) -> None:
        """Read a file in the ways of the package; a file with check sums has the expected content, or none."""
        Path(name).write_bytes(data)
        content = read_checkpoint(name)
        if expected is not None and not equal(content, expected):
            raise WrongResult('the content is another one')
        read_checkpoint(name, 'meta')
        if not name.endswith('.safetensors'):  # which mmengine does not load
            check_checkpoint_file(name, resume=True)

    def convert(self, data: bytes) -> None:
        """Read the authors' kind of file; what is converted is read as it was written."""
        Path('a.pth').write_bytes(data)
        rmt_to_mm.convert(rmt_to_mm.parse_args(['a.pth', 'b.safetensors']))
        converted = parse_checkpoint(read_checkpoint('a.pth')).to_ours()['state_dict']
        if not equal(read_checkpoint('b.safetensors')['state_dict'], converted):
            raise WrongResult('another model was written')

    def forge(self, attack: Any) -> None:
        content = {'state_dict': {'backbone.stages.0.0.attn.qkv.weight': forged.tensor()}, 'message_hub': attack}
        forged.write('a.pth', content)
        check_checkpoint_file('a.pth')
        raise WrongResult('the attack was taken')

    def execute(self, way: Any) -> None:
        content = dict(state_dict=dict(a=torch.ones(2)), meta=Executed())
        if isinstance(way, int):
            Path('a.pth').write_bytes(pickle.dumps(content, way))
        else:
            torch.save(content, 'a.pth', _use_new_zipfile_serialization=way == 'zip')
        rmt_to_mm.convert(rmt_to_mm.parse_args(['a.pth', 'b.pth']))
        raise WrongResult('the attack was taken')

    def not_finite(self, value: float) -> None:
        content = torch.load(self.official, weights_only=False)
        name = 'layers.1.blocks.0.retention.q_proj.weight'
        content['model'][name][0, 0] = value
        torch.save(content, 'a.pth')
        rmt_to_mm.convert(rmt_to_mm.parse_args(['a.pth', 'b.pth']))
        RMT(NANO._asdict(), init_cfg=dict(type='Pretrained', checkpoint='b.pth')).init_weights()
        if Path('output').read_text().count('NaN or infinite') < 1:
            raise WrongResult('weights that are not finite are not named')

    def safetensors(self, size: int) -> None:
        text = json.dumps({'a': dict(dtype='F32', shape=[max(size, 0)], data_offsets=[0, 8])}).encode()
        length = len(text) if size > 0 else 2**63 - 1
        Path('a.safetensors').write_bytes(struct.pack('<Q', length) + text + bytes(8))
        read_checkpoint('a.safetensors')
        raise WrongResult('a tensor without data was read')

    def aliases(self, size: int) -> None:
        """Read tensors of many elements over a storage of a few."""
        content = {'state_dict': {'a': torch.ones(1).expand(size), 'b': torch.ones(3).expand(2, 3)}}
        torch.save(content, 'a.pth')
        read = read_checkpoint('a.pth')
        if not equal(read, content):
            raise WrongResult('the content is another one')
        check_checkpoint_file('a.pth')


class LabelMaps:
    """Dense scores in a .pt or .npz file."""

    def __init__(self, folder: Path) -> None:
        generator = torch.Generator().manual_seed(0)
        scores = torch.randn(3, 4, 4, generator=generator)
        indices = torch.randint(CLASSES, (3, 4, 4), generator=generator)
        self.whole = torch.stack((scores, indices.float())).half().float()
        self.files = {}
        for name in ('a.pt', 'a.npz'):
            save_label_map(self.whole, str(folder / name))
            self.files[name] = (folder / name).read_bytes()
        torch.save(self.whole.half(), folder / 'old.pt', _use_new_zipfile_serialization=False)
        self.files['old.pt'] = (folder / 'old.pt').read_bytes()
        self.systematic = [
            *(lambda _, name=name, part=part: self.read(name, values.cut(self.files[name], part), True)
              for name in self.files for part in range(20)),
            *(lambda _, array=array: self.array(array) for array in self.odd_arrays()),
        ]  # fmt: skip

    def odd_arrays(self) -> List[np.ndarray]:
        whole = self.whole.numpy()
        changed = [whole.copy() for _ in range(4)]
        changed[0][0, 0, 0, 0], changed[1][1, 0, 0, 0], changed[2][1, 0, 0, 0] = float('nan'), CLASSES, 0.5
        changed[3][1, 0, 0, 0] = -1
        return [
            *(*changed, whole[0], whole[:1], whole[:, :0], whole.astype(complex), whole.astype('O')),
            *(np.zeros((2, 1, 1, 2**25), np.float16), np.zeros((0, 2)), np.array('text'), np.zeros((2,) * 20, 'u1')),
        ]

    def good(self) -> None:
        for name, data in self.files.items():
            self.read(name, data, True)

    def at_random(self, generator: random.Random) -> None:
        name = generator.choice(list(self.files))
        data = self.files[name]
        if name != 'old.pt' and generator.random() < 0.5:
            self.read(name, rezipped(data, generator), False)
        else:
            self.read(name, values.damage(data, generator), name != 'old.pt')

    def read(self, name: str, data: bytes, has_sums: bool) -> None:
        Path(name).write_bytes(data)
        found = load_label_map(name, CLASSES)
        if has_sums and not torch.equal(found, self.whole):
            raise WrongResult('another label map')
        if found.dim() != 4 or len(found) != 2 or not found.isfinite().all() or not (found[1] < CLASSES).all():
            raise WrongResult(f'a label map of shape {tuple(found.shape)}')

    def array(self, array: np.ndarray) -> None:
        np.savez('a.npz', label_map=array)
        load_label_map('a.npz', CLASSES)
        raise WrongResult('an array that is no label map was taken')
