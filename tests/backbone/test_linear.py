"""Linear layers as 1x1 convolutions: nn.Linear's values, gradients and checkpoints, and really a convolution."""
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from rmt_mm.backbone.layers import Linear


class Recorder(TorchDispatchMode):
    """Record the operators that run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize('shape', [(2, 5, 7, 16), (1, 1, 1, 16), (3, 1, 9, 16), (1, 6, 1, 16)])
@pytest.mark.parametrize('bias', [True, False])
def test_values_and_gradients_of_nn_linear(shape, bias):
    layer, plain = Linear(16, 24, bias), nn.Linear(16, 24, bias)
    plain.load_state_dict(layer.state_dict())
    x, direction = torch.randn(shape), torch.randn(*shape[:3], 24)
    results = []
    for net in (layer, plain):
        inputs = x.clone().requires_grad_()
        out = net(inputs)
        out.backward(direction)
        results.append([out, inputs.grad, *(p.grad for p in net.parameters())])
    for ours, expected in zip(*results):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_a_convolution_without_copies_on_the_cpu():
    layer, x = Linear(16, 24), torch.randn(2, 5, 7, 16)
    with torch.no_grad(), Recorder() as recorder:
        out = layer(x)
    assert 'convolution' in recorder.names and not {'addmm', 'clone', 'copy_', '_to_copy'} & set(recorder.names)
    assert out.is_contiguous()


def test_other_precisions_and_missing_library_take_the_product():
    layer = Linear(16, 24)
    with torch.no_grad(), Recorder() as recorder:
        layer.double()(torch.randn(2, 5, 7, 16).double())
        with torch.backends.mkldnn.flags(enabled=False):
            layer.float()(torch.randn(2, 5, 7, 16))
    assert 'convolution' not in recorder.names and recorder.names.count('addmm') == 2
