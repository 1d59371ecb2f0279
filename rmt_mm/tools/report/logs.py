"""Read the logs of a work dir: the scalars of all its runs, merged, and the text of the last training's log."""

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

# The metrics that a result is known by, with their names for people.
MAIN_METRICS = {'coco/bbox_mAP': 'box AP', 'coco/segm_mAP': 'mask AP', 'mIoU': 'mIoU', 'accuracy/top1': 'top-1'}
# Keys of a training's line that are no measurement.
_COUNTERS = ('epoch', 'iter', 'step')
_SPEED = ('time', 'data_time', 'memory')
Points = List[Tuple[float, float]]


@dataclass
class Logs:
    """The scalars of a work dir.

    Attributes:
        train (list[dict]): lines of trainings with a loss, by iteration.
        val (list[dict]): lines of validations, by epoch or iteration (their ``step``).
        notes (list[str]): what could not be read, one sentence per entry.
        last_run (Path | None): folder of the last run that logged a training; without any, of the last run.
    """

    train: List[dict] = field(default_factory=list)
    val: List[dict] = field(default_factory=list)
    notes: List[str] = field(default_factory=list)
    last_run: Optional[Path] = None

    def curve(self, key: str) -> Points:
        """Return (iteration, value) of a scalar of the training."""
        return [(line['iter'], line[key]) for line in self.train if _is_number(line.get(key))]

    def val_curve(self, key: str) -> Points:
        """Return (epoch or iteration, value) of a metric of the validations."""
        return [(line['step'], line[key]) for line in self.val if _is_number(line.get(key))]

    def keys(self) -> Dict[str, List[str]]:
        """Return the names of the training's scalars by kind: losses, rates, speed, others."""
        found: Dict[str, List[str]] = dict(losses=[], rates=[], speed=[], others=[])
        for line in self.train:
            for key, value in line.items():
                kind = _kind(key)
                if kind and key not in found[kind] and _is_number(value):
                    found[kind].append(key)
        return found

    def metrics(self) -> List[str]:
        """Return the names of the validations' metrics."""
        names = {key: None for line in self.val for key, value in line.items() if _is_number(value)}
        return [name for name in names if name not in _COUNTERS + _SPEED]

    @property
    def by_epoch(self) -> bool:
        """Whether validations are counted in epochs: mmengine names no epoch in trainings by iterations."""
        return bool(self.train) and 'epoch' in self.train[-1]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _kind(key: str) -> str:
    if key in _COUNTERS:
        return ''
    if key in _SPEED:
        return 'speed'
    if key.rsplit('/', 1)[-1] in ('lr', 'base_lr', 'momentum') or key.endswith('.lr'):
        return 'rates'
    return 'losses' if 'loss' in key else 'others'


def read_logs(work_dir: Path) -> Logs:
    """Read ``*/vis_data/scalars.json``; for a step that a resumed run repeats, take the later run's line.

    Lines that are cut off or are no scalars are left out, and named in ``notes``. A test, which mmengine logs as a
    validation at step 0, is left out too.
    """
    logs, steps = Logs(), {}
    for path in sorted(work_dir.glob('*/vis_data/scalars.json')):
        run = path.parent.parent
        trained = False
        for scalars in _read_lines(path, logs.notes):
            is_train = 'loss' in scalars
            step: Any = scalars.get('iter' if is_train else 'step')
            if not _is_number(step) or not math.isfinite(step):
                logs.notes.append(f'{path}: a line without its {"iteration" if is_train else "step"} is left out.')
            elif is_train or step > 0:
                steps[is_train, step] = scalars
            trained = trained or is_train
        if trained:
            logs.last_run = run
    if logs.last_run is None:
        runs = sorted(path.parent.parent for path in work_dir.glob('*/vis_data/config.py'))
        logs.last_run = runs[-1] if runs else None
    logs.train = [steps[key] for key in sorted(steps) if key[0]]
    logs.val = [steps[key] for key in sorted(steps) if not key[0]]
    logs.notes = list(dict.fromkeys(logs.notes))
    for key in logs.keys()['losses']:
        lost = [step for step, value in logs.curve(key) if not math.isfinite(value)]
        if lost:
            logs.notes.append(f'{key} is not finite at {len(lost)} logged steps, first at iteration {lost[0]:g}.')
    return logs


def _int(digits: str) -> float:
    return int(digits) if len(digits) < 300 else float(digits)  # infinity, rather than an int that no float holds


def _read_lines(path: Path, notes: List[str]) -> Iterator[dict]:
    for number, line in enumerate(path.read_text(errors='replace').splitlines(), start=1):
        try:
            scalars = json.loads(line, parse_int=_int)
        except (ValueError, RecursionError):
            scalars = None
        if isinstance(scalars, dict):
            yield scalars
        elif line.strip():
            notes.append(f'{path}: line {number} is cut off or damaged, and is left out.')


def read_environment(run: Optional[Path]) -> List[Tuple[str, str]]:
    """Return what the log of a run says of system and runtime, as (name, value); empty without a log."""
    logs = sorted(run.glob('*.log')) if run is not None else []
    if not logs:
        return []
    text = logs[0].read_text(errors='replace')
    blocks = re.findall(r'(?:System|Runtime) environment:\n(.*?)(?=\n\n?Runtime environment:|\n-{20})', text, re.DOTALL)
    found = re.findall(r'^    (\w[^:\n]*): (.+)$', '\n'.join(blocks), re.MULTILINE)
    return [(name, value.strip()) for name, value in found if name != 'PyTorch compiling details']
