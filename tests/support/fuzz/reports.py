"""Work dirs for the report: predictions, logs and dumped configs."""

import os
import pickle
import random
import shutil
import sys
from pathlib import Path
from typing import Callable, List

import torch

from rmt_mm.tools.commands import report

from .. import work_dirs
from . import values
from .isolated import CANARY, WrongResult

MAKERS = dict(
    detector=work_dirs.make_detector, segmentor=work_dirs.make_segmentor, classifier=work_dirs.make_classifier
)
ODD = tuple(value for value in values.ODD if not isinstance(value, (bytes, tuple)))
LINE = '{{"loss": {0}, "iter": {0}, "step": {0}, "epoch": {0}, "time": {0}, "memory": {0}, "coco/bbox_mAP": {0}}}\n'
NUMBERS = ('9' * 400, '1e999', '-1', 'NaN', '-Infinity', 'null', '"\\ud800"', '[1]', '1e308', '"</script><b>"')


class Executed:
    def __reduce__(self):
        return os.system, (f'touch {CANARY}',)


class Reports:
    """The work dir of a detector, a segmentor or a classifier, with one file changed."""

    def __init__(self, folder: Path) -> None:
        self.folders = {name: make(folder / name) for name, make in MAKERS.items()}
        self.systematic: List[Callable] = [
            *(lambda _, name=name, part=part: self.predictions(name, lambda data: values.cut(data, part))
              for name in MAKERS for part in range(0, 20, 3)),
            *(lambda _, name=name, number=number: self.log(name, lambda text: text + LINE.format(number).encode())
              for name, number in zip(list(MAKERS) * 4, NUMBERS)),
            *(lambda _, protocol=protocol: self.predictions('detector', lambda _: pickle.dumps([Executed()], protocol))
              for protocol in range(5)),
            *(lambda _, key=key, value=value: self.config(
                'detector', lambda text: text + f'\n{key} = {value}\n'.encode())
              for key in ('test_dataloader', 'model', 'default_scope', 'val_dataloader')
              for value in (5, 'None', '[1]', '"x"', 'dict(dataset=5)', 'dict(dataset=dict(type=5))')),
        ]  # fmt: skip

    def good(self) -> None:
        for name in MAKERS:
            self.predictions(name, lambda data: data)
            shutil.rmtree('work')

    def at_random(self, generator: random.Random) -> None:
        name = generator.choice(list(MAKERS))
        how = generator.randrange(6)
        if how == 0:
            self.predictions(name, lambda data: values.damage(data, generator))
        elif how < 3:
            self.predictions(name, lambda data: self.changed(data, generator))
        elif how == 3:
            self.log(name, lambda text: values.damage(text, generator))
        elif how == 4:
            number = generator.choice(NUMBERS)
            self.log(
                name, lambda text: text + LINE.format(number).replace('"loss"', '"x"', generator.randrange(2)).encode()
            )
        else:
            self.config(name, lambda text: values.damage(text, generator))

    @staticmethod
    def changed(data: bytes, generator: random.Random) -> bytes:
        """Put odd values, or tensors of other shapes, into predictions."""
        tensors = (torch.zeros(0), torch.zeros(3, 3), torch.full((2, 4), float('nan')), torch.ones(1, 1, 1) > 0)
        return pickle.dumps(values.changed(pickle.loads(data), generator, (*ODD, *tensors)))

    def predictions(self, name: str, change: Callable[[bytes], bytes]) -> None:
        self.read(name, 'predictions.pkl', change)

    def log(self, name: str, change: Callable[[bytes], bytes]) -> None:
        self.read(name, '20260101_000000/vis_data/scalars.json', change)

    def config(self, name: str, change: Callable[[bytes], bytes]) -> None:
        self.read(name, '20260101_000000/vis_data/config.py', change)

    def read(self, name: str, file: str, change: Callable[[bytes], bytes]) -> None:
        work = shutil.copytree(self.folders[name], Path('work'))
        path = work / file
        path.write_bytes(change(path.read_bytes()))
        sys.argv = ['report.py', str(work), '--no-eval', '--show', '1']
        report.main()
        page = (work / 'report.html').read_text(encoding='utf-8')
        if '</script><b>' in page or 'Curves' not in page:
            raise WrongResult('a text of a file became part of the page')
