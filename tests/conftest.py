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
    """Start and end without mmengine's default scope: tools that run in the process of the tests set it."""
    DefaultScope._instance_dict.clear()
    yield
    DefaultScope._instance_dict.clear()
