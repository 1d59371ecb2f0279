"""Some of the cases of ``make fuzz``: each ends in success or in one sentence."""

import re

from support import ROOT
from support.scripts import run_script


def test_cases_end_in_success_or_a_sentence():
    done = run_script(ROOT / 'tests/fuzz.py', '--cases', 100)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    counts = re.findall(r'^[\w-]+: (\d+) cases, ', done.stdout, re.MULTILINE)
    assert len(counts) == 7 and sum(map(int, counts)) == 100
