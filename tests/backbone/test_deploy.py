"""The form for inference: the same outputs, fewer layers, and errors where it is confused with the ordinary form."""

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from rmt_mm import RMT

from support.archs import SMALL_ARCH

OWN = {**SMALL_ARCH, 'layer_scales': (False, False, True, True)}


def trained(**kwargs):
    """Return a model with other statistics and scales than an untrained model's."""
    model = RMT(OWN, layer_scale_init=0.5, **kwargs)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model.eval()


@pytest.mark.parametrize('norm', [dict(type='BN'), dict(type='SyncBN'), dict(type='GN', num_groups=4)])
def test_outputs_stay_the_same(norm):
    model, x = trained(norm_cfg=norm), torch.randn(2, 3, 50, 61)
    with torch.no_grad():
        expected = model(x)
        model.switch_to_deploy()
        outs = model(x)
    for out, reference in zip(outs, expected):
        assert float((out - reference).norm() / reference.norm()) < 1e-5
    assert not any(isinstance(m, _BatchNorm) for m in model.modules())
    assert not any('gamma' in name for name, _ in model.named_parameters())


def test_a_batchnorm_of_the_batch_alone_stays():
    model, x = RMT(OWN, norm_cfg=dict(type='BN', track_running_stats=False)).eval(), torch.randn(2, 3, 50, 61)
    with torch.no_grad():
        expected = model(x)
        model.switch_to_deploy()
        for out, reference in zip(model(x), expected):
            torch.testing.assert_close(out, reference)
    assert any(isinstance(m, _BatchNorm) for m in model.modules())


def test_twice_is_once():
    model, x = trained(), torch.randn(1, 3, 32, 32)
    model.switch_to_deploy()
    once = model(x)
    model.switch_to_deploy()
    for a, b in zip(once, model(x)):
        assert torch.equal(a, b)


def test_refused_in_training_mode():
    with pytest.raises(RuntimeError, match='eval'):
        RMT(OWN).train().switch_to_deploy()


def test_deploy_builds_what_checkpoints_of_it_need():
    model, x = trained(), torch.randn(1, 3, 32, 32)
    model.switch_to_deploy()
    fresh = RMT(OWN, deploy=True).eval()
    fresh.load_state_dict(model.state_dict())
    for a, b in zip(model(x), fresh(x)):
        assert torch.equal(a, b)
