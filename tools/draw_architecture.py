"""Draw RMT as an SVG: the stages of a size with their outputs, a block, and MaSA.

python tools/draw_architecture.py docs/architecture.svg --arch small
"""

import argparse
from html import escape
from pathlib import Path
from typing import List, Tuple

from rmt_mm.arch import ARCHS, STEMS

WIDTH, HEIGHT = 960, 560
COLOURS = dict(conv='#dbe9f6', attention='#fde3c8', norm='#eeeeee', ffn='#dff0d8', out='#ffffff')


def box(x: float, y: float, width: float, lines: List[str], kind: str, height: float = 46) -> str:
    """Return a box with centred lines of text."""
    first = y + height / 2 + 4 - 8 * (len(lines) - 1)
    text = ''.join(
        f'<text x="{x + width / 2}" y="{first + 16 * i}" text-anchor="middle">{escape(line)}</text>'
        for i, line in enumerate(lines)
    )
    return (
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="5" fill="{COLOURS[kind]}" stroke="#444"/>{text}'
    )


def arrow(*points: Tuple[float, float]) -> str:
    path = ' '.join(f'{x},{y}' for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="#444" marker-end="url(#head)"/>'


def label(x: float, y: float, text: str, anchor: str = 'start', weight: str = 'normal') -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-weight="{weight}">{escape(text)}</text>'


def draw_stages(name: str) -> List[str]:
    """Return the row of stem, stages and downsamplings, with the outputs above."""
    arch = ARCHS[name]
    convs = ', '.join(f'{kernel}x{kernel}/{stride}' for _, kernel, stride in STEMS[arch.stem])
    parts = [label(20, 24, f'RMT, {name}', weight='bold'), box(20, 120, 150, ['stem', convs], 'conv')]
    x = 200.0
    for i, (stage, stride) in enumerate(zip(arch.stages(), arch.strides())):
        kind = 'rows, columns' if stage.decomposed else 'whole map'
        lines = [f'stage {i + 1}: {stage.depth} blocks', f'{stage.dim} channels, {stage.num_heads} heads', kind]
        parts += [
            arrow((x - 30, 143), (x, 143)),
            box(x, 110, 160, lines, 'attention', 66),
            arrow((x + 80, 110), (x + 80, 89)),
            box(x + 20, 48, 120, ['LayerNorm', f'stride {stride}'], 'out', 40),
        ]
        if i < len(arch.depths) - 1:
            parts.append(label(x + 175, 196, '3x3 conv, /2', 'middle'))
        x += 190
    return parts


def draw_chain(x: float, y: float, title: str, steps: List[Tuple[List[str], str]], width: float) -> List[str]:
    """Return a column of boxes under a title, joined by arrows."""
    parts = [label(x, y - 14, title, weight='bold')]
    for i, (lines, kind) in enumerate(steps):
        top = y + 52 * i
        parts.append(box(x, top, width, lines, kind, 38))
        if i:
            parts.append(arrow((x + width / 2, top - 14), (x + width / 2, top)))
    return parts


def draw(name: str) -> str:
    block = [
        (['x + 3x3 depthwise (x): CPE'], 'conv'),
        (['LayerNorm'], 'norm'),
        (['MaSA, added to x'], 'attention'),
        (['LayerNorm'], 'norm'),
        (['FFN with 3x3 depthwise, added to x'], 'ffn'),
    ]
    masa = [
        (['Linear: queries, keys, values'], 'ffn'),
        (['rotate queries and keys by token index'], 'norm'),
        (['along rows: softmax(q k + log D) v'], 'attention'),
        (['along columns, of that result'], 'attention'),
        (['+ 5x5 depthwise (v): LCE'], 'conv'),
        (['Linear'], 'ffn'),
    ]
    prior = [
        (["D = gamma^(|y - y'| + |x - x'|)"], 'attention'),
        (['gamma of head i = 1 - 2^(-a - r i / n)'], 'attention'),
        (['head 0 is the most local'], 'attention'),
    ]
    parts = [
        *draw_stages(name),
        *draw_chain(20, 250, 'A block', block, 270),
        *draw_chain(330, 250, 'MaSA, decomposed', masa, 290),
        *draw_chain(660, 250, 'The prior', prior, 280),
    ]
    head = '<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="12"><title>RMT, {name}</title><defs>{head}<path d="M0,0 L8,4 L0,8 z" fill="#444"/></marker></defs>'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>' + '\n'.join(parts) + '</svg>\n'
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('out', type=Path, help='SVG to write')
    four = [name for name, arch in ARCHS.items() if len(arch.depths) == 4]
    parser.add_argument('--arch', default='small', choices=four, help='default: small')
    args = parser.parse_args()
    args.out.write_text(draw(args.arch))


if __name__ == '__main__':
    main()
