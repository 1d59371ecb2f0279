"""docs/errors.md: the sentences that it quotes stand in the code, with cause and cure. So do samples of other pages."""

import ast
import re

import pytest

from support import ROOT
from support.pages import FENCED, PAGES

PAGE = (ROOT / 'docs/errors.md').read_text()
ROWS = re.findall(r'^\| (`.*?`) \| (.*) \|$', PAGE, re.MULTILINE)
GAP = '\0'
SOURCES = [*(ROOT / 'rmt_mm').rglob('*.py'), ROOT / 'rmt_doctor.py', ROOT / 'tools/deployment/run.py']


def texts(path):
    """Return the texts of a module, with GAP in the place of values."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
            yield ''.join(part.value if isinstance(part, ast.Constant) else GAP for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


SAMPLES = [
    ' '.join(body.split())
    for page in PAGES
    for language, body in FENCED.findall(page.read_text())
    if body.startswith('error: ')
]
CODE = [text for path in SOURCES for text in texts(path)]


@pytest.mark.parametrize('quoted', [row[0].strip('`') for row in ROWS])
def test_quoted_sentences_stand_in_the_code(quoted):
    parts = [part for part in re.split(r'\.{3,}', quoted) if part.strip(' .,:()')]
    assert sum(map(len, parts)) >= 15
    pattern = re.compile('.*?'.join(map(re.escape, parts)), re.DOTALL)
    assert any(map(pattern.search, CODE))


def test_rows_have_a_cause_and_a_cure():
    assert len(ROWS) >= 60 and len(ROWS) == len(re.findall(r'^\| `', PAGE, re.MULTILINE))
    assert all(len(re.split(r' \| ', rest)) == 2 and all(re.split(r' \| ', rest)) for _, rest in ROWS)


@pytest.mark.parametrize('sample', SAMPLES)
def test_samples_are_sentences_of_the_code(sample):
    """A text of the code, with values in its places, stands in a sample."""
    assert any(fill(text).search(sample) for text in CODE if len(text.replace(GAP, '')) >= 25)


def fill(text):
    return re.compile('.*?'.join(re.escape(' '.join(part.split())) for part in text.split(GAP)))
