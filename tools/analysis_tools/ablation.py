"""Train a small RMT without one part at a time, on scenes in which position decides the class and on others.

    make ablation
    python tools/analysis_tools/ablation.py work_dirs/ablation --data side --forms full 'no decay' --seeds 0 1

Data sets are those of tools/dataset_converters/make_relations.py (data/relations): scenes of a 0 and another digit. In
`side` the class is where the other digit lies from the 0, in `digit` it is the other digit. Every run trains
configs/classification/rmt-digits-relations.py with another form and seed, about 3 minutes of one core for 8 epochs of
scenes of 48 pixels (in `side`, 8 epochs leave it to the seed whether a model finds the relation: take 16). It is tested
on the validation scenes as they are, and at sizes that it has not seen in training: resized, so that digits change with
the scene, and padded at the right and the bottom, so that they do not.
Every result is a file of WORK_DIR, NAME.json, or with --size or --epochs of a folder in it: call the tool again after
an interruption, and it goes on with the run that is missing. Two calls at once may share a WORK_DIR when their --data,
--forms or --seeds differ.

At the end, a table (mean and range of top-1 over the seeds) and a figure of all results so far are written to
WORK_DIR/table.md and WORK_DIR/ablation.png.
"""

import argparse
import copy
import json
import shutil
import sys
from pathlib import Path
from typing import Dict, List

import cv2
import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.runner import Runner, TestLoop  # noqa: E402

import rmt_mm  # noqa: E402
from rmt_mm.atomic import replacing  # noqa: E402

DATA = {'side': 4, 'digit': 9}  # name -> number of classes
WHOLE, LINES = (False,) * 4, (True,) * 4
FORMS: Dict[str, dict] = {
    'full': {},
    'no decay': dict(decay='none'),
    'no rotation': dict(rotation=False),
    'no decay, no rotation': dict(decay='none', rotation=False),
    'no rotation, LCE, CPE': dict(rotation=False, lce=False, cpe=False),
    'no decay, rotation, LCE, CPE': dict(decay='none', rotation=False, lce=False, cpe=False),
    'no LCE': dict(lce=False),
    'no CPE': dict(cpe=False),
    'decomposed in all stages': dict(decomposed=LINES),
    'whole in all stages': dict(decomposed=WHOLE),
    "RMT-Swin's stem": dict(stem='swin'),
    'Eq. 5 (decay outside)': dict(decay='outside'),
    'learned decay': dict(decay='learned'),
}
BACKGROUND = 45  # its mean in the scenes, with which they are padded


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('work_dir', type=Path, help='folder of the results, made if it is missing')
    parser.add_argument('--data-root', type=Path, default=Path('data/relations'), help='default: data/relations')
    parser.add_argument('--data', nargs='+', choices=DATA, default=list(DATA), help='default: both')
    parser.add_argument('--forms', nargs='+', choices=FORMS, default=list(FORMS), help='default: all')
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2], help='default: 0 1 2')
    parser.add_argument('--size', type=int, metavar='PIXELS', help='resize the training scenes to this')
    parser.add_argument(
        '--sizes', type=int, nargs='+', metavar='PIXELS', help='of the tested scenes; default: 2/3, 4/3 and 2 of theirs'
    )
    parser.add_argument('--epochs', type=int, help='default: those of the config')
    args = parser.parse_args()
    for option in ('size', 'epochs'):  # results of other trainings are kept apart
        number = getattr(args, option)
        if number is not None:
            args.work_dir /= f'{option}-{number}'
            if number < 1:
                parser.error(f'--{option} must be at least 1, got {number}.')
    if min(args.sizes or [1]) < 1:
        parser.error(f'--sizes must be at least 1, got {min(args.sizes)}.')
    for name in args.data:
        if not (args.data_root / name / 'train').is_dir():
            parser.error(
                f'{args.data_root} has no {name}/train: make it with '
                f'`python tools/dataset_converters/make_relations.py {args.data_root}`.'
            )
    return args


def make_config(args: argparse.Namespace, data: str, form: str, seed: int, folder: Path) -> Config:
    """Return the config of a run, whose learning rate falls until its last epoch."""
    cfg = Config.fromfile(rmt_mm.get_config_path('rmt-digits-relations'))
    classes = DATA[data]
    cfg.merge_from_dict(
        {
            'work_dir': str(folder),
            'experiment_name': folder.name,  # of which mmengine keeps one logger each
            'randomness.seed': seed,
            'model.backbone.arch_options': FORMS[form],
            'model.head.num_classes': classes,
            'model.data_preprocessor.num_classes': classes,
            'default_hooks.checkpoint.interval': -1,
            'default_hooks.logger.interval': 1000,
            **{
                f'{split}_dataloader.dataset.data_root': str(args.data_root / data)
                for split in ('train', 'val', 'test')
            },
        }
    )
    if args.size:
        cfg.train_dataloader.dataset.pipeline.insert(1, dict(type='Resize', scale=args.size))
    if args.epochs:
        cfg.train_cfg.max_epochs = cfg.train_cfg.val_interval = args.epochs
        cfg.param_scheduler[-1].update(T_max=args.epochs, end=args.epochs)
    return cfg


def run(args: argparse.Namespace, data: str, form: str, seed: int, folder: Path) -> Dict[str, float]:
    """Train and test a model; return top-1 by what was done to the tested scenes."""
    cfg = make_config(args, data, form, seed, folder)
    shutil.rmtree(folder, ignore_errors=True)
    runner = Runner.from_cfg(cfg)
    runner.train()
    found = {}
    for name, transform in changes(args, data).items():
        loader = copy.deepcopy(cfg.test_dataloader)
        loader.dataset.pipeline[1:1] = transform
        found[name] = TestLoop(runner, loader, cfg.test_evaluator).run()['accuracy/top1']
    shutil.rmtree(folder)
    return found


def changes(args: argparse.Namespace, data: str) -> Dict[str, List[dict]]:
    """Return what is done to the tested scenes, transforms by name; first nothing."""
    trained = args.size or cv2.imread(str(next((args.data_root / data / 'train').glob('*/*.png')))).shape[0]
    sizes = args.sizes or (trained * 2 // 3, trained * 4 // 3, trained * 2)
    as_trained = [dict(type='Resize', scale=args.size)] if args.size else []
    found: Dict[str, List[dict]] = {f'{trained} px': as_trained}
    found.update({f'resized to {size}': [dict(type='Resize', scale=size)] for size in sizes if size != trained})
    for size in sizes:
        if size > trained:
            found[f'padded to {size}'] = [*as_trained, dict(type='Pad', size=(size, size), pad_val=BACKGROUND)]
    return found


def make_table(results: Dict[tuple, List[dict]]) -> str:
    """Return a Markdown table of all results: data set and form, number of seeds, and top-1 by what was tested."""
    tested = list(dict.fromkeys(name for runs in results.values() for run in runs for name in run))
    lines = [f'| data | form | seeds | {" | ".join(tested)} |', '| --- | --- |' + ' ---: |' * (1 + len(tested))]
    for (data, form), runs in results.items():
        cells = []
        for name in tested:
            values = [run[name] for run in runs if name in run]
            spread = f' ({min(values):.1f} to {max(values):.1f})' if len(values) > 1 else ''
            cells.append(f'{sum(values) / len(values):.1f}{spread}' if values else '')
        lines.append(f'| {data} | {form} | {len(runs)} | {" | ".join(cells)} |')
    return '\n'.join(lines) + '\n'


def read_results(work_dir: Path) -> Dict[tuple, List[dict]]:
    """Return the runs of each data set and form, in the order of the tables above."""
    found = {(data, form): sorted(work_dir.glob(f'{data}, {form}, seed *.json')) for data in DATA for form in FORMS}
    return {key: [json.loads(path.read_text()) for path in paths] for key, paths in found.items() if paths}


def draw(results: Dict[tuple, List[dict]], path: Path) -> None:
    """Draw a point a run, and a line at the mean, for every form and data set, of the scenes as they are."""
    names = [name for name in DATA if any(data == name for data, _ in results)]
    figure, axes = plt.subplots(1, len(names), figsize=(6 * len(names), 4), squeeze=False)
    for axis, name in zip(axes[0], names):
        forms = [form for data, form in results if data == name]
        for i, form in enumerate(forms):
            values = [next(iter(run.values())) for run in results[name, form]]
            axis.plot(values, [i] * len(values), 'o', color='tab:blue', alpha=0.6)
            axis.plot([sum(values) / len(values)] * 2, [i - 0.3, i + 0.3], color='tab:red')
        axis.set_yticks(range(len(forms)), forms)
        axis.invert_yaxis()
        axis.set(xlabel='top-1 on the validation scenes, %', title=f'{name}: guessing gives {100 / DATA[name]:.0f} %')
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    args = parse_args()
    args.work_dir.mkdir(parents=True, exist_ok=True)
    wanted = [(data, form, seed) for seed in args.seeds for data in args.data for form in args.forms]
    for i, (data, form, seed) in enumerate(wanted):
        name = f'{data}, {form}, seed {seed}'
        store = args.work_dir / f'{name}.json'
        if not store.exists():
            found = run(args, data, form, seed, args.work_dir / name)
            with replacing(str(store)) as path:
                Path(path).write_text(json.dumps(found, indent=1))
        print(f'{i + 1} of {len(wanted)}: {name}: {json.loads(store.read_text())}', file=sys.stderr, flush=True)
    results = read_results(args.work_dir)
    table = make_table(results)
    (args.work_dir / 'table.md').write_text(table)
    draw(results, args.work_dir / 'ablation.png')
    print(table)


if __name__ == '__main__':
    main()
