"""Train a config of mmdetection, mmsegmentation or mmpretrain (its default_scope decides which).

    python tools/train.py configs/detection/mask-rcnn_rmt-t_fpn_amp-1x_coco.py
"""
import argparse
import sys

from rmt_mm import launch
from rmt_mm.data_check import build_data


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file')
    launch.add_common_arguments(parser)
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='PATH',
        help='continue from PATH, or without it from the last checkpoint in the work dir (from the start if none)')
    parser.add_argument('--amp', action='store_true', help='train with automatic mixed precision')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate by actual batch size / auto_scale_lr.base_batch_size')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with launch.one_sentence():
        cfg = launch.load_config(args)
        launch.check_datasets(cfg, 'train_dataloader', 'val_dataloader')
        launch.check_annotations(cfg, 'val_evaluator')
        if args.amp:
            launch.use_amp(cfg)
        if args.auto_scale_lr:
            launch.require_auto_scale_lr(cfg)
            cfg.auto_scale_lr.enable = True
        if args.resume is not None:
            cfg.resume = True
            cfg.load_from = launch.latest_checkpoint(cfg.work_dir) if args.resume == 'auto' else args.resume
            if cfg.load_from is None:
                print(f'Nothing to resume in {cfg.work_dir}: training from the start.')
        if cfg.get('load_from'):
            launch.check_checkpoint(cfg.load_from)

    with launch.one_sentence(*launch.BUILD_ERRORS):
        runner = launch.build_runner(cfg)
        build_data(runner, 'train', 'val')
    try:
        with launch.one_sentence():
            runner.train()
    except KeyboardInterrupt:
        print(f'\nInterrupted. What was saved is in {cfg.work_dir}; continue, with the same other options, by\n'
              f'  python {sys.argv[0]} {args.config} --work-dir {cfg.work_dir} --resume', file=sys.stderr)
        sys.exit(130)


if __name__ == '__main__':
    main()
