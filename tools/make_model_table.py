"""Write the model tables into docs/model_zoo.md, from model-index.yml and the metafiles that it lists.

A task's table replaces the text between the lines <!-- models: TASK --> and <!-- end of models -->, where TASK is a
folder of configs/. With --check nothing is written, and the exit status says whether the tables are up to date.
"""

import argparse
import re
import sys
from pathlib import Path
from typing import Dict, List

import yaml

ROOT = Path(__file__).resolve().parent.parent
FILES = ('docs/model_zoo.md',)
BLOCK = re.compile(r'(?P<start><!-- models: (?P<task>\w+) -->\n).*?(?P<end><!-- end of models -->)', re.DOTALL)


def read_models(root: Path) -> Dict[str, List[dict]]:
    """Return the models by task, in the order of the metafiles."""
    index = yaml.safe_load((root / 'model-index.yml').read_text())
    return {Path(path).parent.name: yaml.safe_load((root / path).read_text())['Models'] for path in index['Import']}


def make_table(models: List[dict], link_prefix: str) -> str:
    """Return a Markdown table of a task's models, without the columns that are empty in all rows."""
    sources = list(dict.fromkeys(result['Source'] for model in models for result in model.get('Results', [])))
    rows = [make_row(model, sources, link_prefix) for model in models]
    columns = dict.fromkeys(name for row in rows for name in row)
    header = [name for name in columns if any(row.get(name) for row in rows)]
    lines = [header, ['---', *['---:'] * (len(header) - 1)], *([row.get(name, '') for name in header] for row in rows)]
    table = '\n'.join(f'| {" | ".join(line)} |' for line in lines)

    about = [f'GFLOPs and results: {sources[0]}.'] if sources else []
    if 'GMAC counted' in header:
        about.append(
            'GMAC counted: by `tools/get_flops.py`, with attention products. The published GFLOPs of COCO and ADE20K '
            'omit these; those of ImageNet are multiply-adds / 2^30.'
        )
    if not all(model.get('Results') for model in models):
        about.append('Rows without results: ours, untrained, or not published.')
    notes = [f'<sup>{note}</sup> {source}.' for note, source in enumerate(sources) if note > 0]
    return f'{table}\n\n{" ".join(about + notes)}\n'


def make_row(model: dict, sources: List[str], link_prefix: str) -> Dict[str, str]:
    """Return the cells of a model by column. Results that are not from the first source get a footnote mark."""
    data = model['Metadata']
    length = f'{data["Epochs"]} epochs' if 'Epochs' in data else ''
    if 'Iterations' in data:
        length = f'{data["Iterations"] // 1000}k iterations'
    params = data.get('Parameters published (M)')
    if params is None and 'Parameters' in data:
        params = f'{data["Parameters"] / 1e6:.1f}'
    row = {
        'Config': f'[{model["Name"]}]({link_prefix}{model["Config"]})',
        'Length': length,
        'Params (M)': format_value(params),
        'GFLOPs': format_value(data.get('FLOPs published (G)')),
        'GMAC counted': format_value(data.get('GMAC counted')),
        'at': data.get('Image Size', '').replace('x', '&times;'),
    }
    for result in model.get('Results', []):
        note = sources.index(result['Source'])
        for name, value in result['Metrics'].items():
            # Of the COCO metrics, show only the two common ones; the others stay in the metafile.
            if name in ('box AP', 'mask AP') or 'AP' not in name:
                cell = f'{value} <sup>{note}</sup>' if note else str(value)
                row[name] = f'{row[name]}, {cell}' if name in row else cell
    return row


def format_value(value) -> str:
    return '' if value is None else str(value)


def fill(text: str, models: Dict[str, List[dict]], link_prefix: str) -> str:
    """Return ``text`` with its tables replaced. Raise ValueError for a task without a metafile."""

    def replace(match):
        if match['task'] not in models:
            raise ValueError(f'no metafile for the table "{match["task"]}"; there are: {", ".join(models)}')
        return match['start'] + make_table(models[match['task']], link_prefix) + match['end']

    return BLOCK.sub(replace, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--check', action='store_true', help='write nothing; exit with 1 if a table is out of date')
    parser.add_argument('--root', type=Path, default=ROOT, help='the repository (default: the one of this script)')
    args = parser.parse_args()
    try:
        models = read_models(args.root)
        stale = []
        for path in (args.root / name for name in FILES):
            if not path.exists():
                continue
            old = path.read_text()
            new = fill(old, models, link_prefix='../' * (len(path.relative_to(args.root).parts) - 1))
            if new != old:
                stale.append(path)
                if not args.check:
                    path.write_text(new)
    except (OSError, ValueError, KeyError, yaml.YAMLError) as error:
        sys.exit(f'error: {error}')
    for path in stale:
        print(f'{path}: {"out of date, run python tools/make_model_table.py" if args.check else "written"}')
    sys.exit(1 if args.check and stale else 0)


if __name__ == '__main__':
    main()
