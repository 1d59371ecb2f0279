"""Charts of the report, as plotly figures. The page sets colours of text and axes, for its light or dark mode."""

import html
from typing import Dict, List, Sequence, Tuple

import numpy as np
import plotly.graph_objects as go

from ...errors import printable
from .evaluation import Curve, Evaluation
from .logs import Points

COLOURS = ('#4c8dff', '#f28e2b', '#2fb67c', '#e5536b', '#a176e8', '#c0844f', '#e377c2', '#7cb342', '#b5a800', '#1fb6cc')
MAX_CLASSES = 50  # in a confusion matrix
MAX_BARS = 100


def escape(text: object) -> str:
    """Return a text that plotly shows as it is: in names and labels it takes tags of HTML, and TeX between dollars."""
    return html.escape(printable(text), quote=False).replace('$', '&#36;')


def _figure(x: str, y: str, height: int = 380, **layout) -> go.Figure:
    figure = go.Figure()
    figure.update_layout(
        template='none',
        colorway=COLOURS,
        height=height,
        margin=dict(l=64, r=16, t=16, b=52),
        legend=dict(orientation='h', y=1.02, yanchor='bottom', x=0),
        hovermode='x unified',
        **layout,
    )
    figure.update_xaxes(title=escape(x), automargin=True)
    figure.update_yaxes(title=escape(y), automargin=True)
    return figure


def lines(series: Dict[str, Points], x: str, y: str, hidden: Sequence[str] = (), from_zero: bool = True) -> go.Figure:
    """Draw (x, y) points of several series; those of ``hidden`` appear when their names are clicked."""
    figure = _figure(x, y)
    for name, points in series.items():
        xs, ys = zip(*points)
        figure.add_scatter(
            x=xs,
            y=ys,
            name=escape(name),
            mode='lines+markers' if len(points) < 30 else 'lines',
            visible='legendonly' if name in hidden else True,
            hovertemplate='%{y:.4g}',
            line=dict(width=2),
            showlegend=True,
        )
    if from_zero:
        figure.update_yaxes(rangemode='tozero')
    return figure


def per_class(evaluation: Evaluation, names: Sequence[str]) -> go.Figure:
    """Draw metrics of each class as bars; beyond ``MAX_BARS`` classes, the lowest by the first metric."""
    first = evaluation.per_class[names[0]]
    shown = np.arange(len(first)) if len(first) <= MAX_BARS else np.sort(np.argsort(first)[:MAX_BARS])
    figure = _figure('', 'percent' if np.nanmax(first) > 1 else '', barmode='group')
    for name in names:
        figure.add_bar(
            x=[escape(evaluation.classes[i]) for i in shown],
            y=evaluation.per_class[name][shown],
            name=escape(name),
            hovertemplate='%{y:.3g}',
            showlegend=True,
        )
    figure.update_xaxes(type='category')
    return figure


def confusion(evaluation: Evaluation) -> Tuple[go.Figure, str]:
    """Draw the confusion matrix, each row in percent of the truth, and return it with a note of what is left out."""
    counts, rows, columns, note = evaluation.confusion, list(evaluation.rows), list(evaluation.columns), ''
    if len(rows) > MAX_CLASSES:
        wrong = counts.sum(1) - np.diag(counts)
        kept = np.sort(np.argsort(-wrong)[:MAX_CLASSES])
        counts, rows, columns = counts[np.ix_(kept, kept)], [rows[i] for i in kept], [columns[i] for i in kept]
        note = f'The {MAX_CLASSES} rows of most errors are drawn.'
    share = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    # Categories of an axis must differ; classes of one name get their numbers.
    rows, columns = _distinct(rows), _distinct(columns)
    figure = _figure('prediction', 'truth', height=min(900, 160 + 30 * len(rows)))
    figure.add_heatmap(
        z=share,
        x=columns,
        y=rows,
        customdata=counts,
        zmin=0,
        zmax=100,
        colorscale=[[0, 'rgba(76,141,255,0.04)'], [0.15, 'rgba(76,141,255,0.35)'], [1, 'rgba(30,90,220,1)']],
        hovertemplate='truth %{y}, prediction %{x}: %{customdata} (%{z:.1f} %)<extra></extra>',
        texttemplate='%{z:.0f}' if len(rows) <= 25 else None,
        colorbar=dict(title='% of row', thickness=12),
        xgap=1,
        ygap=1,
    )
    figure.update_layout(hovermode='closest')
    figure.update_xaxes(type='category', showgrid=False)
    figure.update_yaxes(type='category', autorange='reversed', showgrid=False)
    return figure, note


def _distinct(names: Sequence[str]) -> List[str]:
    shown = [escape(name) for name in names]
    return [f'{name} ({i})' if shown.count(name) > 1 else name for i, name in enumerate(shown)]


def precision_recall(curves: Sequence[Curve]) -> go.Figure:
    """Draw precision over recall, one line per class; the first curve, if it is a mean, is broad."""
    figure = _figure('recall', 'precision', height=440)
    for curve in curves:
        if np.isnan(curve.precision).all():
            continue
        mean = curve.name.startswith('mean, ')
        figure.add_scatter(
            x=curve.recall,
            y=curve.precision,
            name=escape(curve.name),
            mode='lines',
            line=dict(width=3, color='#8a95a5', dash='dash') if mean else dict(width=1.5),
            hovertemplate='%{y:.3f}',
            showlegend=True,
        )
    figure.update_xaxes(range=[0, 1.005])
    figure.update_yaxes(range=[0, 1.03])
    return figure
