"""The files that README and docs name exist."""

import re

import pytest

from support import ROOT

PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]
# Check only names in these folders: other paths in a page may be examples of the reader's own files.
FOLDERS = ('configs', 'docs', 'requirements', 'rmt_mm', 'tests', 'tools')


@pytest.mark.parametrize('page', PAGES, ids=lambda path: path.name)
def test_named_files_exist(page):
    text = page.read_text()
    named = set(re.findall(rf'(?<![\w/.-])((?:{"|".join(FOLDERS)})/[\w./-]+\.(?:py|sh|md|txt|npz))', text))
    links = {link.split('#')[0] for link in re.findall(r'\]\(([^)\s]+)\)', text) if not link.startswith('http')}
    missing = [name for name in named if not (ROOT / name).exists()]
    missing += [link for link in links if link and not (page.parent / link).exists()]
    assert not missing
