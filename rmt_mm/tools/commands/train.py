"""Train a config of mmdetection, mmsegmentation or mmpretrain (its default_scope decides which).

python tools/train.py configs/detection/mask-rcnn_rmt-t_fpn_amp-1x_coco.py
rmt-train mask-rcnn_rmt-t_fpn_amp-1x_coco
"""

import argparse
import sys

from ...training.config_key import naming_the_key
from ...training.data_check import build_data
from ...training.divergence import DivergenceHook
from ...training.faults import explaining_faults, name_images
from ...training.seed_hook import SeedHook
from .. import cli


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file, or the name of one of ours')
    cli.add_common_arguments(parser)
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='PATH',
        help='continue from PATH, or without it from the newest whole checkpoint in the work dir, if there is one',
    )
    parser.add_argument('--amp', action='store_true', help='train with automatic mixed precision')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate by actual batch size / auto_scale_lr.base_batch_size',
    )
    parser.add_argument('--brief', action='store_true', help='show one line per epoch; the log file has everything')
    parser.add_argument(
        '--vis-backend', metavar='NAME', help='write curves to this backend of mmengine too, such as tensorboard'
    )
    return parser.parse_args()


def run(args: argparse.Namespace) -> None:
    with cli.exit_on_error():
        cfg = cli.load_config(args)
        cli.check_training_settings(cfg)
        cli.check_datasets(cfg, 'train_dataloader', 'val_dataloader')
        cli.check_annotations(cfg, 'val_evaluator')
        if args.amp:
            cli.use_amp(cfg)
        if args.auto_scale_lr:
            cli.use_auto_scale_lr(cfg)
        if args.vis_backend:
            cli.use_vis_backend(cfg, args.vis_backend)
        cli.choose_checkpoint(cfg, args.resume)
        cli.check_init_cfgs(cfg)

    with cli.exit_on_error(*cli.FOREIGN_ERRORS), naming_the_key(cfg):
        runner = cli.build_runner(cfg, args.brief)
        cli.watch_loading(runner, cfg.get('load_from'), 'resume' if cfg.get('resume') else 'start')
        name_images(runner)
        build_data(runner, 'train', 'val')
        cli.check_saving(runner)
        runner.register_hook(SeedHook(restart=(cfg.get('randomness') or {}).get('seed') is not None))
        runner.register_hook(DivergenceHook())
    try:
        with cli.exit_on_error(), naming_the_key(cfg), explaining_faults(cfg.work_dir):
            runner.train()
    except KeyboardInterrupt:
        print(
            f'\nInterrupted. What was saved is in {cfg.work_dir}; continue, with the same other options, by\n'
            f'  {cli.program()} {args.config} --work-dir {cfg.work_dir} --resume',
            file=sys.stderr,
        )
        sys.exit(130)


def main() -> None:
    args = parse_args()
    with cli.process_group():
        run(args)


if __name__ == '__main__':  # python -m
    main()
