import pytest

from rmt_mm.checkpoints import force_safe_loading


@pytest.fixture
def forced(monkeypatch):
    """Force safe loading as programs do, with the variables of the environment as they were afterwards."""
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '0')
    force_safe_loading()
