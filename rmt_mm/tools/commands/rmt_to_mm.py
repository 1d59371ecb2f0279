"""Convert the authors' RMT checkpoints for mmpretrain, mmdetection 3 and mmsegmentation 1, or back.

python tools/model_converters/rmt_to_mm.py RMT_S.pth checkpoints/rmt-s.pth
rmt-convert RMT_S.pth checkpoints/rmt-s.pth
"""

import argparse
import os.path as osp

from ...checkpoints.files import check_destination, file_hash, read_checkpoint, write_checkpoint
from ...checkpoints.official_model import TASKS, WEIGHTS, OfficialModel, parse_checkpoint
from ...checkpoints.official_names import is_official
from ...checkpoints.safe import OFFICIAL_TYPES
from ...checkpoints.state_dicts import pick_state_dict
from ...errors import CheckpointError, printable
from .. import cli


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f'{text} is not a positive number')
    return number


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('src', metavar='SRC', help='official checkpoint; also one of this package (.pth, .safetensors)')
    parser.add_argument('dst', metavar='DST', help='file to write: .pth or .safetensors')
    parser.add_argument(
        '--weights',
        choices=WEIGHTS,
        default='auto',
        help='which weights of an official classifier: raw (model) or their moving average (model_ema); '
        'auto takes the raw ones where there are both',
    )
    parser.add_argument(
        '--task',
        choices=TASKS,
        default='auto',
        help='auto: what the file is; dense: its backbone alone; classification: a token-label model without its '
        'auxiliary head',
    )
    parser.add_argument('--in-channels', type=positive, metavar='N', help='adapt the stem to images of N channels')
    parser.add_argument(
        '--num-classes', type=positive, metavar='N', help='leave tensors out that are for other than N classes'
    )
    parser.add_argument('--to-official', action='store_true', help='the other way: SRC is a checkpoint of this package')
    parser.add_argument('--publish', action='store_true', help="append the file's hash to its name: DST-1a2b3c4d.pth")
    parser.add_argument('--force', action='store_true', help='replace DST if it exists')
    parser.add_argument(
        '--allow-type',
        action='append',
        default=[],
        metavar='MODULE.NAME',
        help='accept a file that holds objects of this type; they are left out, nothing of them is imported or run',
    )
    return parser.parse_args(argv)


def convert(args: argparse.Namespace) -> None:
    """Read, check, convert and write a checkpoint; write nothing if an earlier step fails."""
    check_destination(args.dst, args.force)
    if osp.exists(args.dst) and osp.samefile(args.src, args.dst):
        raise CheckpointError(f'{args.dst} is SRC itself: choose another name.')
    checkpoint = read_checkpoint(args.src, allow_types=[*OFFICIAL_TYPES, *args.allow_type])
    try:
        model = parse_checkpoint(checkpoint, args.weights, args.task)
        adapt(model, args)
    except CheckpointError as error:
        raise error.at(args.src) from error
    if args.to_official:
        if is_official(pick_state_dict(checkpoint)[1]):
            raise CheckpointError(f'{args.src} is an official checkpoint already.')
        converted = model.to_official()
    else:
        converted = model.to_ours(source=osp.basename(args.src), source_sha256=file_hash(args.src))
    path = write_checkpoint(converted, args.dst, args.force, args.publish)
    report = [f'source: {args.src}', *model.report()]
    if args.weights == 'auto' and model.weights == 'model' and 'model_ema' in checkpoint:
        report.append('--weights model_ema takes the moving average')
    report.append(f'written: {path} (sha256 {file_hash(path)})')
    print('\n'.join(map(printable, report)))


def adapt(model: OfficialModel, args: argparse.Namespace) -> None:
    if args.in_channels is not None:
        model.adapt_in_channels(args.in_channels)
    if args.num_classes is not None:
        model.adapt_num_classes(args.num_classes)


def main(argv=None) -> None:
    with cli.exit_on_error(OSError):
        convert(parse_args(argv))


if __name__ == '__main__':  # python -m
    main()
