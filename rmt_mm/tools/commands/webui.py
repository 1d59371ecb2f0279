"""Try a model in the browser: drop a picture, see boxes, masks or classes, and where the attention looks.

python tools/webui.py configs/detection/mask-rcnn_rmt-mini_fpn_4e_digits.py work_dirs/demo/epoch_4.pth
rmt-webui mask-rcnn_rmt-t_fpn_amp-1x_coco epoch_12.pth --port 8000

Needs gradio: pip install rmt-mm[webui]. The page is for this machine only, unless --host names another interface.
"""

import argparse
import os
from importlib.util import find_spec
from pathlib import Path

from ...errors import UsageError
from .. import cli
from ..cli.cfg_options import CfgOptions
from ..cli.predictor import check_device, load_predictor


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file, or the name of one of ours')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--host', default='127.0.0.1', help='interface to serve; 0.0.0.0: all (default: 127.0.0.1)')
    parser.add_argument('--port', type=int, default=7860, help='default: 7860')
    parser.add_argument('--max-megabytes', type=float, default=20, metavar='MB', help='largest upload (default: 20)')
    parser.add_argument(
        '--max-pixels', type=int, default=16_000_000, metavar='N', help='largest picture (default: 16000000)'
    )
    parser.add_argument('--device', help='such as cpu or cuda:1 (default: a GPU if there is one)')
    parser.add_argument(
        '--cfg-options', nargs='+', action=CfgOptions, default={}, metavar='KEY=VALUE', help='change the config'
    )
    return parser.parse_args()


def check_options(args: argparse.Namespace) -> None:
    if find_spec('gradio') is None:
        raise UsageError('the page needs gradio, which is not installed: pip install "rmt-mm[webui]".')
    if not 1 <= args.port <= 65535:
        raise UsageError(f'--port {args.port}: ports are from 1 to 65535.')
    for option, value in (('--max-megabytes', args.max_megabytes), ('--max-pixels', args.max_pixels)):
        if not 0 < value < float('inf'):
            raise UsageError(f'{option} {value}: it must be above 0.')
    check_device(args.device)


def run(args: argparse.Namespace) -> None:
    check_options(args)
    os.environ['GRADIO_ANALYTICS_ENABLED'] = 'False'  # before gradio is imported
    from ..webui.server import check_address, private_folder, serve

    check_address(args.host, args.port)  # before the model is built, which takes longer
    predictor = load_predictor(args.config, args.checkpoint, args.device, args.cfg_options)

    from ..webui.examples import find_examples
    from ..webui.page import Page, describe_model
    from ..webui.trial import Trial

    with private_folder():
        page = Page(Trial(predictor, args.max_pixels), find_examples(predictor.cfg, 8))
        name = Path(args.config).name.removesuffix('.py')
        blocks = page.build(name, describe_model(predictor, args.checkpoint))
        serve(blocks, args.host, args.port, args.max_megabytes, name)


def main() -> None:
    args = parse_args()
    try:
        with cli.exit_on_error(*cli.FOREIGN_ERRORS):
            run(args)
    except KeyboardInterrupt:  # Ctrl-C, at any time
        print()


if __name__ == '__main__':  # python -m
    main()
