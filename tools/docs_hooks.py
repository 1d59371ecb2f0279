"""Hooks of mkdocs.yml: README as the first page, links to files outside docs/, and the --help of each command."""

import contextlib
import io
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = (
    'tools/train.py',
    'tools/test.py',
    'tools/demo.py',
    'tools/webui.py',
    'tools/get_flops.py',
    'tools/model_converters/rmt_to_mm.py',
    'tools/model_converters/reparameterize_model.py',
    'tools/deployment/export.py',
    'tools/analysis_tools/report.py',
    'tools/analysis_tools/vis_masa.py',
    'tools/analysis_tools/benchmark.py',
    'tools/dataset_converters/make_token_labels.py',
    'rmt_doctor.py',
)
LINK = re.compile(r'(?<!!)\[([^\]]+)\]\(\.\./([^)\s]+)\)')


def on_page_markdown(markdown: str, page: Any, **kwargs: Any) -> str:
    """Return the Markdown of a page of the site."""
    if page.file.src_uri == 'index.md':
        text = (ROOT / 'README.md').read_text()
        markdown = re.sub(r'\]\((?!https?:|docs/|#)', '](../', text).replace('](docs/', '](')
    if page.file.src_uri == 'commands.md':
        markdown = markdown.replace('<!-- HELP -->', commands())
    return LINK.sub(name_file, markdown)


def on_page_content(html: str, **kwargs: Any) -> str:
    """Return the HTML of a page without the marks that docstrings have for Sphinx: roles, and links to addresses."""
    html = re.sub(r':(?:class|data|func|meth|mod):(?=<code>)', '', html)
    return re.sub(r'<code>([^<]+) &lt;(https?:[^<]+)&gt;</code>_', r'<a href="\2">\1</a>', html)


def name_file(match: re.Match) -> str:
    """Return the text of a link to a file that the site does not have, and the file's name in the repository."""
    text, target = match.groups()
    path = target.split('#')[0]
    if not (ROOT / path).exists():
        raise FileNotFoundError(f'docs link to {path}, which does not exist')
    names = Path(path).name, Path(path).stem  # a config is named without its suffix
    return text if text.strip('`').endswith(names) else f'{text} (`{path}`)'


def commands() -> str:
    """Return what all commands print, from one process of its own: the build would count the libraries' warnings."""
    done = subprocess.run([sys.executable, '-W', 'ignore', __file__], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def help_of(script: str) -> str:
    """Return what a command prints with --help, under its name."""
    out, argv = io.StringIO(), sys.argv
    sys.argv = [script, '--help']
    try:
        with contextlib.redirect_stdout(out):
            runpy.run_path(str(ROOT / script), run_name='__main__')
    except SystemExit as end:
        if end.code:
            raise RuntimeError(f'{script} --help ended with {end.code}') from end
    finally:
        sys.argv = argv
    return f'## {Path(script).name}\n\n```text\n{out.getvalue()}```'


if __name__ == '__main__':
    print('\n\n'.join(map(help_of, COMMANDS)))
