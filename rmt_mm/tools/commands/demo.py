"""Predict images or a video with a config of mmdetection, mmsegmentation or mmpretrain, and draw the predictions.

python tools/demo.py configs/detection/mask-rcnn_rmt-mini_fpn_4e_digits.py work_dirs/demo/epoch_4.pth scene.jpg
rmt-demo mask-rcnn_rmt-t_fpn_amp-1x_coco epoch_12.pth 'photos/*.jpg' --json --tile 1024

Images go to the folder of --out-dir under their own names, a video as .mp4. --json writes predictions.json there too:

- detectors: COCO's format of results, with the names of file and class. bbox is left, top, width, height in pixels;
  image_id counts images or frames from 1; category_id is COCO's for its 80 classes, else it counts from 1.
- segmentors: the pixels of each class, and the class of every pixel as labels/NAME.png.
- classifiers: the five most probable classes.
"""

import argparse
import json
import os
import os.path as osp
import sys
from pathlib import Path
from typing import Iterator, List, Tuple

import cv2
import numpy as np
from mmengine.utils import ProgressBar
from PIL import Image

from ...errors import UsageError, printable
from .. import cli
from ..cli.cfg_options import CfgOptions
from ..cli.images import VIDEO_SUFFIXES, find_images
from ..cli.predictor import SIZE_ERRORS, Classifier, Predictor, Segmentor, as_shown, load_predictor


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file, or the name of one of ours')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('input', help='image, video, folder of images, or pattern such as "photos/*.jpg"')
    parser.add_argument('--out-dir', default='outputs', metavar='DIR', help='default: outputs')
    parser.add_argument('--score-thr', type=float, default=0.5, metavar='S', help='least score to show (default 0.5)')
    parser.add_argument('--device', help='such as cpu or cuda:1 (default: a GPU if there is one)')
    parser.add_argument('--json', action='store_true', help='write the predictions to DIR/predictions.json too')
    parser.add_argument('--tile', type=int, metavar='PIXELS', help='predict large images in square tiles of this side')
    parser.add_argument('--overlap', type=int, default=128, metavar='PIXELS', help='shared by tiles (default 128)')
    parser.add_argument(
        '--cfg-options', nargs='+', action=CfgOptions, default={}, metavar='KEY=VALUE', help='change the config'
    )
    return parser.parse_args()


def check_options(args: argparse.Namespace) -> None:
    if not 0 <= args.score_thr <= 1:
        raise UsageError(f'--score-thr {args.score_thr}: scores are from 0 to 1.')
    if args.tile is not None and not 0 <= args.overlap < args.tile:
        raise UsageError(f'--tile {args.tile} --overlap {args.overlap}: the overlap is at least 0, and below the tile.')
    try:
        os.makedirs(args.out_dir, exist_ok=True)
    except OSError as error:
        raise UsageError(f'--out-dir {args.out_dir} cannot be made: {error.strerror}.') from error


def build(args: argparse.Namespace) -> Predictor:
    predictor = load_predictor(args.config, args.checkpoint, args.device, args.cfg_options)
    if args.tile is not None and isinstance(predictor, Classifier):
        raise UsageError('--tile: a classifier looks at the whole image.')
    return predictor


class Output:
    """The folder of results: images as they come, and the predictions at the end.

    Args:
        predictor (Predictor): the model.
        args (argparse.Namespace): the command line.
    """

    def __init__(self, predictor: Predictor, args: argparse.Namespace) -> None:
        self._predictor, self._args = predictor, args
        self._folder = Path(args.out_dir)
        self._predictions: List[dict] = []
        self.count = 0

    def read(self, path: Path) -> np.ndarray:
        return self._predictor.read(path)

    def predict(self, image: np.ndarray, name: str) -> np.ndarray:
        """Predict an image, note the predictions under ``name``, and return the image with them."""
        args = self._args
        if args.tile is None:
            sample = self._predictor.predict(image)
        else:
            sample = self._predictor.predict_by_tiles(image, args.tile, args.overlap)
        entries = self._predictor.entries(sample, args.score_thr, name, self.count + 1)
        drawn = self._predictor.draw(as_shown(image), sample, args.score_thr)
        self.count += 1
        self._predictions += entries
        if args.json and isinstance(self._predictor, Segmentor):
            self._save(self._predictor.labels(sample), Path('labels') / f'{name}.png')
        return drawn

    def save_image(self, drawn: np.ndarray, name: str) -> None:
        self._save(drawn, Path(name if name.lower().endswith(('.png', '.jpg', '.jpeg')) else f'{name}.png'))

    def _save(self, pixels: np.ndarray, name: Path) -> None:
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, quality=95)  # which PNG ignores

    def save_predictions(self) -> None:
        if self._args.json:
            (self._folder / 'predictions.json').write_text(json.dumps(self._predictions, indent=1))


def predict_images(output: Output, paths: List[Path], folder: Path) -> int:
    """Predict images, report those that are skipped, and return how many are."""
    root = Path(osp.commonpath([path.resolve().parent for path in paths]))
    if any((folder / path.resolve().relative_to(root)).resolve() == path.resolve() for path in paths):
        raise UsageError(f'--out-dir {folder} holds the images themselves, which would be replaced: name another.')
    skipped = []
    progress = ProgressBar(len(paths))
    for path in paths:
        name = path.resolve().relative_to(root).as_posix()
        try:
            output.save_image(output.predict(output.read(path), name), name)
        except UsageError as error:
            skipped.append(str(error))
        except SIZE_ERRORS as error:
            skipped.append(f'{path} cannot be predicted: {" ".join(str(error).split())}')
        progress.update()
    print()
    for reason in skipped:
        print(f'skipped: {printable(reason)}', file=sys.stderr)
    return len(skipped)


def read_frames(path: Path) -> Iterator[Tuple[int, float, np.ndarray]]:
    """Yield the number of frames in a video, its frames per second, and each frame, RGB."""
    video = cv2.VideoCapture(str(path))
    frames, rate = int(video.get(cv2.CAP_PROP_FRAME_COUNT)), video.get(cv2.CAP_PROP_FPS)
    there, frame = video.read()
    if not there:
        raise UsageError(f'{path} cannot be read as a video.')
    while there:
        yield frames, rate, np.ascontiguousarray(frame[..., ::-1])
        there, frame = video.read()
    video.release()


def predict_video(output: Output, path: Path, folder: Path) -> None:
    target = folder / f'{path.stem}.mp4'
    if target.resolve() == path.resolve():
        raise UsageError(f'--out-dir {folder} holds the video itself, which would be replaced: name another.')
    writer = progress = None
    for number, (frames, rate, image) in enumerate(read_frames(path), start=1):
        drawn = output.predict(image, f'{path.name}/{number:06}')
        if writer is None or progress is None:
            height, width = drawn.shape[:2]
            code = cv2.VideoWriter.fourcc(*'mp4v')
            writer = cv2.VideoWriter(str(target), code, rate or 25, (width, height))
            if not writer.isOpened():
                raise UsageError(f'{target} cannot be written as a video.')
            progress = ProgressBar(frames)
        writer.write(np.ascontiguousarray(drawn[..., ::-1]))
        progress.update()
    if writer is not None:
        writer.release()
    print()


def main() -> None:
    args = parse_args()
    with cli.exit_on_error(*cli.FOREIGN_ERRORS):
        paths = find_images(args.input)
        check_options(args)
        predictor = build(args)
    folder, skipped = Path(args.out_dir), 0
    output = Output(predictor, args)
    with cli.exit_on_error(OSError, *SIZE_ERRORS):
        try:
            if len(paths) == 1 and paths[0].suffix.lower() in VIDEO_SUFFIXES:
                predict_video(output, paths[0], folder)
            else:
                skipped = predict_images(output, paths, folder)
        finally:  # also of what was done before an interruption
            output.save_predictions()
    print(f'{output.count} predicted, {skipped} skipped: {folder}')
    if not output.count:
        sys.exit(1)


if __name__ == '__main__':  # python -m
    main()
