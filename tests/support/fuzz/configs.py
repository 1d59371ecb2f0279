"""Configs for training: all that the tool does before the first iteration."""

import argparse
import json
import random
import re
from pathlib import Path
from typing import Callable, List

import mmengine.runner
from mmengine.config import Config
from mmengine.runner import Runner

from rmt_mm.tools.commands import train

from .. import toy, toy_training  # noqa: F401  # which registers the model and the data
from ..official_files import NANO
from ..quick import speed_up_runners
from . import values

TEXTS = {
    'a.py': (
        *('', 'model = 5', 'model = dict()', 'model = None', 'x' * 10**5, 'raise StopIteration', 'raise SystemExit(3)'),
        *('1 / 0', 'import nowhere', '_base_ = "nowhere.py"', '_base_ = "a.py"', '_base_ = 5'),
        *('\0', '\ufeff', 'def f(:', 'a = b', 'model = ' + '[' * 90 + ']' * 90, 'model = ' + '(' * 300 + ')' * 300),
        *('def f():\n    f()\nf()', 'model = dict(type=5)', 'custom_imports = 5', 'from math import *', 'yield 1'),
    ),
    'a.json': ('', '{}', '[]', '{"model": 5}', '[' * 10**5, '{"model": ' + '9' * 5000 + '}', '\ud800'),
    'a.yaml': ('', 'a: [', 'model: 5', '&a [*a]', '- 1'),
    'a.txt': ('model = 5',),
}


def literal(values_: dict) -> str:
    """Return a config as text."""
    text = ''.join(f'{key} = {value!r}\n' for key, value in values_.items() if str(key).isidentifier())
    return re.sub(r'\b(inf|nan)\b', r'float("\1")', text)


class Configs:
    """The config of a small training."""

    def __init__(self, folder: Path) -> None:
        speed_up_runners()
        mmengine.runner.runner.collect_env()  # which asks compilers for their version
        toy_training.write_config(folder / 'config.py')
        self.config = Config.fromfile(folder / 'config.py').to_dict()
        self.config['model'] = dict(type='ToyClassifier', backbone=dict(type='RMT', arch=NANO._asdict()))
        self.config['custom_imports'] = dict(imports=['rmt_mm'])
        self.text = literal(self.config)
        self.systematic: List[Callable] = [
            *(lambda _, name=name, text=text: self.read(name, text.encode(errors='surrogatepass'))
              for name, texts in TEXTS.items() for text in texts),
            *(lambda _, part=part: self.read('a.py', values.cut(self.text.encode(), part)) for part in range(0, 20, 3)),
        ]  # fmt: skip

    def good(self) -> None:
        self.read('a.py', self.text.encode())
        self.read('a.json', json.dumps(self.config).encode())

    def at_random(self, generator: random.Random) -> None:
        if generator.random() < 0.2:
            self.read('a.py', values.damage(self.text.encode(), generator))
        else:
            text = literal(values.changed(self.config, generator))
            self.read('a.py', text.encode(errors='surrogatepass'))

    def read(self, name: str, data: bytes) -> None:
        Path(name).write_bytes(data)
        Runner.train = lambda self: None
        args = argparse.Namespace(config=name, work_dir='work', resume=None, amp=False, auto_scale_lr=False)
        args.brief, args.vis_backend, args.cfg_options, args.launcher, args.local_rank = False, None, {}, 'none', 0
        train.run(args)
