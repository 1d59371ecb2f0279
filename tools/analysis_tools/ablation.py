"""Train a small RMT without one part at a time, on scenes in which position decides the class and on others.

    make ablation
    python tools/analysis_tools/ablation.py work_dirs/ablation --data side --forms full 'no decay' --seeds 0 1

Data sets are those of tools/dataset_converters/make_relations.py (data/relations): scenes of a 0 and another digit. In
`side` the class is where the other digit lies from the 0, in `digit` it is the other digit. Every run trains
configs/classification/rmt-digits-relations.py with another form and seed, about 4 minutes of one core. It is tested on
the validation scenes as they are (48 pixels), and resized to other sizes, which the model has not seen in training.
Results are written to WORK_DIR/results.json after every run: call the tool again after an interruption, and it goes on
with the run that is missing.

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
    'no LCE': dict(lce=False),
    'no CPE': dict(cpe=False),
    'decomposed in all stages': dict(decomposed=LINES),
    'whole in all stages': dict(decomposed=WHOLE),
    "RMT-Swin's stem": dict(stem='swin'),
    'Eq. 5 (decay outside)': dict(decay='outside'),
    'learned decay': dict(decay='learned'),
}
SIZES = (32, 48, 64, 96)  # pixels of the tested scenes
TRAINED = 48


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('work_dir', type=Path, help='folder of the results, made if it is missing')
    parser.add_argument('--data-root', type=Path, default=Path('data/relations'), help='default: data/relations')
    parser.add_argument('--data', nargs='+', choices=DATA, default=list(DATA), help='default: both')
    parser.add_argument('--forms', nargs='+', choices=FORMS, default=list(FORMS), help='default: all')
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2], help='default: 0 1 2')
    parser.add_argument('--epochs', type=int, help='for a short trial; the results are kept apart by this number')
    args = parser.parse_args()
    for name in args.data:
        if not (args.data_root / name / 'train').is_dir():
            parser.error(
                f'{args.data_root} has no {name}/train: make it with '
                f'`python tools/dataset_converters/make_relations.py {args.data_root}`.'
            )
    return args


def run(args: argparse.Namespace, data: str, form: str, seed: int) -> Dict[str, float]:
    """Train and test a model; return top-1 by the size of the tested scenes."""
    cfg = Config.fromfile(rmt_mm.get_config_path('rmt-digits-relations'))
    folder = args.work_dir / 'run'
    shutil.rmtree(folder, ignore_errors=True)
    classes = DATA[data]
    cfg.merge_from_dict(
        {
            'work_dir': str(folder),
            'experiment_name': f'{data}-{form}-{seed}',  # of which mmengine keeps one logger each
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
    if args.epochs:
        cfg.train_cfg.max_epochs = cfg.train_cfg.val_interval = args.epochs
    runner = Runner.from_cfg(cfg)
    runner.train()
    found = {}
    for size in SIZES:
        loader = copy.deepcopy(cfg.test_dataloader)
        loader.dataset.pipeline.insert(1, dict(type='Resize', scale=size))
        found[str(size)] = TestLoop(runner, loader, cfg.test_evaluator).run()['accuracy/top1']
    return found


def make_table(results: Dict[str, dict]) -> str:
    """Return a Markdown table of all results: data set and form, number of seeds, and top-1 by size."""
    lines = [f'| data | form | seeds | {" | ".join(f"{size} px" for size in SIZES)} |', '| --- | --- |' + ' ---: |' * 5]
    for (data, form), runs in by_form(results).items():
        cells = []
        for size in SIZES:
            values = [values[str(size)] for values in runs]
            spread = f' ({min(values):.1f} to {max(values):.1f})' if len(values) > 1 else ''
            cells.append(f'{sum(values) / len(values):.1f}{spread}')
        lines.append(f'| {data} | {form} | {len(runs)} | {" | ".join(cells)} |')
    return '\n'.join(lines) + '\n'


def by_form(results: Dict[str, dict]) -> Dict[tuple, List[dict]]:
    """Return the runs of each data set and form, in the order of the tables above."""
    found: Dict[tuple, List[dict]] = {(data, form): [] for data in DATA for form in FORMS}
    for key, values in results.items():
        data, form, _ = key.split('/')
        found[data, form].append(values)
    return {key: runs for key, runs in found.items() if runs}


def draw(results: Dict[str, dict], path: Path) -> None:
    """Draw a point a run, and a line at the mean, for every form and data set at the trained size."""
    groups = by_form(results)
    names = [name for name in DATA if any(data == name for data, _ in groups)]
    figure, axes = plt.subplots(1, len(names), figsize=(6 * len(names), 4), squeeze=False)
    for axis, name in zip(axes[0], names):
        forms = [form for data, form in groups if data == name]
        for i, form in enumerate(forms):
            values = [runs[str(TRAINED)] for runs in groups[name, form]]
            axis.plot(values, [i] * len(values), 'o', color='tab:blue', alpha=0.6)
            axis.plot([sum(values) / len(values)] * 2, [i - 0.3, i + 0.3], color='tab:red')
        axis.axvline(100 / DATA[name], color='gray', linestyle=':')
        axis.set_yticks(range(len(forms)), forms)
        axis.invert_yaxis()
        axis.set(xlabel='top-1 on the validation scenes, %; dotted: guessing', title=name)
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    args = parse_args()
    args.work_dir.mkdir(parents=True, exist_ok=True)
    store = args.work_dir / (f'results-{args.epochs}-epochs.json' if args.epochs else 'results.json')
    results = json.loads(store.read_text()) if store.exists() else {}
    wanted = [(data, form, seed) for seed in args.seeds for data in args.data for form in args.forms]
    for i, (data, form, seed) in enumerate(wanted):
        key = f'{data}/{form}/{seed}'
        if key not in results:
            results[key] = run(args, data, form, seed)
            with replacing(str(store)) as path:
                Path(path).write_text(json.dumps(results, indent=1))
        print(f'{i + 1} of {len(wanted)}: {key}: {results[key]}', file=sys.stderr, flush=True)
    table = make_table(results)
    (args.work_dir / 'table.md').write_text(table)
    draw(results, args.work_dir / 'ablation.png')
    print(table)


if __name__ == '__main__':
    main()
