import os

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope

from support import ROOT
from support.documented import summary
from support.pages import read_blocks, read_commands
from support.quick import speed_up_runners

if (
    not torch.cuda.is_available()
):  # without a GPU, triton's interpreter runs our kernels; triton reads this at its import
    os.environ.setdefault('TRITON_INTERPRET', '1')
speed_up_runners()


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope='session')
def root():
    """Return the repository's folder."""
    return ROOT


@pytest.fixture(autouse=True)
def _scope():
    """Start and end without mmengine's default scope and loggers: tools that run in this process set them."""
    DefaultScope._instance_dict.clear()
    yield
    DefaultScope._instance_dict.clear()
    MMLogger._instance_dict.clear()  # they write to files and streams of this test


def pytest_terminal_summary(terminalreporter):
    """Say how much of README and docs was run, after a run of their tests."""
    passed = [report.nodeid for report in terminalreporter.stats.get('passed', ()) if report.when == 'call']
    if any(test.startswith(('tests/docs/test_commands', 'tests/docs/test_python')) for test in passed):
        commands = {command.text for command in read_commands()}
        terminalreporter.section('documentation')
        terminalreporter.line(summary(passed, len(commands), len(read_blocks())))
