"""Evaluate a checkpoint with a config of mmdetection, mmsegmentation or mmpretrain (its default_scope decides which).

python tools/test.py configs/detection/mask-rcnn_rmt-t_fpn_amp-1x_coco.py work_dirs/.../epoch_12.pth
rmt-test mask-rcnn_rmt-t_fpn_amp-1x_coco work_dirs/.../epoch_12.pth
"""

import argparse
import copy
from typing import Sequence

import torch
from mmengine.evaluator import DumpResults

from ...ops.memory import keep_freed_memory
from ...training.config_key import naming_the_key
from ...training.data_check import build_data
from ...training.faults import explaining_faults, name_images
from .. import cli


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file, or the name of one of ours')
    parser.add_argument('checkpoint', help='checkpoint file')
    cli.add_common_arguments(parser)
    parser.add_argument('--out', metavar='FILE.pkl', help='save the predictions, for offline evaluation')
    parser.add_argument('--show-dir', metavar='DIR', help='draw the predictions into this folder')
    parser.add_argument('--tta', action='store_true', help='test-time augmentation, as tta_pipeline describes it')
    return parser.parse_args()


def run(args: argparse.Namespace) -> None:
    with cli.exit_on_error():
        if args.out and not args.out.endswith(('.pkl', '.pickle')):
            raise cli.UsageError(f'--out {args.out}: predictions are pickled, the file must end in .pkl.')
        cfg = cli.load_config(args)
        cli.check_datasets(cfg, 'test_dataloader')
        cli.check_annotations(cfg, 'test_evaluator')
        cfg.load_from, cfg.resume = cli.check_file(args.checkpoint, 'CHECKPOINT'), False
        given = copy.deepcopy(cfg)
        if args.tta:
            cli.use_tta(cfg)
        if args.show_dir:
            cli.draw_predictions(cfg, args.show_dir)

    if not torch.cuda.is_available():
        keep_freed_memory()
    with cli.exit_on_error(*cli.FOREIGN_ERRORS), naming_the_key(cfg):
        with cli.keep_config(given):
            runner = cli.build_runner(cfg)
            cli.record_config(runner, given)  # other tools, and a second test, take it without the effects of options
        cli.watch_loading(runner, cfg.load_from, 'test')
        name_images(runner, training=False)
        build_data(runner, 'test')
        if args.show_dir:
            cli.check_drawing(runner.test_dataloader.dataset)
    dump = dump_metric(cfg, args.out) if args.out else None
    if dump:
        runner.test_evaluator.metrics.append(dump)
    with cli.exit_on_error(), naming_the_key(cfg), explaining_faults(cfg.work_dir, training=False):
        runner.test()
        if dump and dump.results:  # mmdet's MultiDatasetsEvaluator leaves a metric beyond its data sets unevaluated
            dump.evaluate(len(runner.test_dataloader.dataset))


class DumpLabelMaps(DumpResults):
    """Pickle a segmentor's predictions without logits, which are as many floats a pixel as there are classes."""

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        left_out = ('seg_logits', 'gt_sem_seg')
        kept = [{key: sample[key] for key in sample.keys() if key not in left_out} for sample in data_samples]
        for sample in kept:
            labels = sample['pred_sem_seg']['data']
            if labels.max() < 256:
                sample['pred_sem_seg'] = dict(data=labels.to(torch.uint8))
        super().process(data_batch, kept)


def dump_metric(cfg, path: str) -> DumpResults:
    """Return the metric that pickles predictions to ``path``; mmdet's stores masks as RLE."""
    if cli.library(cfg) == 'mmseg':
        return DumpLabelMaps(out_file_path=path)
    if cli.library(cfg) == 'mmdet':
        from mmdet.evaluation import DumpDetResults

        return DumpDetResults(out_file_path=path)
    return DumpResults(out_file_path=path)


def main() -> None:
    args = parse_args()
    with cli.process_group():
        run(args)


if __name__ == '__main__':  # python -m
    main()
