"""Make small scenes of two digits, a 0 and another one, twice, in the layout of ImageNet.

    OUT/side/     train/ and val/, each with the folders above, below, left, right: the class is where the other digit
                  lies from the 0 (the larger of both distances decides)
    OUT/digit/    the same scenes in train/ and val/, each with the folders 1 to 9: the class is the other digit,
                  wherever it lies

So position decides the class in one data set alone. Digits are scikit-learn's 1,797 handwritten ones. A scan is used in
training or in validation, never in both. The same seed gives the same files.

Example: python tools/dataset_converters/make_relations.py data/relations
"""

import argparse
import os
import shutil
from typing import Dict, List, Tuple

import cv2
import numpy as np
from make_digits import render, split_scans, write_image
from sklearn.datasets import load_digits

SIDE = 16  # pixels of a digit


def places(size: int, rng: np.random.Generator) -> Tuple[np.ndarray, str]:
    """Return the corners (y, x) of two digits that do not overlap, (2, 2), and where the second lies from the first."""
    while True:
        corners = rng.integers(0, size - SIDE + 1, (2, 2))
        y, x = corners[1] - corners[0]
        if max(abs(y), abs(x)) >= SIDE and abs(y) != abs(x):
            return corners, ('below' if y > 0 else 'above') if abs(y) > abs(x) else ('right' if x > 0 else 'left')


def draw(digits: List[int], corners: np.ndarray, size: int, scans: Dict[int, np.ndarray], rng: np.random.Generator):
    """Return a scene (size, size, 3), uint8: gray digits on noise."""
    image = np.kron(rng.uniform(0, 90, (size // 8, size // 8)), np.ones((8, 8)))
    image = cv2.GaussianBlur(image, (0, 0), 4) + rng.normal(0, 8, image.shape)
    for digit, (y, x) in zip(digits, corners):
        ink = render(scans[digit][rng.integers(len(scans[digit]))], SIDE)
        region = image[y : y + SIDE, x : x + SIDE]
        region += ink * (rng.uniform(150, 255) - region)
    return np.repeat(image.clip(0, 255).round().astype(np.uint8)[..., None], 3, axis=2)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('out', metavar='OUT', help='folder to make, such as data/relations')
    parser.add_argument('--train', type=int, default=3000, help='training scenes (default 3000)')
    parser.add_argument('--val', type=int, default=1000, help='validation scenes (default 1000)')
    parser.add_argument('--size', type=int, default=48, help='height and width in pixels, a multiple of 8 (default 48)')
    parser.add_argument('--seed', type=int, default=0, help='seed of all that is random (default 0)')
    args = parser.parse_args()
    if args.size % 8 or args.size < 48:
        parser.error(f'--size must be a multiple of 8 from 48 on, got {args.size}.')
    for name in ('train', 'val'):
        if getattr(args, name) < 1:
            parser.error(f'--{name} must be at least 1, got {getattr(args, name)}.')
    if os.path.exists(args.out):
        parser.error(f'{args.out} exists: name another folder, or delete it.')
    return args


def main() -> None:
    args = parse_args()
    digits = load_digits()
    partial = f'{args.out.rstrip(os.sep)}.partial'
    shutil.rmtree(partial, ignore_errors=True)
    rng = np.random.default_rng(args.seed)
    for split, indices in split_scans(digits.target, rng).items():
        scans = {digit: digits.images[indices[digits.target[indices] == digit]] for digit in range(10)}
        for i in range(getattr(args, split)):
            other = int(rng.integers(1, 10))
            corners, side = places(args.size, rng)
            scene = draw([0, other], corners, args.size, scans, rng)
            for data, label in (('side', side), ('digit', str(other))):
                folder = os.path.join(partial, data, split, label)
                os.makedirs(folder, exist_ok=True)
                write_image(os.path.join(folder, f'{i:05d}.png'), scene)
    os.rename(partial, args.out)  # only a complete data set gets the name
    print(f'Scenes are in {args.out}.')


if __name__ == '__main__':
    main()
