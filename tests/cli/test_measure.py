"""What the tools that measure share."""

import pytest
import torch

from rmt_mm.cli.measure import Case, build


@pytest.mark.parametrize('impl', ['torchvision.swin_t', 'torchvision.convnext_tiny'])
def test_a_training_step_of_torchvision_drops_nothing(impl):
    model = build(impl, Case('small', (64, 64), 2, 'train', 'cpu', 'fp32'))
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        first, again = model(x), model(x)
    assert model.training and torch.equal(first, again)
