"""Train whole models in seconds: a few images in each library's layout, smaller configs, tools as processes."""

import json
import os
import subprocess
from pathlib import Path

from mmengine.config import Config

from . import ROOT
from .scripts import run_script

SHRINK = 8  # divisor of all image sizes in the pipelines; they stay multiples of 32, which several necks need
SIZES = ('scale', 'crop_size', 'size', 'img_scale', 'scales', 'random_size_range')


def call(*command, fails=False, env=None) -> subprocess.CompletedProcess:
    """Run a Python script from the repository's root, and assert that it succeeds (or fails)."""
    done = run_script(*command, cwd=ROOT, env=env)
    assert (done.returncode != 0) == fails, done.stdout[-3000:] + done.stderr[-3000:]
    return done


def make_data(folder: Path, imagenet_per_class: int = 2) -> Path:
    """Make digit scenes: coco/ with the names of COCO's 80 categories, ade20k/ (digit d is class d), imagenet/."""
    from mmdet.datasets import CocoDataset

    call('tools/dataset_converters/make_digits.py', folder, '--train', 4, '--val', 2, '--size', 128, '--renderings', 1)
    for path in (folder / 'coco/annotations').glob('*.json'):
        coco = json.loads(path.read_text())
        coco['categories'] = [dict(id=i, name=name) for i, name in enumerate(CocoDataset.METAINFO['classes'], start=1)]
        # Add a box of no size, as many real data sets have; it must be dropped without an error.
        first = coco['annotations'][0]
        coco['annotations'].append(dict(first, id=10**6, bbox=[5, 5, 0, 0], area=0))
        path.write_text(json.dumps(coco))
    for digit in (folder / 'imagenet').glob('*/*'):
        for image in sorted(digit.iterdir())[imagenet_per_class:]:
            image.unlink()
    return folder


def shrink(node) -> None:
    """Divide the image sizes in a pipeline or data preprocessor, in place."""
    for item in node if isinstance(node, (list, tuple)) else [node]:
        if isinstance(item, (list, tuple)):
            shrink(item)
        elif isinstance(item, dict):
            for key, value in item.items():
                if key in SIZES:
                    item[key] = _divide(value)
                elif key == 'border':  # of YOLOX's RandomAffine: minus half the image size
                    item[key] = tuple(-_divide(-2 * border) // 2 for border in value)
                elif isinstance(value, (dict, list, tuple)):
                    shrink(value)


def _divide(value):
    if isinstance(value, (list, tuple)):
        return type(value)(map(_divide, value))
    return max(1, round(value / SHRINK / 32)) * 32 if isinstance(value, int) else value


def shorten(cfg: Config, data: Path, batch_size: int = 2) -> None:
    """Point a config of any of the three libraries to ``make_data``'s files, and leave one epoch or two iterations."""
    root = str(data / dict(mmdet='coco', mmseg='ade20k', mmpretrain='imagenet')[cfg.default_scope]) + os.sep
    for split in ('train', 'val', 'test'):
        loader = cfg.get(f'{split}_dataloader')
        if loader:
            loader.update(num_workers=0, persistent_workers=False)
            dataset = loader.dataset
            while 'dataset' in dataset:  # such as YOLOX's MultiImageMixDataset
                shrink(dataset.pipeline)
                dataset = dataset.dataset
            dataset.data_root = root
            if cfg.default_scope == 'mmpretrain':
                dataset.metainfo = dict(classes=[str(digit) for digit in range(10)])
            shrink(dataset.pipeline)
    if 'num_classes' in cfg.model.get('head', {}):
        preprocessor = cfg.model.get('data_preprocessor') or cfg.data_preprocessor
        cfg.model.head.num_classes = preprocessor.num_classes = 10
    cfg.train_dataloader.batch_size = batch_size
    shrink(cfg.get('tta_pipeline', []))
    shrink(cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {})
    for evaluator in (cfg.get('val_evaluator') or {}, cfg.get('test_evaluator') or {}):
        if 'ann_file' in evaluator:
            evaluator.ann_file = root + 'annotations/instances_val2017.json'
    if cfg.train_cfg.get('type', '').startswith('Epoch') or 'max_epochs' in cfg.train_cfg:
        cfg.train_cfg.update(max_epochs=1, val_interval=1)
    else:
        cfg.train_cfg.update(max_iters=2, val_interval=2)
    test_cfg = cfg.model.get('test_cfg') or {}
    for part in (test_cfg, test_cfg.get('rcnn') or {}):
        if 'score_thr' in part:
            part.score_thr = 0.0  # scores are low after two iterations, and the metric needs predictions
