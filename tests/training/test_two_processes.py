"""Two processes train on the mean of the gradients of their halves of a batch; one that dies ends the other."""

import pytest
import torch

from support import ROOT
from support.scripts import run_script

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason='CUDA takes no fork')


def test_gradients_of_backbones_are_the_mean_of_the_halves(tmp_path):
    done = run_script(ROOT / 'tests/two_processes.py', tmp_path, 'plain', 'frozen', 'recomputed', 'unused')
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_gradients_of_whole_models(tmp_path):
    done = run_script(ROOT / 'tests/two_processes.py', tmp_path, 'classifier', 'segmentor', 'detector', 'fcos')
    assert done.returncode == 0, done.stderr


def test_a_process_that_dies_ends_the_other(tmp_path):
    done = run_script(ROOT / 'tests/two_processes.py', tmp_path, 'death')
    assert done.returncode == 0, done.stderr
    assert 'UsageError: another process of this run has ended' in done.stderr
