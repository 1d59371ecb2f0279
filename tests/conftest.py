import pytest
import torch
from mmengine.registry import DefaultScope

from support import ROOT


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope='session')
def root():
    """Return the repository's folder."""
    return ROOT


@pytest.fixture(autouse=True)
def _scope():
    """Restore mmengine's default scope: a tool that runs in the process of the tests sets it."""
    before = dict(DefaultScope._instance_dict)
    yield
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(before)
