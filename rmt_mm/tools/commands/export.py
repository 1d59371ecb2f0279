"""Export a model for other runtimes: ONNX, OpenVINO, torch.export, or machine code by Inductor.

python tools/deployment/export.py mask-rcnn_rmt-mini_fpn_4e_digits epoch_4.pth --dynamic --normalize
rmt-export rmt-small_8xb128_in1k rmt-s.pth --format openvino --shape 224 224
rmt-export --arch tiny --dynamic

Classifiers and segmentors are exported whole, as are RetinaNet, FCOS, ATSS, Faster and Mask R-CNN to onnx and openvino;
of other models --part features exports backbone and neck. With --arch, the backbone alone is exported, with random
weights or those of CHECKPOINT. The result is compared with PyTorch before it is kept.

tools/deployment/run.py predicts pictures with a whole model in ONNX, without torch.
"""

import argparse
import math
import os.path as osp
from importlib.util import find_spec
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor, nn

from ...backbone import RMT
from ...errors import UsageError
from ...version import __version__
from .. import cli
from ..cli.cfg_options import CfgOptions
from ..cli.predictor import load_predictor
from ..deployment.detectors import detector_graph
from ..deployment.files import check_target, replace_file, require
from ..deployment.graphs import Graph, classifier_graph, feature_graph, segmentor_graph
from ..deployment.inputs import ImageNorm, Preparation, read_preprocessor
from ..deployment.onnx_file import OPSETS, operators, run_onnx, write_onnx
from ..deployment.openvino_file import run_openvino, write_openvino
from ..deployment.pipeline import describe_pipeline
from ..deployment.torch_program import run_compiled, run_program, write_compiled, write_program
from ..flops import input_channels

SUFFIXES = {'onnx': '.onnx', 'openvino': '.xml', 'torch-export': '.pt2', 'aotinductor': '.pt2'}
RUNNERS: Dict[str, Callable[[str, Tensor], List[np.ndarray]]] = {
    'onnx': run_onnx,
    'openvino': run_openvino,
    'torch-export': run_program,
    'aotinductor': run_compiled,
}
GRAPHS: Dict[str, Callable[[Any, Preparation], Graph]] = dict(
    mmdet=detector_graph, mmseg=segmentor_graph, mmpretrain=classifier_graph
)
# Height and width of the published models, without --shape.
SHAPES = {'mmdet': (800, 1344), 'mmseg': (512, 512), 'mmpretrain': (224, 224)}
# Names of the channels of an image in the metadata; of other images their number, in the order of the file.
CHANNELS: Dict[int, Any] = {1: 'gray', 3: 'RGB'}
# Largest difference from PyTorch, relative to the largest output: rounding errors of the two precisions are 10 times
# smaller.
TOLERANCE, HALF_TOLERANCE = 1e-3, 5e-2


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', nargs='?', help='config file, or the name of one of ours')
    parser.add_argument('checkpoint', nargs='?', help='checkpoint with every tensor of the model')
    parser.add_argument('--arch', help='export the backbone alone: tiny, small, base or large; the config is left out')
    parser.add_argument('--format', default='onnx', metavar='NAME', help=f'{", ".join(SUFFIXES)} (default: onnx)')
    parser.add_argument('--part', choices=['whole', 'features'], default='whole', help='features: backbone and neck')
    parser.add_argument('--dynamic', action='store_true', help='one file for images of any size, and batches')
    parser.add_argument('--shape', type=int, nargs=2, metavar=('H', 'W'), help='size of the images without --dynamic')
    parser.add_argument(
        '--batch', type=int, default=1, metavar='N', help='images at once without --dynamic (default 1)'
    )
    parser.add_argument('--normalize', action='store_true', help='take uint8 RGB (B, H, W, 3); normalise in the graph')
    parser.add_argument('--half', action='store_true', help='weights in fp16')
    parser.add_argument(
        '--opset', type=int, default=OPSETS[0], metavar='N', help=f'of ONNX: {OPSETS[0]} (default) to {OPSETS[-1]}'
    )
    parser.add_argument('--out', metavar='FILE', help='default: NAME_OF_CONFIG and the suffix of the format')
    parser.add_argument('--force', action='store_true', help='replace FILE if it exists')
    parser.add_argument(
        '--cfg-options', nargs='+', action=CfgOptions, default={}, metavar='KEY=VALUE', help='change the config'
    )
    return parser.parse_args()


def check_options(args: argparse.Namespace) -> None:
    """Check the command line, and set ``args.out``."""
    if args.format not in SUFFIXES:
        raise UsageError(f'--format {args.format} is not known: choose one of {", ".join(SUFFIXES)}.')
    if args.arch and args.checkpoint:
        raise UsageError('--arch takes at most a checkpoint of the backbone, no config.')
    if args.arch:
        args.config, args.checkpoint, args.part = None, args.config, 'features'
        if args.normalize:
            raise UsageError('--normalize takes mean and std from a config: --arch has none.')
    elif args.checkpoint is None:
        raise UsageError('name a config and a checkpoint, or a size of the backbone with --arch.')
    if args.shape and min(args.shape) < 1 or args.batch < 1:
        raise UsageError('--shape and --batch must be positive.')
    if args.opset not in OPSETS:
        raise UsageError(f'--opset {args.opset} cannot be written: choose from {OPSETS[0]} to {OPSETS[-1]}.')
    for package in {'onnx': ['onnx'], 'openvino': ['onnx', 'openvino']}.get(args.format, []):
        require(package)
    suffix = SUFFIXES[args.format]
    name = f'rmt-{args.arch}' if args.arch else osp.splitext(osp.basename(args.config))[0]
    args.out = args.out or name + suffix
    if not args.out.endswith(suffix):
        raise UsageError(f'--out {args.out}: the name of a file of {args.format} ends in {suffix}.')
    check_target(args.out, args.force)


def load_backbone(arch: str, checkpoint: Optional[str]) -> RMT:
    """Return a backbone with the weights of a file, or random ones."""
    init_cfg = None if checkpoint is None else dict(type='Pretrained', checkpoint=checkpoint)
    try:
        backbone = RMT(arch, init_cfg=init_cfg)
    except ValueError as error:
        raise UsageError(f'--arch: {error}') from error
    torch.manual_seed(0)
    if checkpoint is not None:
        backbone.init_weights()
    return backbone


def fold(model: nn.Module) -> None:
    """Change every RMT of a model to the form for inference."""
    model.eval()
    for module in model.modules():
        if isinstance(module, RMT) and not module.deploy:
            module.switch_to_deploy()


def build(args: argparse.Namespace) -> Tuple[Graph, dict, Tuple[int, int]]:
    """Return the graph of the command line, its metadata, and the size of images without ``--shape``."""
    if args.arch:
        cli.force_safe_loading()
        backbone = load_backbone(args.arch, args.checkpoint)
        fold(backbone)
        prepare = Preparation(ImageNorm(), False)
        graph: Graph = feature_graph(backbone, prepare, prepare.example(1, 64, 64))
        return graph, dict(task=graph.task), SHAPES['mmpretrain']
    predictor = load_predictor(args.config, args.checkpoint, 'cpu', args.cfg_options)
    cfg, model = predictor.cfg, predictor.model
    library = cli.library(cfg)
    fold(model)
    channels = input_channels(model)
    norm = read_preprocessor(model.data_preprocessor, channels)
    prepare = Preparation(norm, args.normalize)
    if args.part == 'features':
        graph = feature_graph(model, prepare, prepare.example(1, 64, 64))
    else:
        graph = GRAPHS[library](model, prepare)
    pipeline = describe_pipeline(cfg.test_dataloader.dataset.pipeline)
    metadata: dict = dict(
        task=graph.task,
        classes=list(predictor.classes),
        palette=[list(colour) for colour in model.dataset_meta['palette']],
        mean=norm.mean,
        std=norm.std,
        pipeline=pipeline,
        config=osp.basename(cfg.filename),
    )
    if graph.task == 'detection' and getattr(model, 'roi_head', None) is not None and model.roi_head.with_mask:
        metadata['mask_threshold'] = model.test_cfg.rcnn.mask_thr_binary
    if graph.task == 'segmentation':
        head = model.decode_head
        metadata['align_corners'] = model.align_corners
        metadata['threshold'] = head.threshold if head.out_channels == 1 else None
    return graph, metadata, fixed_size(pipeline) or SHAPES[library]


def fixed_size(pipeline: Optional[Sequence[dict]]) -> Optional[Tuple[int, int]]:
    """Return height and width if a pipeline gives all pictures one size."""
    if not pipeline:
        return None
    last = pipeline[-1]
    if last['op'] == 'center_crop':
        return tuple(last['size'])  # type: ignore[return-value]
    if last['op'] == 'resize' and not last['keep_ratio']:
        return last['scale'][1], last['scale'][0]
    return None


def write(args: argparse.Namespace, path: str, graph: Graph, example: Tensor, metadata: dict) -> None:
    """Write a file in the format of the command line."""
    if args.format == 'onnx':
        write_onnx(graph, example, path, args.dynamic, args.opset, metadata)
    elif args.format == 'openvino':
        write_openvino(graph, example, path, args.dynamic, args.opset, metadata, args.half)
    else:
        writer = write_program if args.format == 'torch-export' else write_compiled
        writer(graph, example, path, args.dynamic)


def compare(args: argparse.Namespace, path: str, graph: Graph, shapes: Sequence[Tuple[int, int, int]]) -> None:
    """Run the file, and compare its outputs with the graph's.

    Raises:
        UsageError: they differ by more than rounding. Boxes are reported only: rounding can change their order.
    """
    for batch, height, width in shapes:
        image = graph.prepare.example(batch, height, width)
        with torch.no_grad():
            expected = graph(image)
        expected = expected if isinstance(expected, (tuple, list)) else (expected,)
        found = RUNNERS[args.format](path, image)
        place = f'{batch} x {height} x {width}'
        if [tuple(out.shape) for out in expected] != [out.shape for out in found]:
            print(f'{place}: {len(found[0])} boxes, PyTorch {len(expected[0])}')
            continue
        errors = [largest_difference(out.numpy(), other) for out, other in zip(expected, found)]
        is_equal = max(errors) < (HALF_TOLERANCE if args.half else TOLERANCE)
        if is_equal or graph.task != 'detection':
            print(f'{place}: equal to PyTorch to {max(errors):.1e} of the largest value')
        else:
            print(f'{place}: as many boxes as PyTorch finds, {len(found[0])}, in another order or place')
        if graph.task != 'detection' and not is_equal:
            raise UsageError(f'the file does not compute what PyTorch computes for images of {place}: it is not kept.')


def largest_difference(expected: np.ndarray, found: np.ndarray) -> float:
    """Return the largest difference of two arrays over the largest value; 0 for empty ones, infinite for NaN."""
    if not expected.size:
        return 0.0
    error = float(np.abs(expected.astype(np.float64) - found).max() / max(float(np.abs(expected).max()), 1e-12))
    return math.inf if math.isnan(error) else error


def export(args: argparse.Namespace) -> None:
    check_options(args)
    graph, metadata, default = build(args)
    graph.eval()
    shape = tuple(args.shape or default)
    batch = args.batch
    if not graph.takes_batches and batch > 1:
        raise UsageError(f'--batch {batch}: a whole detector takes one image at a time.')
    if args.dynamic:  # a small example is recorded faster; two images, so that no axis of the example has length 1
        batch, shape = (2 if graph.takes_batches else 1), tuple(args.shape or (96, 128))
    if args.half and args.format != 'openvino':
        graph.use_half()
    norm = graph.prepare.norm
    axes = 'BHWC' if args.normalize else 'BCHW'
    metadata.update(
        version=__version__,
        input=dict(
            axes=axes,
            dtype='uint8' if args.normalize else 'float32',
            channels=CHANNELS.get(len(norm.mean), len(norm.mean)),
            dynamic=args.dynamic,
        ),
    )
    shapes = [(batch, *shape)] + ([(batch + graph.takes_batches, 97, 131)] if args.dynamic else [])
    with replace_file(args.out) as path:
        write(args, path, graph, graph.prepare.example(batch, *shape), metadata)
        print(f'{args.out}: {graph.task}, {", ".join(graph.outputs)}')
        if args.format == 'onnx':
            counts = operators(require('onnx').load(path))
            print(f'operators of opset {args.opset}: ' + ', '.join(f'{name} {count}' for name, count in counts.items()))
        if args.format == 'onnx' and find_spec('onnxruntime') is None:
            print('not compared with PyTorch: onnxruntime is not installed (pip install "rmt-mm[deploy]").')
        else:
            compare(args, path, graph, shapes)


def main() -> None:
    args = parse_args()
    with cli.exit_on_error(*cli.FOREIGN_ERRORS):
        export(args)


if __name__ == '__main__':  # python -m
    main()
