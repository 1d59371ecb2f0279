"""Wide depthwise convolutions: the values and gradients of nn.Conv2d, by kernels of few columns."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from rmt_mm.backbone.attention import MaSA
from rmt_mm.backbone.depthwise import WideDepthwiseConv, depthwise_conv


class BackwardKernels(TorchDispatchMode):
    """Record the columns of the kernels whose weight gradients are computed."""

    def __init__(self):
        super().__init__()
        self.columns = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution_backward.default and args[-1][1]:
            self.columns.append(args[2].shape[-1])
        return func(*args, **(kwargs or {}))


def build(columns=5, dim=16, bias=True):
    return nn.Conv2d(dim, dim, columns, padding=columns // 2, groups=dim, bias=bias)


def gradients(convolve, layer, x):
    x = x.clone().requires_grad_()
    out = convolve(layer, x)
    torch.manual_seed(1)
    return out, torch.autograd.grad(out, [x, *layer.parameters()], torch.randn_like(out))


@pytest.mark.parametrize('size', [(1, 1), (2, 3), (9, 4), (4, 9), (1, 7)])
@pytest.mark.parametrize('columns, bias', [(5, True), (5, False), (3, True), (7, True), (1, True)])
def test_values_and_gradients_of_nn_conv2d(size, columns, bias):
    layer, x = build(columns, bias=bias), torch.randn(2, *size, 16).permute(0, 3, 1, 2)
    out, ours = gradients(depthwise_conv, layer, x)
    expected_out, expected = gradients(nn.Conv2d.__call__, layer, x)
    assert 'WideDepthwiseConv' in out.grad_fn.name()
    torch.testing.assert_close(out, expected_out)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_no_kernel_is_wider_than_onednn_supports_well():
    with BackwardKernels() as kernels:
        gradients(depthwise_conv, build(), torch.randn(1, 16, 6, 6))
    assert kernels.columns == [3, 2]


def test_second_derivatives():
    layer, x = build(dim=2).double(), torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(WideDepthwiseConv.apply, (x, layer.weight, layer.bias))


@pytest.mark.parametrize('frozen', [('weight',), ('bias',), ('weight', 'bias')])
def test_frozen_parameters(frozen):
    layer, x = build(), torch.randn(1, 16, 6, 6, requires_grad=True)
    for name in frozen:
        getattr(layer, name).requires_grad_(False)
    depthwise_conv(layer, x).sum().backward()
    assert x.grad is not None
    for name, parameter in layer.named_parameters():
        assert (parameter.grad is None) is (name in frozen)


def test_an_input_without_gradient():
    layer = build()
    depthwise_conv(layer, torch.randn(1, 16, 6, 6)).sum().backward()
    assert layer.weight.grad is not None and layer.bias.grad is not None


def test_lce_takes_it_in_training():
    masa = MaSA(32, 2, 2, 4, True)
    with BackwardKernels() as kernels:
        masa(torch.randn(1, 6, 6, 32)).sum().backward()
    assert sorted(kernels.columns) == [1, 1, 2, 3]  # qkv, proj, and LCE in two parts


def test_other_precisions_hooks_classes_and_recorders_call_the_layer():
    layer, x, seen = build(), torch.randn(1, 16, 6, 6), []
    frozen = build().requires_grad_(False)
    with torch.autocast('cpu', torch.bfloat16):
        assert 'Wide' not in depthwise_conv(layer, x).grad_fn.name()
    assert 'Wide' not in depthwise_conv(build().double(), x.double()).grad_fn.name()
    with torch.backends.mkldnn.flags(enabled=False):
        assert 'Wide' not in depthwise_conv(layer, x).grad_fn.name()
    with torch.no_grad():
        assert depthwise_conv(layer, x).grad_fn is None
    torch.func.grad(lambda x: depthwise_conv(layer, x).sum())(x)
    assert 'Wide' not in str(torch.jit.trace(lambda x: depthwise_conv(frozen, x), x, check_trace=False).graph)
    layer.register_forward_hook(lambda module, args, out: seen.append(out))
    depthwise_conv(layer, x)
    assert len(seen) == 1
    parametrised = torch.nn.utils.parametrizations.weight_norm(build())
    assert 'Wide' not in depthwise_conv(parametrised, x).grad_fn.name()
