"""The list of predictions beside the picture, as HTML."""

from html import escape
from typing import Iterable, List, Sequence, Tuple

from ..cli.predictor import Classifier, Detector, Predictor, Segmentor

# (colour, name, length of the bar from 0 to 1, text of the value)
Row = Tuple[Sequence[int], str, float, str]


def list_predictions(predictor: Predictor, entries: List[dict], threshold: float) -> str:
    """Return HTML that lists the entries of :meth:`rmt_mm.tools.cli.predictor.Predictor.entries`, the highest first."""
    colours = predictor.model.dataset_meta['palette']
    if isinstance(predictor, Detector):
        found = sorted(entries, key=lambda entry: -entry['score'])
        colour_of = dict(zip(predictor.classes, colours))
        rows = [(colour_of[e['category']], e['category'], e['score'], f'{e["score"]:.2f}') for e in found]
        count = f'{len(rows)} object{"" if len(rows) == 1 else "s"}' if rows else 'No object'
        return _table(f'{count} with a score of {threshold:.2f} or more', rows)
    [entry] = entries
    found = entry['predictions']
    if isinstance(predictor, Segmentor):
        total = sum(p['pixels'] for p in found)
        found = sorted(found, key=lambda p: -p['pixels'])
        rows = [(colours[p['label']], p['category'], p['pixels'] / total, f'{p["pixels"] / total:.1%}') for p in found]
        return _table('Share of the pixels', rows)
    assert isinstance(predictor, Classifier)
    rows = [(colours[p['label']], p['category'], p['score'], f'{p["score"]:.1%}') for p in found]
    return _table('Most probable classes', rows)


def _table(title: str, rows: Iterable[Row]) -> str:
    lines = [
        f'<li><i style="background: rgb({", ".join(map(str, colour))})"></i><span class="name">{escape(name)}</span>'
        f'<span class="bar"><b style="width: {100 * min(1, max(0, share)):.1f}%"></b></span>'
        f'<span class="value">{text}</span></li>'
        for colour, name, share, text in rows
    ]
    return f'<div class="found"><h3>{escape(title)}</h3><ol>{"".join(lines)}</ol></div>'
