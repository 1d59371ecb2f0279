"""Quantise an exported model to int8 by onnxruntime's own tools, and measure both on labelled pictures.

python tools/deployment/quantize.py rmt-digits.onnx data/digits/imagenet/train --val data/digits/imagenet/val
python tools/deployment/quantize.py mask-rcnn.onnx data/digits/coco/train2017 \\
    --val data/digits/coco/val2017 --annotations data/digits/coco/annotations/instances_val2017.json

Statically: weights and activations are int8, with scales from pictures of the training set. Only the operators of --ops
are quantised. Position tables, attention's softmax, norms and post-processing stay fp32. The first folder has pictures
for calibration. A classifier's --val has a folder for each class, in the order of the model's classes; a detector's
--annotations are COCO's.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from run import STEPS, Model, read

SUFFIXES = ('.png', '.jpg', '.jpeg')


def find_pictures(folder, count=None):
    """Return pictures of a folder and the folders in it, evenly chosen if ``count`` is given."""
    found = sorted(path for path in Path(folder).rglob('*') if path.suffix.lower() in SUFFIXES)
    if not found:
        sys.exit(f'error: {folder}: there is no picture in this folder.')
    return found[:: max(1, len(found) // count)][:count] if count else found


class Pictures(CalibrationDataReader):
    """Prepared pictures for onnxruntime's calibration."""

    def __init__(self, model, paths):
        self.batches = iter([self._batch(model, path) for path in paths])

    @staticmethod
    def _batch(model, path):
        picture = read(path)
        for step in model.meta['pipeline']:
            picture = STEPS[step['op']](picture, step)
        return {'image': picture[None]}

    def get_next(self):
        return next(self.batches, None)


def accuracy(model, args):
    """Return the top-1 accuracy of a classifier in percent."""
    folders = sorted(path for path in Path(args.val).iterdir() if path.is_dir())
    hits = []
    for label, folder in enumerate(folders):
        for path in find_pictures(folder)[: args.limit]:
            outputs, _ = model.predict(read(path))
            hits.append(outputs['scores'][0].argmax() == label)
    return dict(top1=100 * float(np.mean(hits)), pictures=len(hits))


def average_precision(model, args):
    """Return COCO's box AP of a detector."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth, results = COCO(args.annotations), []
    categories = {entry['name']: entry['id'] for entry in truth.dataset['categories']}
    images = truth.dataset['images'][: args.limit]
    for entry in images:
        outputs, size = model.predict(read(Path(args.val) / entry['file_name']))
        scale = np.array([entry['width'] / size[1], entry['height'] / size[0]] * 2)
        for box, score, label in zip(outputs['boxes'] * scale, outputs['scores'], outputs['labels']):
            left, top, right, bottom = map(float, box)
            name = model.meta['classes'][label]
            results.append(
                dict(
                    image_id=entry['id'],
                    category_id=categories[name],
                    bbox=[left, top, right - left, bottom - top],
                    score=float(score),
                )
            )
    if not results:
        return dict(box_ap=0.0, pictures=len(images))
    metric = COCOeval(truth, truth.loadRes(results), 'bbox')
    metric.params.imgIds = [entry['id'] for entry in images]
    metric.evaluate()
    metric.accumulate()
    metric.summarize()
    return dict(box_ap=float(metric.stats[0]), pictures=len(images))


def timed(model, path):
    """Return the median of seconds that a picture takes."""
    picture, times = read(path), []
    for _ in range(15):
        start = time.perf_counter()
        model.predict(picture)
        times.append(time.perf_counter() - start)
    return float(np.median(times[3:]))


def quantize(args, out):
    """Write the int8 model: the metadata stays."""
    model = Model(args.model)
    if model.meta['input']['dtype'] != 'uint8':
        sys.exit(f'error: {args.model} takes normalised images: export it with --normalize.')
    with tempfile.TemporaryDirectory() as folder:
        folded = Path(folder) / 'folded.onnx'
        quant_pre_process(str(args.model), str(folded), skip_symbolic_shape=True)
        quantize_static(
            str(folded),
            str(out),
            Pictures(model, find_pictures(args.calibration, args.count)),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=args.ops.split(','),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=unweighted(folded) + [name for name in args.exclude.split(',') if name],
        )
    source, written = onnx.load(args.model), onnx.load(out)
    onnx.helper.set_model_props(written, {entry.key: entry.value for entry in source.metadata_props})
    onnx.save(written, out)


def unweighted(path):
    """Return the names of products of two computed tensors: attention's."""
    graph = onnx.load(path).graph
    weights = {tensor.name for tensor in graph.initializer}
    return [node.name for node in graph.node if node.op_type == 'MatMul' and not weights & set(node.input)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('model', type=Path, help='ONNX file of export.py --normalize')
    parser.add_argument('calibration', help='folder with pictures of the training set')
    parser.add_argument('--val', required=True, help='folder of labelled pictures')
    parser.add_argument('--annotations', help="COCO's annotations, for a detector")
    parser.add_argument('--count', type=int, default=64, metavar='N', help='pictures for calibration (default 64)')
    parser.add_argument('--limit', type=int, metavar='N', help='measure N pictures (of each class) only')
    parser.add_argument('--ops', default='Conv,MatMul,Gemm', help='default: Conv,MatMul,Gemm')
    parser.add_argument('--exclude', default='', metavar='NODES', help='names of nodes that stay fp32')
    parser.add_argument('--out', type=Path, metavar='FILE', help='default: MODEL-int8.onnx')
    args = parser.parse_args()
    out = args.out or args.model.with_name(f'{args.model.stem}-int8.onnx')
    quantize(args, out)
    measure = average_precision if args.annotations else accuracy
    report = {}
    for path in (args.model, out):
        model = Model(path)
        report[path.name] = dict(
            measure(model, args), megabytes=path.stat().st_size / 1e6, seconds=timed(model, find_pictures(args.val)[0])
        )
    print(json.dumps(report, indent=1))


if __name__ == '__main__':
    main()
