"""tools/analysis_tools/compare_checkouts.py: both checkouts run, and mistakes are named."""

import re
import shutil

import pytest

from support import ROOT
from support.scripts import run_script


def compare(*args):
    return run_script(ROOT / 'tools/analysis_tools/compare_checkouts.py', *args)


@pytest.mark.slow
def test_each_checkout_runs_its_own_backbone(tmp_path):
    shutil.copytree(ROOT / 'rmt_mm', tmp_path / 'rmt_mm')
    options = ('--arch', 'tiny', '--shape', 64, 64, '--repeat', 1)
    done = compare(ROOT, tmp_path, *options)
    assert done.returncode == 0, done.stderr
    first, second, ratio, low, high = map(float, re.findall(r'(?<!\d)\d+\.\d{3}', done.stdout))
    assert first > 0 and low == ratio == high == pytest.approx(second / first, rel=0.1)
    with open(tmp_path / 'rmt_mm/backbone/rmt.py', 'a') as file:
        file.write("raise RuntimeError('the second one')\n")
    done = compare(ROOT, tmp_path, *options)
    assert done.returncode == 1 and 'the second one' in done.stderr and 'a worker ended' in done.stderr


@pytest.mark.parametrize(
    'args, words', [((ROOT, ROOT / 'docs'), 'docs is not a checkout'), ((ROOT, ROOT, '--env', 'A'), 'write NAME=VALUE')]
)
def test_mistakes_are_named(args, words):
    done = compare(*args)
    assert done.returncode == 2 and words in done.stderr
