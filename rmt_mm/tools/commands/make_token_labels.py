"""Make the label maps that training with token labels needs, with any trained classifier of mmpretrain or timm.

The tool resizes each whole image to a square, classifies each place of the classifier's last feature map, and keeps
the best classes of every place. OUT mirrors the folders of IMAGES, with one file (2, k, h, w) per image.

    python tools/dataset_converters/make_token_labels.py CONFIG CHECKPOINT data/imagenet/train \\
        data/imagenet/token_labels/train --size 576
    python tools/dataset_converters/make_token_labels.py timm:dm_nfnet_f6.dm_in1k pretrained IMAGES OUT --size 576

The same command continues an interrupted run.
"""

import argparse
import hashlib
import json
import os
import os.path as osp
import sys
from typing import Callable, Dict, List, Tuple

import cv2
import torch
from mmengine.config import DictAction
from mmengine.dataset import pseudo_collate
from mmengine.registry import DefaultScope
from mmengine.runner import load_checkpoint
from mmpretrain.apis import get_model
from mmpretrain.datasets import CustomDataset
from mmpretrain.models import ClsDataPreprocessor
from mmpretrain.registry import TRANSFORMS
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ...classification.dense import dense_logits, timm_dense_logits
from ...classification.label_map import EXTENSIONS, keep_best, save_label_map
from .. import cli

STAMP = 'annotator.json'


class WholeImages(Dataset):
    """Pairs of name and whole image resized to size x size; the image is None for a file that cannot be read."""

    def __init__(self, root: str, names: List[str], size: int) -> None:
        self.root, self.names = root, names
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            self.pipeline = [
                TRANSFORMS.build(t)
                for t in (
                    dict(type='LoadImageFromFile'),
                    dict(type='Resize', scale=(size, size), interpolation='bicubic', backend='pillow'),
                    dict(type='PackInputs'),
                )
            ]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple:
        results = dict(img_path=osp.join(self.root, self.names[index]))
        try:
            for transform in self.pipeline:
                results = transform(results)
        except (OSError, AssertionError, cv2.error):
            return self.names[index], None
        return self.names[index], results['inputs']


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'config', metavar='CONFIG', help='config of an mmpretrain classifier, the name of one of ours, or timm:NAME'
    )
    parser.add_argument('checkpoint', metavar='CHECKPOINT', help="its checkpoint; for timm also 'pretrained'")
    parser.add_argument('images', metavar='IMAGES', help='folder of images, with folders in it or not')
    parser.add_argument('out', metavar='OUT', help='folder of label maps to make or to complete')
    parser.add_argument(
        '--size', type=int, default=576, help='height and width that images are resized to (default 576)'
    )
    parser.add_argument('--top-k', type=int, default=5, help='classes to keep for each place (default 5)')
    parser.add_argument('--batch-size', type=int, default=16, help='default 16')
    parser.add_argument('--num-workers', type=int, default=2, help='processes that read images (default 2)')
    parser.add_argument('--format', choices=[e[1:] for e in EXTENSIONS], default='pt', help='default pt')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu', help='default: GPU if any')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        metavar='KEY=VALUE',
        help='change settings of the config, such as model.backbone.out_type=featmap',
    )
    args = parser.parse_args()
    for name in ('size', 'top_k', 'batch_size'):
        if getattr(args, name) < 1:
            parser.error(f'--{name.replace("_", "-")} must be at least 1, got {getattr(args, name)}')
    if args.num_workers < 0:
        parser.error(f'--num-workers must not be negative, got {args.num_workers}')
    return args


def list_images(folder: str) -> List[str]:
    """Return the paths of all images below ``folder``, relative to it."""
    if not osp.isdir(folder):
        raise cli.UsageError(f'image folder {folder} does not exist.')
    try:
        dataset = CustomDataset(data_prefix=folder, with_label=False, lazy_init=True)
        names = [osp.relpath(info['img_path'], folder) for info in dataset.load_data_list()]
    except RuntimeError as error:  # no image
        raise cli.UsageError(str(error)) from error
    stems: Dict[str, str] = {}
    for name in names:
        other = stems.setdefault(osp.splitext(name)[0], name)
        if other != name:
            raise cli.UsageError(f'{other} and {name} would have the same label map: rename one of them.')
    return names


def settings_of(args: argparse.Namespace) -> dict:
    digest = hashlib.sha256()
    if osp.isfile(args.checkpoint):
        with open(args.checkpoint, 'rb') as file:
            for block in iter(lambda: file.read(2**20), b''):
                digest.update(block)
    return dict(
        config=osp.basename(args.config),
        checkpoint=f'{osp.basename(args.checkpoint)} {digest.hexdigest()[:8]}',
        size=args.size,
        top_k=args.top_k,
    )


def list_todo(args: argparse.Namespace, names: List[str]) -> List[str]:
    """Return the images that have no label map yet; refuse to mix label maps of different annotators."""
    stamp = osp.join(args.out, STAMP)
    if osp.isfile(stamp):
        with open(stamp) as file:
            found = json.load(file)
        if found != settings_of(args):
            raise cli.UsageError(f'{args.out} holds label maps made otherwise ({found}): name another folder.')
    there = {osp.relpath(osp.join(folder, f), args.out) for folder, _, files in os.walk(args.out) for f in files}
    return [name for name in names if not any(osp.splitext(name)[0] + e in there for e in EXTENSIONS)]


def load_timm(args: argparse.Namespace) -> Tuple[nn.Module, nn.Module]:
    try:
        import timm
    except ImportError as error:
        raise cli.UsageError(f'{args.config} needs timm: run `pip install timm`.') from error
    pretrained = args.checkpoint == 'pretrained'
    model = timm.create_model(
        args.config[len('timm:') :], pretrained=pretrained, checkpoint_path='' if pretrained else args.checkpoint
    )
    mean, std = ([255 * value for value in model.pretrained_cfg[key]] for key in ('mean', 'std'))
    return model, ClsDataPreprocessor(mean=mean, std=std, to_rgb=True)


def load_mmpretrain(args: argparse.Namespace) -> Tuple[nn.Module, nn.Module]:
    cfg = cli.read_config(args.config)
    cfg.merge_from_dict(args.cfg_options)
    cfg.model.pop('init_cfg', None)
    model = get_model(cfg, pretrained=False)
    load_checkpoint(model, args.checkpoint, map_location='cpu', strict=True)  # random weights would make wrong labels
    return model, model.data_preprocessor


def load_annotator(args: argparse.Namespace) -> Callable[[List[Tensor]], Tensor]:
    """Return the function from a batch of images to dense logits (B, num_classes, h, w)."""
    is_timm = args.config.startswith('timm:')
    try:
        model, preprocess = (load_timm if is_timm else load_mmpretrain)(args)
    except cli.FOREIGN_ERRORS as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise cli.UsageError(f'{args.checkpoint} cannot be loaded into {args.config}: {" ".join(lines[:3])}') from error
    model, preprocess = model.to(args.device).eval(), preprocess.to(args.device)
    dense = timm_dense_logits if is_timm else dense_logits
    return lambda images: dense(model, preprocess(dict(inputs=images))['inputs'])


@torch.inference_mode()
def annotate(args: argparse.Namespace, names: List[str], total: int) -> List[str]:
    """Make the label maps of ``names``; return the images that cannot be read."""
    dense = load_annotator(args)
    os.makedirs(args.out, exist_ok=True)
    with open(osp.join(args.out, STAMP), 'w') as file:
        json.dump(settings_of(args), file)
    loader = DataLoader(
        WholeImages(args.images, names, args.size),
        args.batch_size,
        num_workers=args.num_workers,
        collate_fn=pseudo_collate,
    )
    unreadable: List[str] = []
    with tqdm(total=total, initial=total - len(names), unit='image') as progress:
        for batch_names, images in loader:
            readable = [i for i, image in enumerate(images) if image is not None]
            unreadable.extend(name for name, image in zip(batch_names, images) if image is None)
            if readable:
                for i, logits in zip(readable, dense([images[i] for i in readable])):
                    path = osp.join(args.out, f'{osp.splitext(batch_names[i])[0]}.{args.format}')
                    save_label_map(keep_best(logits, args.top_k), path)
            progress.update(len(images))
    return unreadable


def main() -> None:
    args = parse_args()
    unreadable = []
    with cli.exit_on_error(ValueError, OSError):
        is_timm = args.config.startswith('timm:')
        if not is_timm:
            args.config = cli.find_config(args.config)
        if not (is_timm and args.checkpoint == 'pretrained'):
            cli.force_safe_loading()
            args.checkpoint = cli.check_checkpoint_file(args.checkpoint)
        names = list_images(args.images)
        todo = list_todo(args, names)
        if todo:
            try:
                unreadable = annotate(args, todo, len(names))
            except KeyboardInterrupt:
                print('\nInterrupted. The same command continues.', file=sys.stderr)
                sys.exit(130)
    if unreadable:
        sys.exit(
            f'error: {len(unreadable)} images cannot be read and have no label map: {", ".join(unreadable[:3])}'
            f'{", ..." if len(unreadable) > 3 else ""}'
        )
    print(f'{args.out} has label maps for all {len(names)} images, {len(todo)} of them new.')


if __name__ == '__main__':  # python -m
    main()
