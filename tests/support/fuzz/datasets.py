"""Annotations of COCO and label maps in PNG: what the check of the data lets pass is loaded as a training loads it."""

import importlib
import json
import random
from pathlib import Path
from typing import Any, Callable, List

import numpy as np
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from PIL import Image
from torch import nn

from rmt_mm.training.data_check import build_data
from rmt_mm.training.faults import explaining_faults, name_images

from ..pictures import encode
from . import values
from .isolated import WrongResult

WIDTH, HEIGHT, COUNT = 64, 48, 3
ODD = tuple(value for value in values.ODD if not isinstance(value, (bytes, tuple)))
RUNS = dict(size=[HEIGHT, WIDTH], counts=[500, 40, HEIGHT * WIDTH - 540])


class Loading:
    """What the check of the data asks of a Runner, for one data loader."""

    def __init__(self, scope: str, dataset: dict) -> None:
        importlib.import_module(f'{scope}.utils').register_all_modules(init_default_scope=False)
        current = DefaultScope.get_current_instance()
        if current is None or current.scope_name != scope:
            DefaultScope.get_instance(f'fuzz {scope}', scope_name=scope)
        loader = dict(
            batch_size=1,
            num_workers=0,
            dataset=dataset,
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=dict(type='pseudo_collate'),
        )
        self.cfg = Config(dict(train_dataloader=loader, default_scope=scope))
        self.model, self.hooks = nn.Identity(), []
        self.model.data_preprocessor = nn.Identity()
        self.build_dataloader: Callable = Runner.build_dataloader
        self._loop = None

    def register_hook(self, hook: Any) -> None:
        self.hooks.append(hook)

    @property
    def train_loop(self) -> 'Loading':
        self.dataloader = self.train_dataloader = getattr(self, 'dataloader', None) or self.build_dataloader(
            self.cfg.train_dataloader, seed=0
        )
        return self

    def load(self) -> List[dict]:
        """Return all samples, after the check of the tools."""
        name_images(self)
        build_data(self, 'train')
        with explaining_faults('.'):
            return [batch['data_samples'][0] for batch in self.dataloader]


class Annotations:
    """A file of COCO's format with polygons and both kinds of run lengths."""

    def __init__(self, folder: Path) -> None:
        from pycocotools import mask

        square = np.zeros((HEIGHT, WIDTH), np.uint8, 'F')
        square[4:20, 4:20] = 1
        encoded = mask.encode(square)
        segmentations = [
            *([[4, 4, 20, 4, 20, 20, 4, 20]], [[4.5, 4, 20, 4, 20, 20], [30, 30, 40, 30, 40, 40]]),
            *(RUNS, dict(encoded, counts=encoded['counts'].decode())),
        ]
        boxes = [[4, 4, 16, 16], [10.5, 12, 20, 10], [4, 4, 16, 16], [0, 0, WIDTH, HEIGHT]]
        self.content = dict(
            images=[dict(id=i, file_name=f'{i}.png', width=WIDTH, height=HEIGHT) for i in range(COUNT)],
            categories=[dict(id=i + 1, name=name) for i, name in enumerate(('cat', 'dog'))],
            annotations=[
                dict(
                    id=i + 1,
                    image_id=i % COUNT,
                    category_id=1 + i % 2,
                    bbox=box,
                    area=box[2] * box[3],
                    iscrowd=int(i == 2),
                    segmentation=segmentation,
                )
                for i, (box, segmentation) in enumerate(zip(boxes, segmentations))
            ],
        )
        for i in range(COUNT):
            Image.new('RGB', (WIDTH, HEIGHT)).save(folder / f'{i}.png')
        self.folder = folder
        self.text = json.dumps(self.content).encode()
        found = [key for _, key in values.places(self.content)]
        self.systematic = [
            *(lambda _, part=part: self.read(values.cut(self.text, part)) for part in range(20)),
            *(lambda _, number=number, value=value: self.replace(number, value)
              for number in range(0, len(found), 3) for value in ODD[number % 4 :: 4]),
        ]  # fmt: skip
        Loading('mmdet', {})

    def good(self) -> None:
        self.read(json.dumps(self.content).encode())

    def at_random(self, generator: random.Random) -> None:
        if generator.random() < 0.25:
            self.read(values.damage(json.dumps(self.content).encode(), generator))
        else:
            self.read(json.dumps(values.changed(self.content, generator, ODD)).encode())

    def replace(self, number: int, value: Any) -> None:
        """Put an odd value in one place."""
        container, key = list(values.places(self.content))[number]
        container[key] = value
        self.read(json.dumps(self.content).encode())

    def read(self, text: bytes) -> None:
        Path('a.json').write_bytes(text)
        pipeline = [
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
            dict(type='PackDetInputs'),
        ]
        dataset = dict(
            type='CocoDataset',
            ann_file=str(Path('a.json').resolve()),
            data_prefix=dict(img=f'{self.folder}/'),
            metainfo=dict(classes=('cat', 'dog')),
            filter_cfg=dict(filter_empty_gt=True),
            pipeline=pipeline,
        )
        for sample in Loading('mmdet', dataset).load():
            boxes, labels = sample.gt_instances.bboxes.tensor, sample.gt_instances.labels
            if not boxes.isfinite().all() or not (boxes[:, 2:] > boxes[:, :2]).all():
                raise WrongResult(f'boxes {boxes.tolist()}')
            if len(labels) != len(boxes) or not ((labels >= 0) & (labels < 2)).all():
                raise WrongResult(f'labels {labels.tolist()}')
            if sample.gt_instances.masks.masks.shape[1:] != (HEIGHT, WIDTH):
                raise WrongResult(f'masks of {sample.gt_instances.masks.masks.shape}')


class LabelImages:
    """A PNG whose values are classes, beside an image."""

    CLASSES = ('road', 'sky', 'car')

    def __init__(self, folder: Path) -> None:
        (folder / 'images').mkdir()
        Image.new('RGB', (WIDTH, HEIGHT)).save(folder / 'images/a.jpg')
        self.folder = folder
        labels = np.random.RandomState(0).choice([0, 1, 2, 255], (HEIGHT, WIDTH), p=[0.4, 0.3, 0.2, 0.1])
        self.labels = labels.astype(np.uint8)
        self.encoded = encode(Image.fromarray(self.labels), 'PNG')
        palette = Image.fromarray(self.labels, 'P')
        palette.putpalette([value for i in range(256) for value in (i, 0, 255 - i)])
        gray = Image.fromarray(self.labels)
        images = [
            *(palette, gray.convert('RGB'), gray.convert('RGBA'), gray.convert('LA'), gray.convert('1')),
            *(Image.fromarray(self.labels.astype(np.uint16)), Image.fromarray(self.labels.astype(np.uint16) * 256)),
            *(gray.rotate(90, expand=True), gray.resize((1, 1)), gray.point(lambda value: min(value, 7))),
            *(Image.fromarray(self.labels.astype(np.int32)), gray.point(lambda value: 255)),
        ]
        self.systematic = [
            *(lambda _, part=part: self.read(values.cut(self.encoded, part)) for part in range(20)),
            *(lambda _, image=image: self.read(encode(image, 'PNG')) for image in images),
            *(lambda _, kind=kind: self.read(encode(gray, kind)) for kind in ('JPEG', 'BMP', 'TIFF', 'GIF')),
        ]
        self.encodings = [self.encoded, encode(palette, 'PNG'), *(encode(image, 'PNG') for image in images[4:6])]
        Loading('mmseg', {})

    def good(self) -> None:
        self.read(self.encoded)

    def at_random(self, generator: random.Random) -> None:
        self.read(values.damage(generator.choice(self.encodings), generator))

    def read(self, data: bytes) -> None:
        Path('labels').mkdir()
        Path('labels/a.png').write_bytes(data)
        dataset = dict(
            type='BaseSegDataset',
            data_prefix=dict(img_path=str(self.folder / 'images'), seg_map_path=str(Path('labels').resolve())),
            metainfo=dict(classes=self.CLASSES),
            pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')],
        )
        (sample,) = Loading('mmseg', dataset).load()
        found = sample.gt_sem_seg.data[0].numpy()
        if found.shape != (HEIGHT, WIDTH) or not set(np.unique(found)) <= {0, 1, 2, 255}:
            raise WrongResult(f'labels {np.unique(found)[:20]} of shape {found.shape}')
        if data == self.encoded and not np.array_equal(found, self.labels):
            raise WrongResult('other labels')
