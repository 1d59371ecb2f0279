"""What an evaluation finds, for detectors, segmentors and classifiers alike."""

from dataclasses import dataclass, field
from typing import Callable, Dict, List, NamedTuple, Sequence, Tuple

import numpy as np
from PIL import Image

from ...errors import DataError, UsageError

Drawn = Tuple[str, Image.Image]


class Scene(NamedTuple):
    """An image of the validation set.

    Attributes:
        name (str): its file's name.
        score (float): agreement of prediction and truth, from 0 to 1.
        caption (str): name, score, and what was found.
        draw (Callable): draws truth and prediction side by side.
    """

    name: str
    score: float
    caption: str
    draw: Callable[[], Image.Image]


class Curve(NamedTuple):
    """A precision-recall curve."""

    name: str
    recall: np.ndarray
    precision: np.ndarray


@dataclass
class Evaluation:
    """Results on a validation set.

    Attributes:
        classes (list[str]): names of the classes.
        count (int): images.
        summary (dict[str, float]): metrics over all classes.
        per_class (dict[str, np.ndarray]): metrics by name, one value per class; NaN where a class does not occur.
        confusion (np.ndarray): (rows, columns): truth in rows, prediction in columns, counts.
        rows, columns (list[str]): names of the confusion matrix's.
        confusion_note (str): how its entries are counted.
        curves (list[Curve]): precision-recall curves; empty if the task has none.
        curves_note (str): how they are counted, or why there are none.
        scenes (list[Scene]): all images, in the order of the data set.
        score_note (str): what the score of a scene is.
        notes (list[str]): what is missing, one sentence per entry.
    """

    classes: List[str]
    count: int = 0
    summary: Dict[str, float] = field(default_factory=dict)
    per_class: Dict[str, np.ndarray] = field(default_factory=dict)
    confusion: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    rows: List[str] = field(default_factory=list)
    columns: List[str] = field(default_factory=list)
    confusion_note: str = ''
    curves: List[Curve] = field(default_factory=list)
    curves_note: str = ''
    scenes: List[Scene] = field(default_factory=list)
    score_note: str = ''
    notes: List[str] = field(default_factory=list)

    def ranked(self) -> List[Scene]:
        """Return the scenes, the best first."""
        return sorted(self.scenes, key=lambda scene: -scene.score)

    def selected(self, each: int) -> Dict[str, Sequence[Scene]]:
        """Return up to ``each`` best, median and worst scenes, none of them twice."""
        ranked = self.ranked()
        each = min(each, max(1, len(ranked) // 3))
        middle = (len(ranked) - each) // 2
        groups = {
            'Best': ranked[:each],
            'Median': ranked[max(middle, each) : middle + each],
            'Worst': ranked[max(each, len(ranked) - each) :][::-1],
        }
        return {heading: scenes for heading, scenes in groups.items() if scenes}


def draw_selected(evaluation: Evaluation, each: int) -> Tuple[Dict[str, List[Drawn]], List[str]]:
    """Return captions and pictures of the best, median and worst scenes, and why others could not be drawn."""
    groups: Dict[str, List[Drawn]] = {}
    problems: List[str] = []
    for heading, scenes in evaluation.selected(each).items():
        for scene in scenes:
            try:
                groups.setdefault(heading, []).append((scene.caption, scene.draw()))
            except UsageError as error:
                problems.append(str(error))
    return {heading: pictures for heading, pictures in groups.items() if pictures}, problems


def check_order(names: Sequence[str], samples: Sequence[dict]) -> None:
    """Check that predictions are of the images of these names, in their order.

    Raises:
        DataError: they are of other images.
    """
    if len(samples) != len(names):
        raise DataError(f'the predictions are of {len(samples)} images, the validation set has {len(names)}.')
    for index, sample in enumerate(samples):
        path = str(sample.get('img_path', ''))
        if path.replace('\\', '/').rsplit('/', 1)[-1] != names[index]:
            raise DataError(f'the predictions are of other images: {path!r} stands in the place of {names[index]!r}.')
