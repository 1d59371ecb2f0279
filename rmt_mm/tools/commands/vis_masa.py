"""Draw what RMT does with an image: prior and attention of a token, features, effective receptive field.

python tools/analysis_tools/vis_masa.py CONFIG CHECKPOINT scene.jpg --query 80 60 --stage 2 --block -1 --out-dir outputs
rmt-vis-masa mask-rcnn_rmt-t_fpn_amp-1x_coco epoch_12.pth 'photos/*.jpg' --draw attention features receptive-field

For each image, as PNG and as SVG:

- NAME_attention_stageS_blockB: for each head and their mean, the decay around the query with lines of equal Manhattan
  distance, the softmax of the scores alone, and the attention that results. The drawn attention, applied to the values,
  is compared with the output of MaSA, and the difference is printed.
- NAME_features: the outputs of the backbone, their three principal components as red, green and blue.

And for all images together, receptive_field: how much the centre of each output depends on each pixel, beside mmdet's
Swin-T and ResNet-50.
"""

import argparse
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Sequence, Tuple

import numpy as np
import torch
from mmengine.logging import MMLogger
from torch import Tensor, nn

from ...backbone import RMT
from ...errors import UsageError
from .. import cli
from ..analysis import (
    Recorded,
    View,
    attend_by_map,
    attention_maps,
    features_as_colours,
    find_backbone,
    receptive_fields,
    record,
)
from ..cli.cfg_options import CfgOptions
from ..cli.images import find_images
from ..cli.predictor import SIZE_ERRORS, Predictor, as_shown, load_predictor

DRAWINGS = ('attention', 'features', 'receptive-field')
# MaSA's output and the drawn attention applied to the values differ by rounding: far less than this.
TOLERANCE = 1e-4
MAX_COLUMNS = 9  # heads side by side
RIVALS: Dict[str, Dict[str, Any]] = {
    'Swin-T': dict(
        type='mmdet.SwinTransformer',
        embed_dims=96,
        depths=[2, 2, 6, 2],
        num_heads=[3, 6, 12, 24],
        window_size=7,
        convert_weights=True,
    ),
    # Zeros in every residual branch would leave random weights with the shortcuts alone.
    'ResNet-50': dict(type='mmdet.ResNet', depth=50, out_indices=(0, 1, 2, 3), zero_init_residual=False),
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file, or the name of one of ours')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('input', help='image, folder of images, or pattern such as "photos/*.jpg"')
    parser.add_argument(
        '--query', type=float, nargs=2, metavar=('X', 'Y'), help='pixel of the image (default: its centre)'
    )
    parser.add_argument('--stage', type=int, default=2, help='from 0 to 3, -1 is the last (default 2)')
    parser.add_argument('--block', type=int, default=-1, help='of the stage, from 0 (default -1, the last)')
    parser.add_argument('--head', type=int, nargs='+', metavar='N', help='heads to draw, from 0 (default: all)')
    parser.add_argument(
        '--draw', nargs='+', choices=DRAWINGS, default=['attention', 'features'], help='(default: attention features)'
    )
    parser.add_argument('--swin', metavar='FILE', help='ImageNet weights of Swin-T (default: random)')
    parser.add_argument('--resnet', metavar='FILE', help='ImageNet weights of ResNet-50 (default: random)')
    parser.add_argument('--out-dir', default='outputs', metavar='DIR', help='default: outputs')
    parser.add_argument('--device', help='such as cpu or cuda:1 (default: a GPU if there is one)')
    parser.add_argument(
        '--cfg-options', nargs='+', action=CfgOptions, default={}, metavar='KEY=VALUE', help='change the config'
    )
    return parser.parse_args()


class Figures:
    """Draws, and saves as PNG and SVG.

    Args:
        folder (Path): of the files.
    """

    def __init__(self, folder: Path) -> None:
        import matplotlib

        matplotlib.use('Agg')
        import matplotlib.pyplot as plt

        # Letters stay letters in SVG, which a paper's authors can edit.
        plt.rcParams.update({'font.size': 7, 'svg.fonttype': 'none', 'axes.titlesize': 7, 'figure.dpi': 200})
        self._plt, self._folder = plt, folder

    def save(self, figure: Any, name: str) -> None:
        for suffix in ('png', 'svg'):
            path = self._folder / f'{name}.{suffix}'
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, bbox_inches='tight')
        self._plt.close(figure)
        print(f'{self._folder / name}.png, .svg')

    def panels(self, rows: int, columns: int, aspect: float, size: float = 1.15) -> Tuple[Any, np.ndarray]:
        """Return a figure and its (rows, columns) axes, without ticks; ``size`` is the width of a panel in inches."""
        figure, axes = self._plt.subplots(
            rows, columns, squeeze=False, figsize=(columns * size, rows * size * aspect), layout='compressed'
        )
        for axis in axes.flat:
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_linewidth(0.3)
        return figure, axes

    def attention(self, image: np.ndarray, view: View, maps: Any, heads: Sequence[int], stride: int, query: Any) -> Any:
        """Draw rows of decay, softmax and attention; columns are the mean of all heads, then ``heads``."""
        token, (x, y) = query
        columns = ['mean', *heads]
        bands = [columns[i : i + MAX_COLUMNS] for i in range(0, len(columns), MAX_COLUMNS)]
        height, width = image.shape[:2]
        figure, axes = self.panels(3 * len(bands), min(len(columns), MAX_COLUMNS), height / width)
        for axis in axes.flat:
            axis.set_visible(False)
        gray = image.mean(2) * 0.6 + 255 * 0.4
        for band, names in enumerate(bands):
            for row, (label, values) in enumerate(zip(('decay', 'softmax of\nscores alone', 'attention'), maps)):
                chosen = torch.stack([values.mean(0) if name == 'mean' else values[name] for name in names])
                for column, (name, drawn) in enumerate(zip(names, view.on_image(chosen, stride, 'nearest').numpy())):
                    axis = axes[3 * band + row, column]
                    axis.set_visible(True)
                    axis.imshow(gray, cmap='gray', vmin=0, vmax=255)
                    # The square root shows small weights too; the brightest token of a panel has the last colour.
                    top = max(float(np.nanmax(drawn)), 1e-30)
                    axis.imshow(np.sqrt(drawn / top), cmap='magma', vmin=0, vmax=1, alpha=0.75)
                    axis.plot(x, y, '+', color='cyan', markersize=4, markeredgewidth=0.8)
                    if label == 'decay':
                        self._distances(axis, view, token, stride)
                        axis.set_title(name if name == 'mean' else f'head {name}', pad=2)
                    if column == 0:
                        axis.set_ylabel(label)
        return figure

    def _distances(self, axis: Any, view: View, token: Tuple[int, int], stride: int) -> None:
        """Draw lines of equal Manhattan distance, 2, 4, 8, ... tokens from the query."""
        x, y = view.pixel(*token, stride)
        distance = 2
        while distance * stride < max(view.window_height, view.window_width):
            dx, dy = distance * stride / view.scale_x, distance * stride / view.scale_y
            axis.plot(
                [x - dx, x, x + dx, x, x - dx], [y, y - dy, y, y + dy, y], color='white', linewidth=0.35, alpha=0.8
            )
            distance *= 2
        axis.set(xlim=(-0.5, view.width - 0.5), ylim=(view.height - 0.5, -0.5))

    def features(
        self, image: np.ndarray, view: View, outs: Sequence[Tensor], names: Sequence[str], strides: Any
    ) -> Any:
        figure, axes = self.panels(1, 1 + len(outs), image.shape[0] / image.shape[1], 1.6)
        axes[0, 0].imshow(image)
        axes[0, 0].set_title('image', pad=2)
        for axis, out, name, stride in zip(axes[0, 1:], outs, names, strides):
            colours = view.on_image(features_as_colours(out.float().cpu()), stride, 'nearest')
            axis.imshow(np.nan_to_num(colours.numpy(), nan=1.0).transpose(1, 2, 0))
            axis.set_title(name, pad=2)
        return figure

    def receptive_fields(self, fields: Dict[str, List[Tensor]], strides: Dict[str, Sequence[int]]) -> Any:
        columns = max(map(len, fields.values()))
        height, width = next(iter(fields.values()))[0].shape
        figure, axes = self.panels(len(fields), columns, height / width, 1.6)
        for axis in axes.flat:
            axis.set_visible(False)
        for row, (name, maps) in enumerate(fields.items()):
            for column, field in enumerate(maps):
                axis = axes[row, column]
                axis.set_visible(True)
                top = float(field.max()) or 1.0
                axis.imshow((field / top).clamp(min=1e-4).log10(), cmap='viridis', vmin=-4, vmax=0)
                side = side_of_share(field, 0.5)
                axis.set_title(f'stride {strides[name][column]}: half in {side} px', pad=2)
                if column == 0:
                    axis.set_ylabel(name)
        return figure


def side_of_share(field: Tensor, share: float) -> int:
    """Return the side, in pixels, of the smallest square around the centre that holds this share of a field."""
    height, width = field.shape
    for radius in range(max(height, width)):
        top, left = max(0, height // 2 - radius), max(0, width // 2 - radius)
        if field[top : height // 2 + radius + 1, left : width // 2 + radius + 1].sum() >= share * field.sum():
            return 2 * radius + 1
    return max(height, width)


class Found(NamedTuple):
    """A pass of one image through the model."""

    recorded: Recorded
    view: View


def find(predictor: Predictor, backbone: RMT, image: np.ndarray, args: argparse.Namespace) -> Found:
    samples: List[Any] = []
    try:
        recorded = record(backbone, lambda: samples.append(predictor.predict(image)), args.stage, args.block)
    except (IndexError, ValueError) as error:
        raise UsageError(str(error)) from error
    return Found(recorded, View.from_metainfo(samples[0].metainfo))


def draw_attention(
    figures: Figures, found: Found, backbone: RMT, image: np.ndarray, name: str, args: argparse.Namespace
) -> None:
    (masa, tokens, out, _), stage = found.recorded, args.stage % len(backbone.stages)
    x, y = args.query or ((image.shape[1] - 1) / 2, (image.shape[0] - 1) / 2)
    try:
        token = found.view.token(x, y, backbone.strides[stage])
    except ValueError as error:
        raise UsageError(f'--query: {error}') from error
    heads = range(masa.num_heads) if args.head is None else args.head
    if not all(0 <= head < masa.num_heads for head in heads):
        raise UsageError(f'--head: stage {stage} has the heads 0 to {masa.num_heads - 1}.')
    try:
        maps = attention_maps(masa, tokens, token)
    except ValueError as error:
        raise UsageError(f'{name}: {error}') from error
    difference = (attend_by_map(masa, tokens, maps.attention, token) - out[token]).abs().max() / out[token].abs().max()
    print(f'{name}: the drawn attention gives the output of MaSA to {float(difference):.0e} of its largest value.')
    if not difference < TOLERANCE:
        raise UsageError(f'{name}: the model computes in too low a precision to draw what it attends to: use fp32.')
    figure = figures.attention(
        image, found.view, [m.cpu() for m in maps], heads, backbone.strides[stage], (token, (x, y))
    )
    block = args.block % backbone.arch.depths[stage]
    figures.save(figure, f'{name}_attention_stage{stage}_block{block}')


def draw_features(figures: Figures, found: Found, backbone: RMT, image: np.ndarray, name: str) -> None:
    with torch.no_grad():
        outs = backbone(found.recorded.image[None])
    strides = [backbone.strides[i] for i in backbone.out_indices]
    names = [f'stride {stride}, {out.shape[1]} channels' for stride, out in zip(strides, outs)]
    figures.save(figures.features(image, found.view, [out[0] for out in outs], names, strides), f'{name}_features')


def build_rivals(args: argparse.Namespace, device: torch.device, channels: int) -> Dict[str, nn.Module]:
    """Build mmdet's Swin-T and ResNet-50, with the weights that the options name."""
    if channels != 3:
        print(f'Swin-T and ResNet-50 take three channels, not {channels}: the receptive fields are those of RMT alone.')
        return {}
    if find_spec('mmdet') is None:
        print('mmdet is not installed: the receptive fields are those of RMT alone.')
        return {}
    import mmdet.models  # noqa: F401
    from mmengine.registry import MODELS

    rivals = {}
    MMLogger.get_current_instance().setLevel('ERROR')  # initialisation logs a paragraph per parameter
    for (name, cfg), option in zip(RIVALS.items(), ('swin', 'resnet')):
        path, init_cfg = getattr(args, option), None
        if path is not None:
            init_cfg = dict(type='Pretrained', checkpoint=cli.check_file(path, f'--{option}'))
        torch.manual_seed(0)
        model = MODELS.build(dict(cfg, init_cfg=init_cfg))
        model.init_weights()
        rivals[f'{name}\n({Path(path).name if path else "random weights"})'] = model.to(device)
    return rivals


def draw_receptive_fields(figures: Figures, backbone: RMT, inputs: List[Tensor], args: argparse.Namespace) -> None:
    size = tuple(min(image.shape[i] for image in inputs) for i in (2, 3))
    images = torch.cat([image[..., : size[0], : size[1]] for image in inputs])
    models: Dict[str, nn.Module] = {
        f'RMT\n({Path(args.checkpoint).name})': backbone,
        **build_rivals(args, images.device, images.shape[1]),
    }
    fields: Dict[str, List[Tensor]] = {}
    strides: Dict[str, Sequence[int]] = {}
    for name, model in models.items():
        fields[name] = receptive_fields(model, images)
        strides[name] = [backbone.strides[i] for i in backbone.out_indices] if model is backbone else (4, 8, 16, 32)
    figures.save(figures.receptive_fields(fields, strides), 'receptive_field')


def run(args: argparse.Namespace) -> int:
    paths = find_images(args.input)
    try:
        os.makedirs(args.out_dir, exist_ok=True)
    except OSError as error:
        raise UsageError(f'--out-dir {args.out_dir} cannot be made: {error.strerror}.') from error
    if find_spec('matplotlib') is None:
        raise UsageError('pictures need matplotlib, which is not installed: pip install "rmt-mm[report]".')
    figures = Figures(Path(args.out_dir))
    predictor = load_predictor(args.config, args.checkpoint, args.device, args.cfg_options)
    try:
        backbone = find_backbone(predictor.model)
    except ValueError as error:
        raise UsageError(str(error)) from error
    stems, inputs, skipped = [path.stem for path in paths], [], 0
    for path in paths:
        try:
            image = predictor.read(path)
        except UsageError as error:
            print(f'skipped: {error}')
            skipped += 1
            continue
        name = path.stem if stems.count(path.stem) == 1 else path.name
        found, image = find(predictor, backbone, image, args), as_shown(image)
        if 'attention' in args.draw:
            draw_attention(figures, found, backbone, image, name, args)
        if 'features' in args.draw:
            draw_features(figures, found, backbone, image, name)
        if 'receptive-field' in args.draw:
            inputs.append(found.recorded.image[None])
    if inputs:
        draw_receptive_fields(figures, backbone, inputs, args)
    return skipped


def main() -> None:
    args = parse_args()
    with cli.exit_on_error(*cli.FOREIGN_ERRORS, *SIZE_ERRORS):
        skipped = run(args)
    raise SystemExit(1 if skipped else 0)


if __name__ == '__main__':  # python -m
    main()
