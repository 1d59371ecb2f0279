"""Pictures for demo.py, for run.py of an export, and for the page."""

import contextlib
import importlib.util
import json
import random
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Callable, Dict, List

import numpy as np
import onnx
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from onnx import TensorProto, helper
from PIL import Image

from rmt_mm.errors import UsageError
from rmt_mm.tools.cli.images import read_image
from rmt_mm.tools.cli.predictor import build_predictor
from rmt_mm.tools.commands import demo
from rmt_mm.tools.webui.trial import Trial

from .. import ROOT
from ..pictures import encode, join_png
from . import values
from .isolated import WrongResult

CONFIG = ROOT / 'configs/classification/rmt-digits.py'
POSTSCRIPT = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n'
MAX_PIXELS = 1_000_000


def make_pictures() -> Dict[str, bytes]:
    """Return files of all modes and formats, whose pixels are known to Pillow."""
    rows = np.random.RandomState(0).randint(0, 256, (8, 10, 3), dtype=np.uint8)
    rgb = Image.fromarray(rows).resize((40, 32))
    gray = np.asarray(rgb.convert('L'))
    exif = Image.Exif()
    exif[0x0112] = 6
    floats = gray.astype(np.float32) / 255
    holes = floats.copy()
    holes[0, :3] = np.nan, np.inf, -np.inf
    alpha = rgb.copy()
    alpha.putalpha(Image.fromarray(gray))
    return {
        'rgb.png': encode(rgb, 'PNG'),
        'gray.png': encode(rgb.convert('L'), 'PNG'),
        'alpha.png': encode(alpha, 'PNG'),
        'palette.png': encode(rgb.convert('P'), 'PNG', transparency=3),
        'bits.png': encode(rgb.convert('1'), 'PNG'),
        'deep.png': encode(Image.fromarray(gray.astype(np.uint16) * 257), 'PNG'),
        'turned.jpg': encode(rgb, 'JPEG', exif=exif),
        'cmyk.jpg': encode(rgb.convert('CMYK'), 'JPEG'),
        'floats.tif': encode(Image.fromarray(floats), 'TIFF'),
        'holes.tif': encode(Image.fromarray(holes), 'TIFF'),
        'ints.tif': encode(Image.fromarray(gray.astype(np.int32) * 100000), 'TIFF'),
        'packed.tif': encode(rgb, 'TIFF', compression='tiff_lzw'),
        'a.bmp': encode(rgb, 'BMP'),
        'a.gif': encode(rgb, 'GIF'),
        'a.webp': encode(rgb, 'WEBP', lossless=True),
        'a.ppm': encode(rgb, 'PPM'),
    }


def write_onnx(path: Path) -> None:
    """Write a classifier in the format of export.py: the means of the channels."""
    shape = [1, 3, 'height', 'width']
    nodes = [
        helper.make_node('GlobalAveragePool', ['image'], ['means']),
        helper.make_node('Flatten', ['means'], ['scores']),
    ]
    graph = helper.make_graph(
        nodes,
        'means',
        [helper.make_tensor_value_info('image', TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info('scores', TensorProto.FLOAT, [1, 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=8)
    meta = dict(task='classification', input=dict(dtype='float32'), classes=list('rgb'), palette=[[0, 0, 0]] * 3)
    meta.update(mean=[0, 0, 0], std=[1, 1, 1], pipeline=[])
    helper.set_model_props(model, {key: json.dumps(value) for key, value in meta.items()})
    onnx.save(model, path)


class Pictures:
    """One file, read and predicted by the three tools, which see the same pixels."""

    REFUSALS = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)  # for which run.py skips a picture

    def __init__(self, folder: Path) -> None:
        self.files = make_pictures()
        spec = importlib.util.spec_from_file_location('run', ROOT / 'tools/deployment/run.py')
        self.run = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.run)
        write_onnx(folder / 'a.onnx')
        self.onnx = folder / 'a.onnx'
        cfg = Config.fromfile(CONFIG)
        importlib.import_module('mmpretrain.utils').register_all_modules(init_default_scope=False)
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            torch.manual_seed(0)
            torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict()), folder / 'a.pth')
            self.predictor = build_predictor(cfg, str(folder / 'a.pth'), 'cpu')
        self.trial = Trial(self.predictor, MAX_PIXELS)
        huge = [(2**31 - 1, 2**31 - 1), (30000, 30000), (13000, 13000), (2**20, 1), (1, 2**20), (0, 5)]
        self.systematic: List[Callable] = [
            *(lambda _, name=name: self.read(name, self.files[name], True) for name in self.files),
            *(lambda _, name=name, part=part: self.read(name, values.cut(self.files[name], part))
              for name in ('rgb.png', 'turned.jpg', 'packed.tif', 'a.gif') for part in range(0, 20, 2)),
            *(lambda _, size=size, bits=bits: self.read_only(join_png(*size, bits, zlib.compress(bytes(10**6))))
              for size in huge for bits in (8, 16)),
            *(lambda _, name=name, data=data: self.read(name, data) for name, data in {
                'a.png': POSTSCRIPT, 'b.jpg': b'no picture', 'c.png': b'<svg xmlns="http://www.w3.org/2000/svg"/>',
                'd.ppm': b'P6\n9999999 9999999\n255\n', 'e.png': b'\0' * 1000, 'f.gif': b'GIF89a\xff\xff\xff\xff',
            }.items()),
        ]  # fmt: skip

    def good(self) -> None:
        self.read('rgb.png', self.files['rgb.png'], True)

    def at_random(self, generator: random.Random) -> None:
        name = generator.choice(list(self.files))
        self.read(name, values.damage(self.files[name], generator))

    def read(self, name: str, data: bytes, is_good: bool = False) -> None:
        path = Path(name)
        path.write_bytes(data)
        found = [reader(path) for reader in (self.demo, self.exported, self.page)]
        found = [pixels for pixels in found if pixels is not None]
        if is_good and len(found) < 3:
            raise WrongResult(f'refused: {Path("output").read_text()}')
        if any(pixels.shape != found[0].shape or np.abs(pixels - found[0].astype(int)).max() > 1 for pixels in found):
            raise WrongResult('the tools see different pixels')
        if not found:
            raise UsageError(next(line for line in Path('output').read_text().splitlines() if 'skipped: ' in line))

    def read_only(self, data: bytes) -> None:
        """Read a large picture, and do not predict it, which takes minutes."""
        path = Path('large.png')
        path.write_bytes(data)
        for reader in (lambda: read_image(path), lambda: self.trial.read(path, path.name), lambda: self.run.read(path)):
            with contextlib.suppress(UsageError, *self.REFUSALS):
                reader()

    def demo(self, path: Path) -> np.ndarray:
        """Return the pixels that the model gets; None if the picture is skipped, which is one line on stderr."""
        seen = []
        Path('drawn').mkdir()
        output = demo.Output(self.predictor, SimpleNamespace(out_dir='drawn', tile=None, score_thr=0.5, json=False))
        read = output.read
        output.read = lambda path: seen.append(read(path)) or seen[-1]
        skipped = demo.predict_images(output, [path.resolve()], Path('drawn'))
        return None if skipped else seen[0]

    def exported(self, path: Path) -> np.ndarray:
        seen = []
        read = self.run.read
        self.run.read = lambda path: seen.append(read(path)) or seen[-1]
        sys.argv = ['run.py', str(self.onnx), str(path), '--out-dir', 'exported']
        try:
            self.run.main()
        except SystemExit as error:
            if error.code != 1:  # the status for pictures that were skipped
                raise
            return None
        finally:
            self.run.read = read
        return seen[0]

    def page(self, path: Path) -> np.ndarray:
        try:
            result = self.trial.predict(path, path.name)
            self.trial.draw(result, 0.5)
        except UsageError as error:
            if '\n' in str(error):
                raise WrongResult(f'several lines: {error}') from error
            return None
        return result.image
