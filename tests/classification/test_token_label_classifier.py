"""MixToken and training with token labels."""

import copy

import numpy as np
import pytest
import torch

pytest.importorskip('mmpretrain')

from mmengine.registry import DefaultScope  # noqa: E402
from mmpretrain.registry import MODELS  # noqa: E402
from mmpretrain.structures import DataSample  # noqa: E402
from torch import nn  # noqa: E402
from torch._dynamo.testing import CompileCounterWithBackend  # noqa: E402

from rmt_mm.classification import classifier as classifier_module  # noqa: E402
from rmt_mm.classification.mix_token import draw_box, kept_fraction, paste_flipped  # noqa: E402
from rmt_mm.errors import TokenLabelError  # noqa: E402

from support.archs import LEAST_ARCH  # noqa: E402


def build(num_classes=5, **kwargs):
    cfg = dict(
        type='TokenLabelClassifier',
        backbone=dict(type='RMT', arch=LEAST_ARCH, out_indices=(3,), out_norm=False),
        head=dict(type='RMTTokenLabelHead', num_classes=num_classes, in_channels=32, hidden_channels=16),
    )
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build({**cfg, **kwargs})


def samples(batch, num_classes, height, width):
    out = []
    for _ in range(batch):
        sample = DataSample()
        sample.class_score = torch.rand(num_classes).softmax(0)
        sample.token_score = torch.rand(num_classes, height, width).softmax(0)
        out.append(sample)
    return out


def shares_of_boxes(alpha, size, count, generator):
    """Return the shares that boxes of CutMix cover, lam ~ Beta(alpha, alpha), computed from their description."""
    height, width = size
    shares = []
    for lam in generator.beta(alpha, alpha, count):
        halves = [int(length * (1 - lam) ** 0.5) // 2 for length in size]
        centers = generator.integers(height), generator.integers(width)
        (y1, y2), (x1, x2) = (
            (max(center - half, 0), min(center + half, length)) for center, half, length in zip(centers, halves, size)
        )
        shares.append(max(y2 - y1, 0) * max(x2 - x1, 0) / (height * width))
    return np.array(shares)


@pytest.mark.parametrize('alpha, size', [(1.0, (7, 7)), (0.3, (7, 7)), (4.0, (7, 7)), (1.0, (5, 12))])
def test_boxes_cover_what_beta_says(alpha, size):
    """Their shares have the expected distribution, within 4 standard errors; None stands for an empty box."""
    np.random.seed(0)
    count, shares = 4000, []
    for _ in range(count):
        box = draw_box(*size, alpha)
        if box is not None:
            y1, y2, x1, x2 = box
            assert 0 <= y1 < y2 <= size[0] and 0 <= x1 < x2 <= size[1]
        shares.append(0.0 if box is None else 1 - kept_fraction(box, size))
    shares, expected = np.array(shares), shares_of_boxes(alpha, size, 5 * count, np.random.default_rng(0))
    for limit in (0.001, 0.051, 0.151, 0.301, 0.501, 0.701, 0.901):  # between shares, which are fractions of the area
        p = (expected <= limit).mean()
        assert abs((shares <= limit).mean() - p) <= 4 * (p * (1 - p) * 1.2 / count) ** 0.5 + 1e-9, limit
    assert abs(shares.mean() - expected.mean()) <= 4 * expected.std() * (1.2 / count) ** 0.5
    assert 0 in shares


def test_the_classifier_draws_with_its_alpha(monkeypatch):
    drawn = []
    monkeypatch.setattr(classifier_module, 'draw_box', lambda *args: drawn.append(args))
    build(mix_alpha=0.4).loss(torch.randn(2, 3, 64, 96), samples(2, 5, 2, 3))
    assert drawn == [(2, 3, 0.4)]


def test_pasting_twice_changes_nothing():
    x = torch.randn(5, 2, 8, 6)
    mixed = paste_flipped(x, (2, 7, 0, 3))
    torch.testing.assert_close(mixed[0, :, 2:7, :3], x[4, :, 2:7, :3], atol=0, rtol=0)
    torch.testing.assert_close(mixed[0, :, :, 3:], x[0, :, :, 3:], atol=0, rtol=0)
    torch.testing.assert_close(mixed[2], x[2], atol=0, rtol=0)  # the middle of an odd batch is its own counterpart
    torch.testing.assert_close(paste_flipped(mixed, (2, 7, 0, 3)), x, atol=0, rtol=0)
    assert kept_fraction((2, 7, 0, 3), (8, 6)) == pytest.approx(1 - 15 / 48)


class LocalBackbone(nn.Module):
    """A backbone whose tokens are the averages of their own pixels."""

    def __init__(self):
        super().__init__()
        self.stem = nn.AvgPool2d(4)
        self.seen = None

    def forward(self, x):
        self.seen = self.stem(x)
        return (nn.functional.avg_pool2d(self.seen, 8).mean(1, keepdim=True).expand(-1, 32, -1, -1),)


class SmallBackbone(LocalBackbone):
    """One layer in the place of RMT, which compiles faster."""

    def forward(self, x):
        return (nn.functional.avg_pool2d(self.stem(x), 8).mean(1, keepdim=True).expand(-1, 32, -1, -1),)


class RecordingLoss(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, score, target):
        self.calls.append((score, target))
        return score.sum()


@pytest.fixture
def local_model():
    model = build(backbone=LocalBackbone())
    with torch.no_grad():  # every aux logit is the token's value
        model.head.aux_fc.weight.fill_(1 / 32)
        model.head.aux_fc.bias.zero_()
    return model


def test_the_box_of_the_stem_is_that_of_the_tokens(local_model, monkeypatch):
    """Image b has the constant value b: the backbone gets mixed images, and each token's logits return to its image."""
    monkeypatch.setattr(classifier_module, 'draw_box', lambda *args: (1, 3, 0, 2))
    local_model.head.loss_module = RecordingLoss()
    batch = samples(4, 5, 3, 4)
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 96, 128)
    local_model.loss(images, batch)

    stem = local_model.backbone.seen
    assert stem.shape == (4, 3, 24, 32)
    for b in range(4):
        box = stem[b, 0, 8:24, 0:16]
        assert torch.allclose(box, torch.tensor(3.0 - b))
        assert stem[b, 0].sum().item() == pytest.approx(b * (24 * 32 - box.numel()) + (3 - b) * box.numel(), rel=1e-5)
    (_, class_target), (aux, aux_target) = local_model.head.loss_module.calls
    torch.testing.assert_close(aux.view(4, 12, 5), torch.arange(4.0).view(4, 1, 1).expand(4, 12, 5))
    original = torch.stack([s.class_score for s in batch])
    torch.testing.assert_close(class_target, 8 / 12 * original + 4 / 12 * original.flip(0))
    torch.testing.assert_close(aux_target, torch.stack([s.token_score for s in batch]).flatten(2).mT.flatten(0, 1))


def test_nothing_is_mixed_outside_of_training_losses(local_model):
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 64, 64)
    np.random.seed(0)
    local_model.loss(images, samples(4, 5, 2, 2))
    local_model.eval()(images, mode='predict')
    assert torch.equal(local_model.backbone.seen, nn.functional.avg_pool2d(images, 4))


def test_without_alpha_the_losses_are_those_of_the_head():
    model, images, batch = build(mix_alpha=0).eval(), torch.randn(2, 3, 64, 96), samples(2, 5, 2, 3)
    losses, expected = model.loss(images, batch), model.head.loss(model.extract_feat(images), batch)
    assert losses.keys() == expected.keys() == {'loss_cls', 'loss_aux'}
    for name in losses:
        torch.testing.assert_close(losses[name], expected[name])


@pytest.mark.parametrize('name', ['loss_cls', 'loss_aux'])
def test_gradients_reach_the_stem_through_both_heads(name, monkeypatch):
    monkeypatch.setattr(classifier_module, 'draw_box', lambda *args: (0, 1, 0, 1))
    model = build().train()
    losses = model.loss(torch.randn(4, 3, 64, 64), samples(4, 5, 2, 2))
    losses[name].backward()
    for layer in (0, 3, 6, 9):
        assert model.backbone.stem[layer].weight.grad.abs().sum() > 0
    unused = model.head.fc if name == 'loss_aux' else model.head.aux_fc
    used = model.head.aux_fc if name == 'loss_aux' else model.head.fc
    assert unused.weight.grad is None
    assert used.weight.grad.abs().sum() > 0


def test_after_a_failing_batch_nothing_is_mixed(monkeypatch):
    monkeypatch.setattr(classifier_module, 'draw_box', lambda *args: (0, 1, 0, 1))
    model = build().eval()
    images = torch.randn(2, 3, 64, 64)
    expected = model(images)
    with pytest.raises(TokenLabelError):
        model.loss(images, samples(2, 7, 2, 2))  # two classes too many
    with pytest.raises(ValueError, match='in_channels=3'):
        model.loss(torch.randn(2, 4, 64, 64), samples(2, 5, 2, 2))
    torch.testing.assert_close(model(images), expected, rtol=0, atol=0)


# 'in place' compiles a backbone too, a small one.
@pytest.mark.parametrize('how', [pytest.param('backbone', marks=pytest.mark.slow), 'in place', 'model'])
def test_compiled_models_mix_what_the_eager_form_mixes(how, monkeypatch):
    """They do so also after a batch with an empty box, and one graph serves all boxes."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend('aot_eager')
    eager = build() if how == 'backbone' else build(backbone=SmallBackbone())
    eager = eager.double().eval()  # in eval mode both keep the same BatchNorm statistics
    model = copy.deepcopy(eager)
    if how == 'backbone':
        model.backbone = torch.compile(model.backbone, backend=counter)
    elif how == 'in place':
        model.backbone.compile(backend=counter)
    else:  # as mmengine's Runner does with compile=True
        model.forward = torch.compile(model.forward, backend=counter)
    images, batch = torch.randn(4, 3, 96, 128).double(), samples(4, 5, 3, 4)
    counts = []
    for box in (None, (1, 3, 0, 2), None, (0, 1, 0, 1), (0, 3, 2, 4), (2, 3, 1, 4), None, (1, 2, 1, 2)):
        monkeypatch.setattr(classifier_module, 'draw_box', torch._dynamo.disable(lambda *args, box=box: box))
        losses, expected = (m(images, batch, mode='loss') for m in (model, eager))
        for name in expected:
            torch.testing.assert_close(losses[name], expected[name], msg=f'{name} with {box}')
        counts.append(counter.frame_count)
    if how != 'model':
        assert counts[-1] == 2, 'with a box and without'


def test_copies_of_a_model_mix_by_themselves(monkeypatch):
    """An EMA hook copies the model: mixing in the copy must not depend on the original."""
    monkeypatch.setattr(classifier_module, 'draw_box', lambda *args: (0, 1, 0, 1))
    model = build().eval()
    images, batch = torch.randn(4, 3, 64, 64), samples(4, 5, 2, 2)
    expected, losses = model.loss(images, batch), copy.deepcopy(model).loss(images, batch)
    for name in expected:
        torch.testing.assert_close(losses[name], expected[name])


def test_mistakes_are_named():
    with pytest.raises(ValueError, match='multiples of 32, got 64 x 70'):
        build().loss(torch.randn(2, 3, 64, 70), samples(2, 5, 2, 2))
    with pytest.raises(ValueError, match='remove train_cfg.augments'):
        build(train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8)]))


def test_any_size_is_fine_for_prediction():
    assert build().eval()(torch.randn(1, 3, 50, 70)).shape == (1, 5)
