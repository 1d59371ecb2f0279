import ast
import functools
import os

import mmengine.config.config
import mmengine.runner.runner
import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope

from support import ROOT

if (
    not torch.cuda.is_available()
):  # without a GPU, triton's interpreter runs our kernels; triton reads this at its import
    os.environ.setdefault('TRITON_INTERPRET', '1')


def _check_syntax(text, **style):
    """Stand for yapf, by which every Runner formats its whole config four times: that takes seconds."""
    ast.parse(text)
    return text, True


mmengine.config.config.FormatCode = _check_syntax
# Every Runner asks compilers for their versions, which takes a second.
mmengine.runner.runner.collect_env = functools.cache(mmengine.runner.runner.collect_env)


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
