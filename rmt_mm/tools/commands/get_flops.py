"""Count the parameters, multiply-adds and activations of a config's model.

    python tools/get_flops.py configs/detection/mask-rcnn_rmt-t_fpn_amp-1x_coco.py --shape 800 1280

Models are counted from shapes alone, without computing, so that large sizes cost neither memory nor time; detectors
that choose queries by their scores run on the CPU. One multiply-add is one multiplication and one addition ("GFLOPs"
in most papers).
"""

import argparse
import json

from mmengine.registry import MODELS, init_default_scope

from .. import cli

# Image sizes of the published tables.
DEFAULT_SHAPES = {'mmdet': (800, 1280), 'mmseg': (512, 2048), 'mmpretrain': (224, 224)}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file, or the name of one of ours')
    parser.add_argument(
        '--shape',
        type=int,
        nargs=2,
        metavar=('H', 'W'),
        help='size of the image (default: 800 1280 in detection, 512 2048 in segmentation, 224 224 in classification)',
    )
    parser.add_argument('--json', action='store_true', help='print one JSON object')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with cli.exit_on_error(*cli.FOREIGN_ERRORS):
        report = measure(args.config, args.shape)
    print(json.dumps(report) if args.json else describe(report))


def measure(config: str, shape=None) -> dict:
    """Build a config's model, count, and return what ``--json`` prints."""
    from .. import flops

    path = cli.find_config(config)
    cfg = cli.read_config(path)
    scope = cli.library(cfg)
    init_default_scope(scope)
    shape = tuple(shape or DEFAULT_SHAPES.get(scope, (224, 224)))
    if min(shape) < 1:
        raise cli.UsageError(f'--shape {shape[0]} {shape[1]}: height and width must be positive.')
    cli.check_backbones(cfg, path)
    model = MODELS.build(cfg.model)
    try:
        counts, computed = flops.count(model, shape), False
    except (NotImplementedError, RuntimeError):  # the model needs values, not only shapes
        model = MODELS.build(cfg.model)
        text = f'the model of {config} does not run on an image of {shape[0]} x {shape[1]}'
        with cli.as_sentence(cli.UsageError, text):
            counts, computed = flops.count(model, shape, device='cpu'), True

    gmac = {kind: counts[kind] / 1e9 for kind in ('convolution', 'linear', 'attention')}
    total = sum(gmac.values())
    return dict(
        config=config,
        shape=shape,
        params=counts['params'],
        params_backbone=counts['params_backbone'],
        gmac=total,
        gmac_convolution=gmac['convolution'],
        gmac_linear=gmac['linear'],
        gmac_attention=gmac['attention'],
        # The paper counts classifiers differently from detectors and segmentors.
        gmac_published=total * 1e9 / 2**30 if scope == 'mmpretrain' else gmac['convolution'] + gmac['linear'],
        published_convention='all multiply-adds / 2^30'
        if scope == 'mmpretrain'
        else 'multiply-adds / 10^9 of convolutions and Linear layers, without attention products',
        activations=counts['activations'],
        computed=computed,
    )


def describe(report: dict) -> str:
    return '\n'.join(
        (
            f'{report["config"]}, image of {report["shape"][0]} x {report["shape"][1]}',
            f'parameters          {report["params"] / 1e6:9.2f} M, backbone {report["params_backbone"] / 1e6:.2f} M',
            f'multiply-adds       {report["gmac"]:9.2f} G',
            f'  convolutions      {report["gmac_convolution"]:9.2f} G',
            f'  Linear layers     {report["gmac_linear"]:9.2f} G',
            f'  attention         {report["gmac_attention"]:9.2f} G, queries with keys, and weights with values',
            f'counted as in paper {report["gmac_published"]:9.2f} G, {report["published_convention"]}',
            f'activations         {report["activations"] / 1e6:9.2f} M, elements that these put out',
        )
    )


if __name__ == '__main__':  # python -m
    main()
