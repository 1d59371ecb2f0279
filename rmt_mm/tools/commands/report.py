"""Write a page about a training, from its work dir: config, curves, evaluation, pictures; one HTML file.

    python tools/analysis_tools/report.py work_dirs/demo
    rmt-report work_dirs/demo work_dirs/demo-full --out comparison.html

Predictions are read from predictions.pkl of the work dir, as `tools/test.py --out` writes it. Without this file the
last checkpoint is evaluated on the validation set, which runs the config. With --no-eval nothing of the work dir is
executed. Further work dirs are compared with the first one. A contact sheet of scenes, predictions.png, is written next
to the page.
"""

import argparse
import contextlib
import importlib
import importlib.util
import io
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, List, Optional, Tuple

from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, init_default_scope

from ...errors import DataError, RMTError, UsageError, printable
from .. import cli
from ..cli.images import read_image
from ..cli.types import LIBRARIES, find_classes
from .get_flops import measure

EXTRA = ('plotly', 'matplotlib', 'jinja2')
TASKS = dict(mmdet='detection', mmseg='segmentation', mmpretrain='classification')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('work_dirs', nargs='+', type=Path, metavar='WORK_DIR', help='work dirs; the first is reported')
    parser.add_argument('--out', type=Path, metavar='FILE.html', help='default: WORK_DIR/report.html')
    parser.add_argument('--predictions', type=Path, metavar='FILE.pkl', help='default: WORK_DIR/predictions.pkl')
    parser.add_argument('--base', metavar='CONFIG', help='config to compare with (default: ours of the same name)')
    parser.add_argument('--no-eval', action='store_true', help='evaluate no checkpoint, build no model')
    parser.add_argument('--score-thr', type=float, default=0.5, metavar='S', help='of detections shown (default 0.5)')
    parser.add_argument('--show', type=int, default=4, metavar='N', help='best, median and worst pictures (default 4)')
    parser.add_argument('--show-dir', type=Path, metavar='DIR', help='draw all scenes into this folder')
    return parser.parse_args()


def check_options(args: argparse.Namespace) -> None:
    missing = [name for name in EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f'the report needs {", ".join(missing)}: run `pip install rmt-mm[report]`.')
    if not 0 <= args.score_thr <= 1:
        raise UsageError(f'--score-thr {args.score_thr}: scores are from 0 to 1.')
    if args.show < 1:
        raise UsageError(f'--show {args.show}: it takes 1 or more pictures.')
    for folder in args.work_dirs:
        if not folder.is_dir():
            raise UsageError(f'{folder} is no folder: name the work dir of a training.')
    args.out = args.out or args.work_dirs[0] / 'report.html'
    if args.out.suffix not in ('.html', '.htm'):
        raise UsageError(f'--out {args.out}: the page is an .html file.')
    if not args.out.resolve().parent.is_dir():
        raise UsageError(f'--out {args.out}: the folder {args.out.parent} does not exist.')


def find_base(run: Any, name: Optional[str]) -> Tuple[Optional[Config], str, str, str]:
    """Return the config to compare a run with, its name, the text of its file, and why there is none."""
    from ..report import run_config

    path = cli.find_config(name) if name else run_config.find_base(run.name)
    if path is None:
        return None, '', '', f'No config of rmt_mm is called {run.name}: --base CONFIG names what to compare it with.'
    try:
        return cli.read_config(str(path)), Path(path).stem, Path(path).read_text(), ''
    except RMTError as error:
        return None, '', '', str(error)


def find_predictions(args: argparse.Namespace, run: Any) -> Tuple[Optional[List[dict]], str]:
    """Return the predictions of a run and where they are from, or None and why there are none.

    They are read from the file, or else made with the last checkpoint and saved there for the next report.
    """
    from ..report.predictions import read_predictions

    path = args.predictions or run.folder / 'predictions.pkl'
    checkpoint = last_checkpoint(run.folder)
    if not path.is_file():
        if args.predictions:
            raise UsageError(f'--predictions {path}: there is no such file.')
        if args.no_eval:
            return None, f'{path} does not exist, and --no-eval evaluates no checkpoint.'
        if checkpoint is None:
            return None, f'{run.folder} has no checkpoint to evaluate, and no predictions.pkl.'
        problem = predict(run, checkpoint, path)
        if problem:
            return None, problem
    try:
        samples = read_predictions(path)
    except RMTError as error:
        return None, str(error)
    written = path.stat().st_mtime
    origin = f'Predictions: {path}, of {time.strftime("%Y-%m-%d %H:%M", time.localtime(written))}.'
    if checkpoint is not None and checkpoint.stat().st_mtime > written + 60:
        origin += f' They are older than the last checkpoint, {checkpoint}: delete the file to evaluate it.'
    return samples, origin


def last_checkpoint(folder: Path) -> Optional[Path]:
    """Return the last checkpoint of a work dir: the one of this name in the folder, which may have been moved."""
    record = folder / 'last_checkpoint'
    name = record.read_text(errors='replace').strip() if record.is_file() else ''
    found = [path for path in (folder / Path(name).name, Path(name)) if name and path.is_file()]
    return found[0] if found else None


def predict(run: Any, checkpoint: Path, target: Path) -> str:
    """Run tools/test.py in a process of its own, and save its predictions; return why that failed, or ''."""
    if run.config_path is None:
        return run.problem
    print(f'Evaluating {checkpoint}, which may take minutes ...', file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / 'predictions.pkl'
        options = ['--work-dir', folder, '--out', str(out)]
        tool = [sys.executable, '-m', 'rmt_mm.tools.commands.test', str(run.config_path), str(checkpoint), *options]
        done = subprocess.run(tool, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors='replace')
        if done.returncode or not out.is_file():
            lines = [line for line in done.stderr.splitlines() if line.strip()] or ['no message']
            reason = next((line for line in reversed(lines) if line.startswith('error: ')), lines[-1])
            return f'{checkpoint} could not be evaluated: {printable(reason.replace("error: ", "", 1), 600)}'
        shutil.move(str(out), target)
    return ''


def build_dataset(cfg: Config) -> Any:
    """Build the validation set of a config, without its pipeline: only classes of the libraries are built.

    Raises:
        UsageError: the config has none, or one of another library.
    """
    loader = cfg.get('test_dataloader') or cfg.get('val_dataloader')
    settings = dict((loader or {}).get('dataset') or {})
    kind, scope = settings.get('type'), cli.library(cfg)
    if scope not in TASKS:
        raise UsageError(f'the config is of {scope}: evaluation takes configs of {", ".join(TASKS)}.')
    # A name with other dots could name any module.
    found = find_classes(kind, scope, [DATASETS]) if str(kind).rpartition('.')[0] in ('', scope) else []
    if not found or found[0].__module__.split('.')[0] not in LIBRARIES or {'dataset', 'datasets'} & set(settings):
        raise UsageError(f'the validation set is of type {kind}: evaluation takes data sets of {scope} itself.')
    settings.update(pipeline=[], test_mode=True)
    try:
        with DATASETS.switch_scope_and_registry(scope) as registry, contextlib.redirect_stdout(io.StringIO()):
            dataset = registry.build(settings)
    except cli.FOREIGN_ERRORS as error:
        raise DataError(f'the validation set cannot be read: {error} (from this folder: {os.getcwd()})') from error
    if not isinstance(dataset, BaseDataset):
        raise UsageError(f'the validation set is of type {kind}: evaluation takes images with annotations.')
    return dataset


def evaluate(args: argparse.Namespace, run: Any) -> Tuple[Any, str, Tuple[int, int]]:
    """Return the evaluation or None, where its predictions are from or why there are none, and an image's size."""
    samples, origin = find_predictions(args, run)
    if samples is None or run.config is None:
        return None, origin if samples is None else run.problem, (0, 0)
    shape = tuple(samples[0].get('img_shape') or (0, 0))[:2]
    scope = cli.library(run.config)
    try:
        init_default_scope(scope)
        dataset = build_dataset(run.config)
        task = importlib.import_module(f'rmt_mm.tools.report.{TASKS[scope]}')
        if scope == 'mmdet' and not hasattr(dataset, 'cat_ids'):
            raise DataError('evaluation of detectors takes annotations in the format of COCO.')
        return task.evaluate(dataset, samples, args.score_thr, lambda path: read_image(Path(path))), origin, shape
    except (RMTError, OSError) as error:
        return None, f'The predictions could not be evaluated: {printable(" ".join(str(error).split()), 600)}', shape


def count(args: argparse.Namespace, run: Any, shape: Tuple[int, int]) -> Tuple[Optional[dict], str]:
    """Return what tools/get_flops.py counts for images of ``shape``, or None and why."""
    if args.no_eval or run.config_path is None:
        return None, 'Nothing was counted: --no-eval builds no model.' if args.no_eval else run.problem
    try:
        return measure(str(run.config_path), shape if min(shape) > 0 else None), ''
    except (RMTError, *cli.FOREIGN_ERRORS) as error:
        return None, f'Nothing could be counted: {printable(" ".join(str(error).split()), 600)}'


def write(args: argparse.Namespace) -> None:
    from ..report import sections
    from ..report.evaluation import draw_selected
    from ..report.page import Note, Section, Text, render
    from ..report.scenes import add_caption, contact_sheet

    runs = [sections.read_run(folder) for folder in args.work_dirs]
    run = runs[0]
    evaluation, origin, shape = evaluate(args, run)
    size, gap = count(args, run, shape)
    page = [sections.summary(run, evaluation, size)]
    if len(runs) > 1:
        page.append(sections.comparison(runs, name_runs(runs)))
    page.append(sections.curves(run.logs))
    if evaluation is None:
        page.append(Section('evaluation', 'Evaluation', [Note(origin)]))
    else:
        classes = sections.scores(evaluation)
        classes.blocks.insert(1, Text(origin))
        parts = [sections.precision_recall(evaluation), sections.confusion(evaluation)]
        drawn, problems = draw_selected(evaluation, args.show)
        page += [sections.pictures(evaluation, args.score_thr, drawn, problems), classes, *parts]
    page += [sections.speed(run.logs), sections.model_size(size, gap)]
    page += [sections.config(run, *find_base(run, args.base)), sections.environment(run)]
    subtitle = f'{run.folder}, written {time.strftime("%Y-%m-%d %H:%M")}'
    # Names of files may be no text: Python reads their bytes as halves of surrogate pairs.
    args.out.write_text(render(run.name, subtitle, page), encoding='utf-8', errors='backslashreplace')
    print(f'Report: {printable(args.out)}')
    if evaluation is None:
        print(f'note: {origin}', file=sys.stderr)
        return
    if drawn:
        sheet = args.out.parent / 'predictions.png'
        title = f'{run.name}: validation scenes by {evaluation.score_note}'
        groups = {name: [add_caption(picture, text) for text, picture in pairs[:2]] for name, pairs in drawn.items()}
        contact_sheet(groups, title).save(sheet)
        print(f'Best, median and worst scenes: {printable(sheet)}')
    if args.show_dir:
        args.show_dir.mkdir(parents=True, exist_ok=True)
        for rank, scene in enumerate(evaluation.ranked(), start=1):
            add_caption(scene.draw(), scene.caption).save(
                args.show_dir / f'{rank:04}_{Path(scene.name).stem}.jpg', quality=90
            )
        print(f'All scenes, the best first: {printable(args.show_dir)}')


def name_runs(runs: Any) -> dict:
    """Return runs by the names of their folders, with a number where two have one name."""
    names = [run.folder.resolve().name for run in runs]
    return {
        f'{name} ({i})' if names.count(name) > 1 else name: run for i, (name, run) in enumerate(zip(names, runs), 1)
    }


def main() -> None:
    args = parse_args()
    with cli.exit_on_error(OSError):
        cli.force_safe_loading()
        check_options(args)
        write(args)


if __name__ == '__main__':  # python -m
    main()
