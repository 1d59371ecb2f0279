"""The sections of a report, each made of what a work dir, an evaluation, or the counter of multiply-adds says."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np
from mmengine.config import Config

from ...errors import UsageError
from . import charts
from .evaluation import Evaluation
from .logs import MAIN_METRICS, Logs, Points, read_environment, read_logs
from .page import Block, Cards, Chart, Code, Gallery, Note, Section, Table, Text
from .run_config import compare, find_dumped, read_dumped


@dataclass
class Run:
    """A work dir.

    Attributes:
        folder (Path): it.
        logs (Logs): its scalars.
        config_path (Path | None): the config that mmengine dumped for the last training.
        config (Config | None): its content, if it is one of literals.
        problem (str): why there is no ``config``.
        others (list[str]): names of other configs that runs of the folder used.
    """

    folder: Path
    logs: Logs
    config_path: Optional[Path] = None
    config: Optional[Config] = None
    problem: str = ''
    others: Sequence[str] = ()

    @property
    def name(self) -> str:
        """Name of the config, or of the folder."""
        named = sorted(self.folder.glob('*.py'), key=lambda path: path.stat().st_mtime)
        return named[-1].stem if named else self.folder.resolve().name


def read_run(folder: Path) -> Run:
    """Read a work dir.

    Raises:
        UsageError: it has neither a log nor a config.
    """
    logs = read_logs(folder)
    path = find_dumped(folder, logs.last_run)
    if path is None and not logs.train and not logs.val:
        raise UsageError(f'{folder} is no work dir: it has no log (*/vis_data/scalars.json) and no config.')
    run = Run(folder, logs, path)
    if path is None:
        run.problem = f'{folder} has no config that mmengine dumped (*/vis_data/config.py).'
    else:
        try:
            run.config = read_dumped(path)
        except UsageError as error:
            run.problem = str(error)
    run.others = sorted(other.stem for other in folder.glob('*.py') if other.stem != run.name)
    return run


def number(value: float) -> str:
    """Return a metric as text: three decimals below 1, else one; a dash for NaN."""
    if math.isnan(value):
        return '–'
    return f'{value:.3f}' if abs(value) < 1 else f'{value:.1f}'


def duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return '–'
    minutes = round(seconds / 60)
    return f'{seconds:.0f} s' if seconds < 90 else f'{minutes} min' if minutes < 120 else f'{minutes / 60:.1f} h'


def training_time(logs: Logs) -> float:
    """Return the seconds of all iterations: the logged time of one, times those since the line before."""
    total, last = 0.0, 0.0
    for step, seconds in logs.curve('time'):
        if math.isfinite(seconds):
            total += seconds * (step - last)
        last = step
    return total


def metric_curve(logs: Logs, name: str) -> Points:
    """Return the curve of a metric; COCO's -1 (no object of this size) is no value."""
    return [(x, y) for x, y in logs.val_curve(name) if not (name.startswith('coco/') and y < 0)]


def summary(run: Run, evaluation: Optional[Evaluation], size: Optional[dict]) -> Section:
    """The figures that matter, and everything that is missing."""
    cards: List[Tuple[str, str]] = []
    if evaluation is not None:
        cards += [(name, number(value)) for name, value in evaluation.summary.items()][:6]
    else:
        for name in MAIN_METRICS:
            points = metric_curve(run.logs, name)
            cards += [(f'{name}, last validation', number(points[-1][1]))] if points else []
    if size is not None:
        cards.append(('parameters', f'{size["params"] / 1e6:.2f} M'))
        cards.append((f'multiply-adds at {size["shape"][0]} × {size["shape"][1]}', f'{size["gmac"]:.2f} G'))
    if run.logs.train:
        last = run.logs.train[-1]
        epochs = f' in {last["epoch"]} epochs' if run.logs.by_epoch and 'epoch' in last else ''
        cards.append((f'iterations{epochs}', f'{last["iter"]:,}'))
        cards.append(('of training, validations aside', duration(training_time(run.logs))))
    blocks: List[Block] = [Cards(cards)] if cards else []
    if not run.logs.train:
        blocks.append(Note('There is no log of a training: curves, speed and memory are missing.'))
    elif not run.logs.val:
        blocks.append(Note('There was no validation yet.'))
    if run.others:
        blocks.append(
            Note(
                f'The folder holds runs of several configs: {", ".join([run.name, *run.others])}. The config below is '
                f'that of the last training; the curves are of all runs, a later one replacing the steps it repeats.'
            )
        )
    blocks += [Note(note) for note in run.logs.notes[:20]]
    if len(run.logs.notes) > 20:
        blocks.append(Note(f'{len(run.logs.notes) - 20} more lines of the logs are left out.'))
    return Section('summary', 'Summary', blocks)


def config(run: Run, base: Optional[Config], base_name: str, base_source: str, gap: str) -> Section:
    """The config of the run, and its difference from its base."""
    blocks: List[Block] = []
    if run.config is not None and base is not None:
        changes = compare(base, run.config)
        blocks.append(Text(f'{len(changes) or "No"} settings differ from {base_name}.'))
        if changes:
            blocks.append(Table(['setting', base_name, 'this run'], [tuple(v or '–' for v in c) for c in changes]))
    if gap:
        blocks.append(Note(gap))
    if run.problem:
        blocks.append(Note(run.problem))
    if base_source:
        blocks.append(Code(f'{base_name}: the file, which states what differs from its _base_ files', base_source))
    if run.config_path is not None:
        blocks.append(Code('The whole config, as it was run', run.config_path.read_text(errors='replace')))
    return Section('config', 'Config', blocks)


def environment(run: Run) -> Section:
    """System and runtime, from the log."""
    found = read_environment(run.logs.last_run)
    block = Table(['', ''], found) if found else Note('The run has no log file (*.log) that names its environment.')
    return Section('environment', 'Environment', [block])


def model_size(size: Optional[dict], gap: str) -> Section:
    """Parameters and multiply-adds."""
    if size is None:
        return Section('size', 'Parameters and multiply-adds', [Note(gap)])
    rows = [
        ('parameters', f'{size["params"] / 1e6:.2f} M'),
        ('parameters of the backbone', f'{size["params_backbone"] / 1e6:.2f} M'),
        ('multiply-adds', f'{size["gmac"]:.2f} G'),
        ('… of convolutions', f'{size["gmac_convolution"]:.2f} G'),
        ('… of Linear layers', f'{size["gmac_linear"]:.2f} G'),
        ('… of attention', f'{size["gmac_attention"]:.2f} G'),
        ('activations', f'{size["activations"] / 1e6:.2f} M'),
    ]
    text = f'Counted for one image of {size["shape"][0]} × {size["shape"][1]} pixels. A multiply-add is two operations.'
    return Section('size', 'Parameters and multiply-adds', [Table(['', ''], rows, True), Text(text)])


def curves(logs: Logs) -> Section:
    """Losses, learning rate and metrics over the training."""
    blocks: List[Block] = []
    keys = logs.keys()
    if keys['losses']:
        series = {key: logs.curve(key) for key in keys['losses']}
        blocks.append(Chart('Training loss and its parts', charts.lines(series, 'iteration', 'loss')))
    metrics = {name: metric_curve(logs, name) for name in logs.metrics()}
    metrics = {name: points for name, points in metrics.items() if points}
    x = 'epoch' if logs.by_epoch else 'iteration'
    if metrics and all(len(points) == 1 for points in metrics.values()):
        step = next(iter(metrics.values()))[0][0]
        blocks.append(Text(f'There was one validation, after {x} {step:g}:'))
        blocks.append(
            Table(['metric', 'value'], [(name, number(points[0][1])) for name, points in metrics.items()], True)
        )
    elif metrics:
        main = [name for name in metrics if name in MAIN_METRICS] or list(metrics)[:2]
        hidden = [name for name in metrics if name not in main]
        figure = charts.lines({name: metrics[name] for name in (*main, *hidden)}, x, 'metric', hidden)
        blocks.append(Chart('Metrics of the validations (click a name to show or hide it)', figure))
    else:
        blocks.append(Note('There was no validation yet: no metrics.'))
    rates = {key: logs.curve(key) for key in keys['rates'] if key != 'base_lr' or 'lr' not in keys['rates']}
    if rates:
        blocks.append(Chart('Learning rate', charts.lines(rates, 'iteration', ''), half=True))
    if keys['others']:
        series = {key: logs.curve(key) for key in keys['others']}
        figure = charts.lines(series, 'iteration', '', keys['others'][1:])
        blocks.append(Chart('Other scalars of the training', figure, half=True))
    if not keys['losses']:
        blocks.insert(0, Note('There is no log of a training: no loss.'))
    return Section('curves', 'Curves', blocks)


def scores(evaluation: Evaluation) -> Section:
    """Metrics of every class."""
    names = list(evaluation.per_class)
    blocks: List[Block] = [Text(f'{evaluation.count} images of the validation set.')]
    blocks += [Note(note) for note in evaluation.notes]
    if names:
        shown = [name for name in names if 'AP50' not in name and name not in ('images', 'precision', 'recall', 'F1')]
        blocks.append(Chart(f'{" and ".join(shown)} of each class', charts.per_class(evaluation, shown)))
        columns = list(evaluation.per_class.items())
        rows = [
            (name, *(f'{values[i]:,.0f}' if column == 'images' else number(values[i]) for column, values in columns))
            for i, name in enumerate(evaluation.classes)
        ]
        blocks.append(Table(['class', *names], rows, True))
    return Section('classes', 'Classes', blocks)


def confusion(evaluation: Evaluation) -> Section:
    """The confusion matrix, and the pairs of classes most often confused."""
    figure, note = charts.confusion(evaluation)
    blocks: List[Block] = [Text(' '.join(filter(None, (evaluation.confusion_note, note))))]
    blocks.append(Chart('Confusion matrix', figure))
    wrong = evaluation.confusion.copy()
    np.fill_diagonal(wrong, 0)
    order = [i for i in np.argsort(-wrong, axis=None)[:10] if wrong.flat[i]]
    rows = [
        (evaluation.rows[i // wrong.shape[1]], evaluation.columns[i % wrong.shape[1]], f'{int(wrong.flat[i]):,}')
        for i in order
    ]
    if rows:
        blocks.append(Text('Most frequent errors:'))
        blocks.append(Table(['truth', 'prediction', 'count'], rows))
    return Section('confusion', 'Confusion matrix', blocks)


def precision_recall(evaluation: Evaluation) -> Section:
    """Precision-recall curves."""
    blocks: List[Block] = [Text(evaluation.curves_note)] if evaluation.curves_note else []
    if evaluation.curves:
        blocks.append(Chart('Precision over recall', charts.precision_recall(evaluation.curves)))
    return Section('pr', 'Precision and recall', blocks)


def pictures(evaluation: Evaluation, threshold: float, drawn: Dict[str, list], problems: Sequence[str]) -> Section:
    """Best, median and worst scenes, truth beside the prediction."""
    text = f'Scenes by {evaluation.score_note}, truth on the left.'
    if evaluation.curves_note.startswith('At an IoU'):
        text += f' Predictions with a score of at least {threshold:g} are drawn; a class has one colour in both.'
    blocks: List[Block] = [Text(text)]
    blocks += [Gallery(heading, images) for heading, images in drawn.items()]
    blocks += [Note(problem) for problem in problems]
    return Section('pictures', 'Best and worst pictures', blocks)


def speed(logs: Logs) -> Section:
    """Time and memory of an iteration over the run."""
    blocks: List[Block] = []
    times = {name: logs.curve(name) for name in ('time', 'data_time')}
    times = {name: points for name, points in times.items() if points}
    if times:
        names = {'time': 'iteration', 'data_time': 'of that, waiting for data'}
        series = {names[name]: points for name, points in times.items()}
        blocks.append(Chart('Seconds per iteration', charts.lines(series, 'iteration', 'seconds')))
    memory = logs.curve('memory')
    if memory:
        blocks.append(Chart('Memory of the GPU', charts.lines({'memory': memory}, 'iteration', 'MB')))
    else:
        blocks.append(Note('The logs name no memory: mmengine measures that of GPUs only.'))
    return Section('speed', 'Speed and memory', blocks)


def _of_finite(run: Run, key: str, summarise: Callable, form: str) -> str:
    values = [y for _, y in run.logs.curve(key) if math.isfinite(y)]
    return format(float(summarise(values)), form) if values else '–'


def comparison(runs: Sequence[Run], named: Dict[str, Run]) -> Section:
    """A table of several runs, their differences in the config, and their curves."""
    shared = list(dict.fromkeys(name for run in runs for name in run.logs.metrics()))
    main = [name for name in MAIN_METRICS if name in shared] or shared[:2]
    rows: List[List[str]] = [['config', *(run.name for run in runs)]]
    for metric in main:
        found = [metric_curve(run.logs, metric) for run in runs]
        rows.append([f'{metric}, last', *(number(points[-1][1]) if points else '–' for points in found)])
        rows.append([f'{metric}, best', *(number(max(y for _, y in points)) if points else '–' for points in found)])
    rows.append(['iterations', *(f'{run.logs.train[-1]["iter"]:,}' if run.logs.train else '–' for run in runs)])
    rows.append(['seconds per iteration, median', *(_of_finite(run, 'time', np.median, '.3f') for run in runs)])
    rows.append(['memory of the GPU, MB, largest', *(_of_finite(run, 'memory', np.max, ',.0f') for run in runs)])
    blocks: List[Block] = [Table(['', *named], rows)]
    losses = {name: run.logs.curve('loss') for name, run in named.items() if run.logs.curve('loss')}
    if losses:
        blocks.append(Chart('Training loss', charts.lines(losses, 'iteration', 'loss')))
    for metric in main:
        series = {name: metric_curve(run.logs, metric) for name, run in named.items()}
        series = {name: points for name, points in series.items() if points}
        if any(len(points) > 1 for points in series.values()):
            x = 'epoch' if runs[0].logs.by_epoch else 'iteration'
            blocks.append(Chart(f'{metric} of the validations', charts.lines(series, x, '')))
    first = runs[0]
    for name, run in list(named.items())[1:]:
        if first.config is not None and run.config is not None:
            changes = compare(first.config, run.config)
            blocks.append(Text(f'{len(changes) or "No"} settings of {name} differ from {next(iter(named))}.'))
            if changes:
                table = [tuple(v or '–' for v in change) for change in changes]
                blocks.append(Table(['setting', next(iter(named)), name], table))
        else:
            blocks.append(Note(run.problem or first.problem))
    return Section('comparison', 'Comparison', blocks)
