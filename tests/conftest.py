import pytest
import torch

from support import ROOT


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope='session')
def root():
    """The repository's folder."""
    return ROOT
