"""Predict pictures with a model that export.py wrote, without torch or rmt_mm: copy this file into your application.

python run.py MODEL.onnx PICTURE|FOLDER [--out-dir DIR] [--score-thr S]

It needs numpy, onnxruntime and Pillow. Classes, colours, mean, std and the rule of resizing come from the file.
Pictures go to the folder of --out-dir under their own names, and predictions.json with them.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as status
from PIL import Image, ImageDraw, ImageFont, ImageOps

# onnxruntime's errors have no common class of their own.
LOAD_ERRORS = (
    status.Fail,
    status.InvalidArgument,
    status.InvalidGraph,
    status.InvalidProtobuf,
    status.NotImplemented,
    status.RuntimeException,
)


class Model:
    """A model with its metadata.

    Args:
        path (Path): the ONNX file.
    """

    def __init__(self, path):
        if not path.is_file():
            sys.exit(f'error: {path} does not exist.')
        try:
            self.session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
        except LOAD_ERRORS as error:
            text = ' '.join(str(error).split())
            if 'opset' in text.lower():
                text += f' This onnxruntime is {onnxruntime.__version__}: update it, or export with a lower --opset.'
            sys.exit(f'error: {path} cannot be loaded as an ONNX model: {text}')
        try:
            properties = self.session.get_modelmeta().custom_metadata_map
            self.meta = {key: json.loads(value) for key, value in properties.items()}
        except ValueError:
            self.meta = {}
        missing = {'task', 'input', 'classes', 'palette', 'mean', 'std', 'pipeline'} - set(self.meta)
        if missing:
            sys.exit(f'error: {path} has no metadata of export.py ({", ".join(sorted(missing))} missing).')
        if len(self.meta['mean']) != 3:
            sys.exit(
                f'error: {path} takes images of {len(self.meta["mean"])} channels, and this tool reads RGB pictures.'
            )
        if self.meta['task'] not in DRAW:
            sys.exit(f'error: {path} computes {self.meta["task"]}, not predictions: export it without --part features.')
        if self.meta['pipeline'] is None:
            sys.exit(f'error: {path} does not say how pictures are resized: its config has a transform of its own.')

    def predict(self, picture):
        """Return the outputs by name, and the size (height, width) of the picture that went in."""
        for step in self.meta['pipeline']:
            picture = STEPS[step['op']](picture, step)
        size, batch = picture.shape[:2], picture[None]
        if self.meta['input']['dtype'] == 'float32':
            batch = (batch - np.float32(self.meta['mean'])) / np.float32(self.meta['std'])
            batch = np.ascontiguousarray(batch.transpose(0, 3, 1, 2), dtype=np.float32)
        [entry] = self.session.get_inputs()
        if any(isinstance(side, int) and side != given for side, given in zip(entry.shape, batch.shape)):
            wanted, given = (' x '.join(map(str, shape)) for shape in (entry.shape, batch.shape))
            raise ValueError(f'the model takes {wanted}, the picture is {given}: export with --dynamic or this --shape')
        names = [output.name for output in self.session.get_outputs()]
        return dict(zip(names, self.session.run(names, {entry.name: batch}))), size


def read(path):
    """Return a picture as demo.py reads it: (H, W, 3), RGB, uint8, upright, on white where transparent."""
    Image.init()
    formats = sorted(set(Image.OPEN) - {'EPS'})  # PostScript, for which Pillow starts another program
    with Image.open(path, formats=formats) as file:
        picture = ImageOps.exif_transpose(file)
    if picture.mode.startswith(('I', 'F')):  # gray of 16 or 32 bits, which convert('RGB') would make white
        values = np.asarray(picture)
        top = float(np.max(values, where=np.isfinite(values), initial=0))
        if values.dtype.itemsize == 2 or 255 < top <= 65535:
            top = 65535
        elif top <= 255:
            top = 1 if values.dtype.kind == 'f' and top <= 1 else 255
        gray = np.empty((*values.shape, 1), np.uint8)
        for row, line in zip(gray[..., 0], values):
            row[:] = np.nan_to_num(np.clip(line * (255 / top), 0, 255)).round()
        return np.repeat(gray, 3, axis=2)
    if 'A' in picture.getbands() or 'transparency' in picture.info:
        layers = picture.convert('RGBA')
        picture = Image.alpha_composite(Image.new('RGBA', layers.size, 'white'), layers)
    return np.array(picture.convert('RGB'))


def resize_bilinear(image, height, width, align_corners=False):
    """Return an array (H, W, C), fp32, resized without smoothing; pixels have their centres at one half."""
    for axis, (old, new) in enumerate(zip(image.shape[:2], (height, width))):
        place = (np.arange(new) + 0.5) * (old / new) - 0.5
        if align_corners:
            place = np.arange(new) * ((old - 1) / max(new - 1, 1))
        place = np.clip(place, 0, old - 1)
        low = place.astype(int)
        share = (place - low).astype(np.float32).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        low, high = (np.take(image, np.minimum(i, old - 1), axis) for i in (low, low + 1))
        image = low * (1 - share) + high * share
    return image


def resize(picture, step):
    height, width = picture.shape[:2]
    new_width, new_height = step['scale']
    if step['keep_ratio']:
        ratio = min(max(step['scale']) / max(height, width), min(step['scale']) / min(height, width))
        new_width, new_height = int(width * ratio + 0.5), int(height * ratio + 0.5)
    if min(new_width, new_height) < 1:
        raise ValueError(f'{width} x {height} pixels cannot be resized to {new_width} x {new_height}')
    if (new_height, new_width) == (height, width):
        return picture
    return resize_bilinear(picture, new_height, new_width).round().astype(np.uint8)


def resize_edge(picture, step):
    height, width = picture.shape[:2]
    size = step['size'], int(step['size'] * height / width)
    if width >= height:
        size = int(step['size'] * width / height), step['size']
    kind = getattr(Image.Resampling, step['filter'].upper())
    return np.asarray(Image.fromarray(picture).resize(size, kind))


def center_crop(picture, step):
    top, left = (max(0, round((have - want) / 2)) for have, want in zip(picture.shape, step['size']))
    return picture[top : top + step['size'][0], left : left + step['size'][1]]


STEPS = dict(resize=resize, resize_edge=resize_edge, center_crop=center_crop)


def paste_mask(mask, box, height, width):
    """Return the probabilities of a box's mask (h, w) at every pixel of a picture, (height, width)."""
    weights = []
    for first, last, cells, pixels in ((*box[1::2], mask.shape[0], height), (*box[::2], mask.shape[1], width)):
        place = (np.arange(pixels) + 0.5 - first) / max(last - first, 1e-6) * cells - 0.5
        weights.append(np.maximum(0, 1 - np.abs(place[:, None] - np.arange(cells))))  # bilinear, 0 outside
    return weights[0] @ mask @ weights[1].T


def draw_label(canvas, left, bottom, text, colour):
    """Write above ``bottom``, or below it where there is no room."""
    font = ImageFont.load_default(max(10, canvas.im.size[0] // 45))
    _, _, width, height = canvas.textbbox((0, 0), text, font=font)
    left = max(0, min(left, canvas.im.size[0] - width - 4))
    top = bottom - height - 4 if bottom - height - 4 >= 0 else bottom
    canvas.rectangle((left, top, left + width + 4, top + height + 3), fill=colour)
    bright = np.dot(colour, (0.299, 0.587, 0.114)) > 140
    canvas.text((left + 2, top), text, fill='black' if bright else 'white', font=font)


def draw_detections(model, picture, outputs, size, threshold):
    height, width = picture.shape[:2]
    drawn, shown = picture.copy(), []
    for i in np.flatnonzero(outputs['scores'] >= threshold):
        box = outputs['boxes'][i] * np.array([width / size[1], height / size[0]] * 2)
        label, score = int(outputs['labels'][i]), float(outputs['scores'][i])
        colour = tuple(model.meta['palette'][label])
        if 'masks' in outputs:
            inside = paste_mask(outputs['masks'][i], box, height, width) >= model.meta['mask_threshold']
            drawn[inside] = (0.5 * drawn[inside] + 0.5 * np.array(colour)).astype(np.uint8)
        shown.append((box.tolist(), label, score, colour))
    image = Image.fromarray(drawn)
    canvas = ImageDraw.Draw(image)
    for box, _, _, colour in shown:
        canvas.rectangle(box, outline=colour, width=max(1, width // 300))
    for box, label, score, colour in shown:
        draw_label(canvas, box[0], box[1], f'{model.meta["classes"][label]} {score:.2f}', colour)
    found = [dict(category=model.meta['classes'][label], score=score, bbox=box) for box, label, score, _ in shown]
    return image, found


def draw_segments(model, picture, outputs, size, threshold):
    logits = outputs['logits'][0].transpose(1, 2, 0)
    logits = resize_bilinear(logits, *picture.shape[:2], align_corners=model.meta['align_corners'])
    labels = logits.argmax(2)
    if logits.shape[2] == 1:
        labels = (1 / (1 + np.exp(-logits[..., 0])) > model.meta['threshold']).astype(int)
    colours = np.array(model.meta['palette'])[labels]
    counts = zip(*np.unique(labels, return_counts=True))
    found = [dict(category=model.meta['classes'][label], pixels=int(count)) for label, count in counts]
    return Image.fromarray((0.5 * picture + 0.5 * colours).astype(np.uint8)), found


def draw_classes(model, picture, outputs, size, threshold):
    scores = outputs['scores'][0]
    found = [dict(category=model.meta['classes'][i], score=float(scores[i])) for i in scores.argsort()[::-1][:5]]
    image = Image.fromarray(picture)
    if min(image.size) < 256:
        image = ImageOps.scale(image, 256 / min(image.size), Image.Resampling.BICUBIC)
    draw_label(ImageDraw.Draw(image), 0, 0, f'{found[0]["category"]} {found[0]["score"]:.2f}', (0, 0, 0))
    return image, found


DRAW = dict(detection=draw_detections, segmentation=draw_segments, classification=draw_classes)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('model', type=Path, help='ONNX file of export.py')
    parser.add_argument('input', type=Path, help='picture, or folder of pictures')
    parser.add_argument('--out-dir', type=Path, default=Path('outputs'), metavar='DIR', help='default: outputs')
    parser.add_argument('--score-thr', type=float, default=0.5, metavar='S', help='least score of a box (default 0.5)')
    args = parser.parse_args()
    known = Image.registered_extensions()
    paths = [args.input] if args.input.is_file() else sorted(args.input.glob('*'))
    paths = [path for path in paths if path == args.input or path.suffix.lower() in known]
    if not paths:
        sys.exit(f'error: {args.input}: there is no such picture or folder with pictures.')
    if args.out_dir.resolve() == paths[0].parent.resolve():
        sys.exit(f'error: --out-dir {args.out_dir} holds the pictures themselves, which would be replaced.')
    model, results = Model(args.model), []
    args.out_dir.mkdir(parents=True, exist_ok=True)
    for path in paths:
        try:
            picture = read(path)
            outputs, size = model.predict(picture)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            print(f'skipped: {path}: {error}', file=sys.stderr)
            continue
        image, found = DRAW[model.meta['task']](model, picture, outputs, size, args.score_thr)
        image.save(
            args.out_dir / (path.name if path.suffix.lower() in ('.png', '.jpg', '.jpeg') else f'{path.name}.png')
        )
        results.append(dict(file_name=path.name, predictions=found))
    (args.out_dir / 'predictions.json').write_text(json.dumps(results, indent=1))
    print(f'{len(results)} predicted, {len(paths) - len(results)} skipped: {args.out_dir}')
    if not results:
        sys.exit(1)


if __name__ == '__main__':
    main()
