"""docs/errors.md: each sentence that it quotes stands in the code, with a cause and a cure."""

import ast
import re

import pytest

from support import ROOT

PAGE = (ROOT / 'docs/errors.md').read_text()
ROWS = re.findall(r'^\| (`.*?`) \| (.*) \|$', PAGE, re.MULTILINE)
SOURCES = [*(ROOT / 'rmt_mm').rglob('*.py'), ROOT / 'rmt_doctor.py', ROOT / 'tools/deployment/run.py']


def texts(path):
    """Return the texts of a module, '...' in the place of values."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
            yield ''.join(part.value if isinstance(part, ast.Constant) else '...' for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


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
