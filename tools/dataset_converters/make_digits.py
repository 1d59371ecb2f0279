"""Make digit scenes: a small data set of real scans and real photographs, in the layouts of COCO, ADE20K and ImageNet.

The tool pastes the 1,797 handwritten digits that scikit-learn ships on crops of the two photographs that it ships: 2
to 6 per scene, at different scales, in different colours and partly over one another. A scan is used in training scenes
or in validation scenes, never in both. The same seed gives the same files.

    OUT/coco/      train2017/, val2017/, annotations/instances_{train,val}2017.json; masks as RLE, of the visible part
    OUT/ade20k/    images/ and annotations/, each with training/ and validation/; 0 is background, which is a class,
                   d + 1 is digit d, so reduce_zero_label=False and 11 classes
    OUT/imagenet/  train/ and val/, each with one folder per digit: single digits, a scan of val once, a scan of train
                   several times, each time on another crop and in another colour and size

Example: python tools/dataset_converters/make_digits.py data/digits
"""

import argparse
import json
import os
import os.path as osp
import shutil
import sys
from typing import Dict, List, NamedTuple, Tuple

import cv2
import numpy as np
from pycocotools import mask as mask_utils
from sklearn.datasets import load_digits, load_sample_images
from tqdm import tqdm

SPLITS = {'train': ('train2017', 'training'), 'val': ('val2017', 'validation')}
VAL_SCANS = 0.25  # share of the scans that are in val only
MIN_VISIBLE = 0.6  # share of a digit that must stay visible under later digits


class Scene(NamedTuple):
    image: np.ndarray  # (H, W, 3), uint8
    masks: List[np.ndarray]  # (H, W), bool, the visible part of each digit
    digits: List[int]


def split_scans(labels: np.ndarray, rng: np.random.Generator) -> Dict[str, np.ndarray]:
    """Return the indices of the scans of each split, every digit in the same proportion."""
    val = []
    for digit in range(10):
        indices = rng.permutation(np.flatnonzero(labels == digit))
        val.extend(indices[: round(VAL_SCANS * len(indices))])
    return {'train': np.setdiff1d(np.arange(len(labels)), val), 'val': np.sort(val)}


def render(scan: np.ndarray, size: int) -> np.ndarray:
    """Enlarge an 8x8 scan of 0..16 to the opacity (size, size) of its ink, from 0 to 1."""
    ink = cv2.resize(scan.astype(np.float32) / 16, (size, size), interpolation=cv2.INTER_CUBIC)
    return np.clip((ink - 0.25) * 3, 0, 1)  # increase the contrast, so that the ink has sharp edges


def crop_photo(photos: List[np.ndarray], size: int, rng: np.random.Generator) -> np.ndarray:
    """Return a random crop (size, size, 3) of a photograph, at a random scale, randomly flipped, slightly darkened."""
    photo = photos[rng.integers(len(photos))]
    side = int(rng.integers(size, min(photo.shape[:2]) + 1)) if size < min(photo.shape[:2]) else min(photo.shape[:2])
    y, x = (int(rng.integers(0, length - side + 1)) for length in photo.shape[:2])
    crop = cv2.resize(photo[y : y + side, x : x + side], (size, size), interpolation=cv2.INTER_AREA)
    return crop[:, :: rng.choice((-1, 1))] * rng.uniform(0.5, 1.0)


def ink_colour(background: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a random colour whose brightness differs from that of the background."""
    while True:
        colour = rng.uniform(0, 255, 3)
        if abs(colour.mean() - background.mean()) > 60:
            return colour


def paste(image: np.ndarray, ink: np.ndarray, y: int, x: int, rng: np.random.Generator) -> None:
    size = len(ink)
    region = image[y : y + size, x : x + size]
    region += ink[..., None] * (ink_colour(region, rng) - region)


def compose(
    scans: np.ndarray, labels: np.ndarray, photos: List[np.ndarray], size: int, rng: np.random.Generator
) -> Scene:
    """Compose a scene of 2 to 6 digits from the given scans."""
    image, masks, digits, areas = crop_photo(photos, size, rng), [], [], []
    for index in rng.choice(len(scans), rng.integers(2, 7), replace=False):
        for _ in range(20):  # tries to place the digit before it is left out
            side = int(rng.integers(size // 6, size // 2))
            y, x = (int(v) for v in rng.integers(0, size - side + 1, 2))
            ink = render(scans[index], side)
            mask = np.zeros((size, size), bool)
            mask[y : y + side, x : x + side] = ink > 0.5
            remaining = [m & ~mask for m in masks]
            if all(m.sum() >= MIN_VISIBLE * area for m, area in zip(remaining, areas)):
                paste(image, ink, y, x, rng)
                masks = [*remaining, mask]
                digits.append(int(labels[index]))
                areas.append(mask.sum())
                break
    return Scene(image.round().astype(np.uint8), masks, digits)


def coco_annotation(mask: np.ndarray, digit: int, image_id: int, annotation_id: int) -> dict:
    rle = mask_utils.encode(np.asfortranarray(mask, np.uint8))
    ys, xs = np.nonzero(mask)
    box = [xs.min(), ys.min(), xs.max() - xs.min() + 1, ys.max() - ys.min() + 1]
    return dict(
        id=annotation_id,
        image_id=image_id,
        category_id=digit + 1,
        bbox=[int(v) for v in box],
        area=int(mask.sum()),
        iscrowd=0,
        segmentation=dict(size=rle['size'], counts=rle['counts'].decode()),
    )


def write_image(path: str, image: np.ndarray) -> None:
    if not cv2.imwrite(path, image):
        raise OSError(f'{path} could not be written')


def write_scenes(
    out: str,
    split: str,
    count: int,
    size: int,
    scans: np.ndarray,
    labels: np.ndarray,
    photos: List[np.ndarray],
    rng: np.random.Generator,
) -> None:
    """Write ``count`` scenes of a split in COCO's and in ADE20K's layout."""
    coco_name, ade_name = SPLITS[split]
    folders = [
        osp.join(out, part)
        for part in (
            f'coco/{coco_name}',
            'coco/annotations',
            f'ade20k/images/{ade_name}',
            f'ade20k/annotations/{ade_name}',
        )
    ]
    for folder in folders:
        os.makedirs(folder, exist_ok=True)
    coco_images, coco_folder, ade_images, ade_labels = folders
    images, annotations = [], []
    for image_id in tqdm(range(1, count + 1), desc=f'{split} scenes'):
        scene = compose(scans, labels, photos, size, rng)
        name, ade_stem = f'{image_id:012d}.jpg', f'ADE_{split}_{image_id:08d}'
        write_image(osp.join(coco_images, name), scene.image)
        write_image(osp.join(ade_images, f'{ade_stem}.jpg'), scene.image)
        label_map = np.zeros((size, size), np.uint8)
        for mask, digit in zip(scene.masks, scene.digits):
            label_map[mask] = digit + 1
            annotations.append(coco_annotation(mask, digit, image_id, len(annotations) + 1))
        write_image(osp.join(ade_labels, f'{ade_stem}.png'), label_map)
        images.append(dict(id=image_id, file_name=name, height=size, width=size))
    categories = [dict(id=digit + 1, name=str(digit), supercategory='digit') for digit in range(10)]
    with open(osp.join(coco_folder, f'instances_{coco_name}.json'), 'w') as file:
        json.dump(
            dict(
                info=dict(description='digit scenes'),
                licenses=[],
                images=images,
                annotations=annotations,
                categories=categories,
            ),
            file,
        )


def single_digit(scan: np.ndarray, photos: List[np.ndarray], rng: np.random.Generator, size: int = 64) -> np.ndarray:
    """Return an image (size, size, 3) of one digit, at a random place on a random crop of a photograph."""
    image = crop_photo(photos, size, rng)
    side = int(rng.integers(size // 2, size + 1))
    y, x = (int(v) for v in rng.integers(0, size - side + 1, 2))
    paste(image, render(scan, side), y, x, rng)
    return image.round().astype(np.uint8)


def write_single_digits(
    out: str,
    split: str,
    renderings: int,
    indices: np.ndarray,
    scans: np.ndarray,
    labels: np.ndarray,
    photos: List[np.ndarray],
    rng: np.random.Generator,
) -> None:
    """Write ``renderings`` images of each scan, in one folder per digit, named after the scan's index."""
    for digit in range(10):
        os.makedirs(osp.join(out, 'imagenet', split, str(digit)), exist_ok=True)
    (more,) = rng.spawn(1)  # keeps later scenes independent of the number of renderings
    for index in tqdm(indices.tolist(), desc=f'{split} single digits'):
        stem = osp.join(out, 'imagenet', split, str(labels[index]), f'{index:04d}')
        write_image(f'{stem}.png', single_digit(scans[index], photos, rng))
        for copy in range(1, renderings):
            write_image(f'{stem}_{copy}.png', single_digit(scans[index], photos, more))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('out', metavar='OUT', help='folder to make, such as data/digits')
    parser.add_argument('--train', type=int, default=1000, help='training scenes (default 1000)')
    parser.add_argument('--val', type=int, default=200, help='validation scenes (default 200)')
    parser.add_argument('--renderings', type=int, default=8, help='training images of a single scan (default 8)')
    parser.add_argument('--size', type=int, default=160, help='height and width of a scene in pixels (default 160)')
    parser.add_argument('--seed', type=int, default=0, help='seed of all that is random (default 0)')
    parser.add_argument('--force', action='store_true', help='replace OUT if it holds other digit scenes')
    args = parser.parse_args()
    for name in ('train', 'val', 'renderings'):
        if getattr(args, name) < 1:
            parser.error(f'--{name} must be at least 1, got {getattr(args, name)}')
    if not 64 <= args.size <= 400:
        parser.error(f'--size must be from 64 to 400 (the photographs are 427 pixels high), got {args.size}')
    return args


def prepare_out(args: argparse.Namespace) -> Tuple[str, dict]:
    """Return the folder to write into and the settings to record; stop if there is nothing to do, or OUT is in use."""
    settings = dict(train=args.train, val=args.val, renderings=args.renderings, size=args.size, seed=args.seed)
    stamp = osp.join(args.out, 'settings.json')
    if osp.isfile(stamp):
        with open(stamp) as file:
            found = json.load(file)
        if found == settings and not args.force:
            print(f'{args.out} is already there, with these settings.')
            sys.exit(0)
        if not args.force:
            sys.exit(
                f'error: {args.out} holds digit scenes of other settings ({found}): name another folder, '
                'or replace it with --force.'
            )
    elif osp.exists(args.out) and (not osp.isdir(args.out) or os.listdir(args.out)):
        sys.exit(f'error: {args.out} exists and holds no digit scenes: name another folder.')
    partial = f'{args.out.rstrip(os.sep)}.partial'
    try:
        shutil.rmtree(partial, ignore_errors=True)
        os.makedirs(partial)
    except OSError as error:
        sys.exit(f'error: {partial} cannot be made ({error.strerror}): name a folder that can be written.')
    return partial, settings


def main() -> None:
    args = parse_args()
    partial, settings = prepare_out(args)
    rng = np.random.default_rng(args.seed)
    digits = load_digits()
    photos = [photo[..., ::-1].astype(np.float32) for photo in load_sample_images().images]  # to OpenCV's BGR
    for split, indices in split_scans(digits.target, rng).items():
        write_scenes(
            partial, split, getattr(args, split), args.size, digits.images[indices], digits.target[indices], photos, rng
        )
        write_single_digits(
            partial,
            split,
            args.renderings if split == 'train' else 1,
            indices,
            digits.images,
            digits.target,
            photos,
            rng,
        )
    with open(osp.join(partial, 'settings.json'), 'w') as file:
        json.dump(settings, file)
    # Only a complete data set gets the name OUT: an interrupted run leaves no incomplete one under it.
    shutil.rmtree(args.out, ignore_errors=True)
    os.rename(partial, args.out)
    print(f'Digit scenes are in {args.out}.')


if __name__ == '__main__':
    main()
