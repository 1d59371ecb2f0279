"""Attention maps are exact: applied to the values, a map gives MaSA's output."""

import pytest
import torch
from torch import nn

from rmt_mm import RMT
from rmt_mm.tools.analysis import (
    View,
    attend_by_map,
    attention_maps,
    features_as_colours,
    find_backbone,
    receptive_fields,
)
from rmt_mm.tools.analysis import record as record_masa

from support.archs import SMALL_ARCH


@pytest.fixture(scope='module')
def backbone():
    torch.manual_seed(0)
    model = RMT(SMALL_ARCH).eval()
    for name, parameter in model.named_parameters():
        if 'qkv' in name:  # attention that is far from uniform
            nn.init.normal_(parameter, std=0.5)
        if 'gamma' in name:
            nn.init.ones_(parameter)
    return model


def record(backbone, stage, block=0, size=(72, 100)):
    image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(1))
    return record_masa(backbone, lambda: backbone(image), stage, block)


@pytest.mark.parametrize('deploy', [False, True])
@pytest.mark.parametrize('stage,block', [(0, 0), (1, -1), (2, 1), (3, 0), (-1, 0)])
def test_maps_give_the_output_of_masa(backbone, stage, block, deploy):
    if deploy:
        folded = RMT(SMALL_ARCH).eval()
        folded.load_state_dict(backbone.state_dict())
        folded.switch_to_deploy()
        backbone = folded
    found = record(backbone, stage, block)
    height, width, _ = found.x.shape
    assert found.out.std() > 0.01
    for query in [(0, 0), (height - 1, 0), (height // 2, width - 1), (1, 2)]:
        maps = attention_maps(found.masa, found.x, query)
        assert maps.attention.shape == (found.masa.num_heads, height, width)
        torch.testing.assert_close(
            attend_by_map(found.masa, found.x, maps.attention, query), found.out[query], atol=1e-5, rtol=1e-5
        )
        wrong = attend_by_map(found.masa, found.x, maps.softmax, query)
        assert (wrong - found.out[query]).abs().max() > 1e-3  # the decay matters


@pytest.mark.parametrize('stage', range(4))
def test_sums_and_decay(backbone, stage):
    found = record(backbone, stage)
    maps = attention_maps(found.masa, found.x, (1, 2))
    ones = torch.ones(found.masa.num_heads)
    torch.testing.assert_close(maps.attention.sum((1, 2)), ones)
    torch.testing.assert_close(maps.softmax.sum((1, 2)), ones)
    gamma = torch.tensor(found.masa.log_decay).exp()
    torch.testing.assert_close(maps.decay[:, 1, 2], ones)
    torch.testing.assert_close(maps.decay[:, 2, 0], gamma**3)


def test_without_scores_attention_is_the_decay(backbone):
    """Where all scores are 0, attention is the decay itself, made to sum to 1."""
    found = record(backbone, 0)
    weight, bias = found.masa.qkv.weight.data.clone(), found.masa.qkv.bias.data.clone()
    found.masa.qkv.weight.data[:32].zero_()
    found.masa.qkv.bias.data[:32].zero_()
    try:
        maps = attention_maps(found.masa, found.x, (3, 4))
    finally:
        found.masa.qkv.weight.data, found.masa.qkv.bias.data = weight, bias
    torch.testing.assert_close(maps.attention, maps.decay / maps.decay.sum((1, 2), keepdim=True))
    torch.testing.assert_close(maps.softmax, torch.full_like(maps.softmax, 1 / maps.softmax[0].numel()))


def test_recording_leaves_nothing_and_refuses_what_it_cannot_show(backbone):
    image = torch.rand(1, 3, 64, 64)
    with pytest.raises(ZeroDivisionError):
        record_masa(backbone, lambda: 1 / 0, 0, 0)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in backbone.modules())
    with pytest.raises(IndexError, match='stage 1 has 2 blocks'):
        record_masa(backbone, lambda: backbone(image), 1, 2)
    with pytest.raises(ValueError, match='slide'):
        record_masa(backbone, lambda: (backbone(image), backbone(image)), 0, 0)
    with pytest.raises(ValueError, match='one image'):
        record_masa(backbone, lambda: backbone(image.repeat(2, 1, 1, 1)), 0, 0)
    first = RMT(SMALL_ARCH, out_indices=(0,)).eval()
    with pytest.raises(IndexError, match='out_indices is 0'):
        record_masa(first, lambda: first(image), 2, 0)
    found = record(backbone, 1)
    with pytest.raises(IndexError, match='9 rows and 13 columns'):
        attention_maps(found.masa, found.x, (9, 0))


def test_find_backbone(backbone):
    assert find_backbone(nn.ModuleDict(dict(neck=nn.Linear(1, 1), backbone=backbone))) is backbone
    with pytest.raises(ValueError, match='the backbone is a Linear'):
        find_backbone(nn.ModuleDict(dict(backbone=nn.Linear(1, 1))).backbone)


RESIZED = dict(ori_shape=(120, 190), img_shape=(101, 160), scale_factor=(160 / 190, 101 / 120))
CROPPED = dict(ori_shape=(300, 400), img_shape=(224, 224), scale_factor=(0.853, 0.8533))  # 256 x 341, then cut


def test_view_of_resized_and_padded_images():
    view = View.from_metainfo(RESIZED)
    assert (view.top, view.left) == (0, 0)
    assert view.token(0, 0, 16) == (0, 0) and view.token(189, 119, 16) == (6, 9)
    # A token's centre lies in the token.
    for row, column in [(0, 0), (3, 7), (5, 9)]:
        assert view.token(*view.pixel(row, column, 16), 16) == (row, column)
    with pytest.raises(ValueError, match='190 x 120'):
        view.token(190, 5, 16)


def test_view_of_a_window_from_the_centre():
    view = View.from_metainfo(CROPPED)
    assert (view.top, view.left) == (16, 59)
    assert view.token(200, 150, 32) == (3, 3)
    with pytest.raises(ValueError, match='cuts off'):
        view.token(5, 150, 32)
    whole = view.on_image(torch.rand(2, 7, 7), 32)
    assert whole.shape == (2, 300, 400)
    assert whole[0, :10].isnan().all() and not whole[0, 30:-30, 80:-80].isnan().any()


@pytest.mark.parametrize('mode', ['nearest', 'bilinear'])
@pytest.mark.parametrize('metainfo', [RESIZED, CROPPED, dict(ori_shape=(61, 47), img_shape=(61, 47))])
def test_a_map_lies_where_its_tokens_lie(metainfo, mode):
    view = View.from_metainfo(metainfo)
    stride = 8
    shape = (-(-view.window_height // stride), -(-view.window_width // stride))
    for row, column in [(0, 0), (2, 3), (shape[0] - 1, shape[1] - 2)]:
        tokens = torch.zeros(1, *shape)
        tokens[0, row, column] = 1
        whole = view.on_image(tokens, stride, mode).nan_to_num(0)[0]
        y, x = divmod(int(whole.argmax()), view.width)
        assert view.token(x, y, stride) == (row, column)
        if mode == 'nearest':
            lit = [view.token(x, y, stride) for y, x in (whole > 0).nonzero().tolist()]
            assert set(lit) == {(row, column)}


def test_features_as_colours():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(8, 1, 1, generator=generator) * torch.linspace(0, 1, 12).view(1, 3, 4)
    colours = features_as_colours(features)
    assert colours.shape == (3, 3, 4) and colours.min() >= 0 and colours.max() <= 1
    red = colours[0].flatten()
    assert red.diff().sign().unique().numel() == 1  # one direction varies, and red follows it
    torch.testing.assert_close(features_as_colours(features), colours)
    torch.testing.assert_close(features_as_colours(features[:2])[2], torch.full((3, 4), 0.5))


def test_receptive_fields(backbone):
    backbone.train()
    backbone.stem[0].weight.requires_grad_(False)
    images = torch.rand(2, 3, 64, 96)
    fields = receptive_fields(backbone, images)
    assert [tuple(field.shape) for field in fields] == [(64, 96)] * 4
    for field in fields:
        assert float(field.sum()) == pytest.approx(1)
    assert backbone.training and not backbone.stem[0].weight.requires_grad and backbone.stem[3].weight.requires_grad
    assert all(parameter.grad is None for parameter in backbone.parameters())
    backbone.eval().requires_grad_(True)

    # A convolution's field is its kernel, around the centre.
    class Convolution(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 3, padding=1)

        def forward(self, x):
            return (self.conv(x),)

    model = Convolution()
    [field] = receptive_fields(model, torch.rand(1, 3, 9, 11))
    first, second = model.conv.weight.detach()
    same, other = ((first + sign * second).abs().sum(0) for sign in (1, -1))
    kernels = [kernel / kernel.sum() for kernel in (same, other)]
    assert any(torch.allclose(field[3:6, 4:7], kernel) for kernel in kernels)
    assert float(field[3:6, 4:7].sum()) == pytest.approx(1)
