"""Linear layers as 1x1 convolutions: the values and gradients of nn.Linear, and a convolution is what runs."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from rmt_mm.backbone import linear as linear_module
from rmt_mm.backbone.linear import channels_last_linear, split_linear


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
    layer = nn.Linear(16, 24, bias)
    x, direction = torch.randn(shape), torch.randn(*shape[:3], 24)
    results = []
    for product in (channels_last_linear, nn.Linear.__call__):
        inputs = x.clone().requires_grad_()
        out = product(layer, inputs)
        results.append([out, *torch.autograd.grad(out, [inputs, *layer.parameters()], direction)])
    for ours, expected in zip(*results):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_a_convolution_without_copies_on_the_cpu():
    layer, x = nn.Linear(16, 24), torch.randn(2, 5, 7, 16)
    with torch.no_grad(), Recorder() as recorder:
        out = channels_last_linear(layer, x)
    assert 'convolution' in recorder.names and not {'addmm', 'clone', 'copy_', '_to_copy'} & set(recorder.names)
    assert out.is_contiguous()


def test_other_precisions_and_missing_library_take_the_product():
    layer = nn.Linear(16, 24)
    with torch.no_grad(), Recorder() as recorder:
        channels_last_linear(layer.double(), torch.randn(2, 5, 7, 16).double())
        with torch.backends.mkldnn.flags(enabled=False):
            channels_last_linear(layer.float(), torch.randn(2, 5, 7, 16))
    assert 'convolution' not in recorder.names and recorder.names.count('addmm') == 2


def double_weight(layer):
    """Give a Linear layer a pre-forward hook that changes its input, as adapters and quantisers do."""
    layer.register_forward_pre_hook(lambda module, args: (2 * args[0],))
    return layer


class Adapted(nn.Linear):
    """A Linear layer of another class, as adapters use to replace one."""

    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    'adapt',
    [
        double_weight,
        lambda layer: torch.nn.utils.parametrizations.weight_norm(layer),
        lambda layer: Adapted(16, 24),
        lambda layer: torch.ao.quantization.quantize_dynamic(nn.Sequential(layer), {nn.Linear})[0],
    ],
    ids=['hook', 'parametrised', 'subclass', 'quantised'],
)
def test_a_layer_that_is_not_plain_is_called(adapt):
    layer, x = adapt(nn.Linear(16, 24)), torch.randn(2, 5, 7, 16)
    with torch.no_grad():
        torch.testing.assert_close(channels_last_linear(layer, x), layer(x), rtol=0, atol=0)


@pytest.fixture
def split_at_once(monkeypatch):
    monkeypatch.setattr(linear_module, 'MIN_SPLIT_TOKENS', 70)


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('images, products', [(2, 2), (1, 1)])
def test_parts_of_an_output(split_at_once, bias, images, products):
    layer, x = nn.Linear(16, 24, bias), torch.randn(images, 5, 7, 16)
    expected = layer(x).split((16, 8), dim=-1)
    with torch.no_grad(), Recorder() as recorder:
        parts = split_linear(layer, x, (16, 8))
    assert recorder.names.count('convolution') == products and recorder.names.count('clone') == 2 - products
    torch.testing.assert_close(parts, tuple(expected), rtol=1e-4, atol=1e-5)
    assert parts[1].is_contiguous()


def test_parts_with_gradients_hooks_and_recorders_are_of_one_product(split_at_once):
    layer, x, seen = nn.Linear(16, 24), torch.randn(2, 5, 7, 16), []
    with Recorder() as recorder:
        split_linear(layer, x, (16, 8))
    assert recorder.names.count('convolution') == 1
    layer.requires_grad_(False)
    with torch.no_grad():
        traced = torch.jit.trace(lambda x: split_linear(layer, x, (16, 8)), x, check_trace=False)
        assert str(traced.graph).count('aten::linear') == 1
        layer.register_forward_hook(lambda module, args, out: seen.append(out.shape[-1]))
        split_linear(layer, x, (16, 8))
    assert seen == [24]
