"""The classification heads: parameter counts, the formula, the losses, and mistakes."""

import pytest
import torch

pytest.importorskip('mmpretrain')

from mmengine.registry import DefaultScope  # noqa: E402
from mmpretrain.registry import MODELS  # noqa: E402
from mmpretrain.structures import DataSample  # noqa: E402

from rmt_mm.classification import RMTClsHead, RMTTokenLabelHead  # noqa: E402

from support.archs import LEAST_ARCH  # noqa: E402


def build_classifier(head, arch, num_classes=1000, in_channels=512):
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build(
            dict(
                type='ImageClassifier',
                backbone=dict(type='RMT', arch=arch, out_indices=(3,), out_norm=False),
                head=dict(type=head, num_classes=num_classes, in_channels=in_channels),
            )
        )


@pytest.mark.parametrize(
    ('arch', 'head', 'in_channels', 'expected'),
    [
        ('tiny', 'RMTClsHead', 512, 14_334_216),
        ('small', 'RMTClsHead', 512, 26_967_240),
        ('base', 'RMTClsHead', 512, 54_154_896),
        ('large', 'RMTClsHead', 640, 95_464_864),
        ('small', 'RMTTokenLabelHead', 512, 27_480_240),
        ('base', 'RMTTokenLabelHead', 512, 54_667_896),
        ('large', 'RMTTokenLabelHead', 640, 96_105_864),
    ],
)
def test_parameter_counts_are_the_published_ones(arch, head, in_channels, expected):
    model = build_classifier(head, arch, in_channels=in_channels)
    assert sum(p.numel() for p in model.parameters()) == expected


def test_layers_for_grad_cam():
    """docs/inference.md names layers whose outputs are (B, C, H, W); the last norm of the backbone is not one."""
    model = build_classifier('RMTClsHead', LEAST_ARCH, 7, LEAST_ARCH['embed_dims'][-1]).eval()
    shapes = {}
    block = 'backbone.stages.3.0'
    for name in ('head.norm', f'{block}.attn.lce', f'{block}.norm2'):
        model.get_submodule(name).register_forward_hook(lambda _, x, y, name=name: shapes.update({name: y.shape}))
    model(torch.zeros(1, 3, 64, 96))
    size, channels = (2, 3), LEAST_ARCH['embed_dims'][-1]
    assert shapes == {
        'head.norm': (1, 1024, *size),
        f'{block}.attn.lce': (1, channels, *size),
        f'{block}.norm2': (1, *size, channels),
    }


@pytest.fixture
def feats():
    return (torch.randn(3, 32, 2, 5, generator=torch.Generator().manual_seed(0)),)


def token_samples(num_classes, height, width, batch=3):
    generator = torch.Generator().manual_seed(1)
    samples = []
    for _ in range(batch):
        sample = DataSample()
        sample.class_score = torch.rand(num_classes, generator=generator).softmax(0)
        sample.token_score = torch.rand(num_classes, height, width, generator=generator).softmax(0)
        samples.append(sample)
    return samples


def reference_logits(head, x):
    """Compute the head step by step: Linear on every token, BatchNorm, x * sigmoid(x), average, Linear."""
    tokens = torch.einsum('bchw,dc->bhwd', x, head.proj.weight) + head.proj.bias
    norm = head.norm
    tokens = (tokens - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
    return head.fc((tokens * tokens.sigmoid()).flatten(1, 2).mean(1))


def randomise_norm(head):
    torch.nn.init.uniform_(head.norm.running_mean, -1, 1)
    torch.nn.init.uniform_(head.norm.running_var, 0.5, 2)
    torch.nn.init.uniform_(head.norm.weight, 0.5, 2)


def test_head_follows_the_formula(feats):
    head = RMTClsHead(num_classes=7, in_channels=32, hidden_channels=64).eval()
    randomise_norm(head)
    assert head.pre_logits(feats).shape == (3, 64)
    torch.testing.assert_close(head(feats), reference_logits(head, feats[0]))


def test_token_label_head_adds_half_of_the_largest_token_logit(feats):
    head = RMTTokenLabelHead(num_classes=7, in_channels=32, hidden_channels=64).eval()
    randomise_norm(head)
    aux = head.aux_fc(feats[0].flatten(2).transpose(1, 2))  # (B, tokens, classes)
    torch.testing.assert_close(head(feats), reference_logits(head, feats[0]) + 0.5 * aux.amax(1))


def test_initialisation_is_the_published_one():
    head = RMTTokenLabelHead(num_classes=100, in_channels=256)
    head.init_weights()
    for layer in (head.proj, head.fc, head.aux_fc):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.1)
        assert not layer.bias.any()


def test_token_label_losses_are_weighted_cross_entropies(feats):
    head = RMTTokenLabelHead(num_classes=7, in_channels=32, hidden_channels=64).eval()
    samples = token_samples(7, 2, 5)
    losses = head.loss(feats, samples)
    log_cls = reference_logits(head, feats[0]).log_softmax(1)
    log_aux = head.aux_logits(feats).log_softmax(1)
    cls = -sum((s.class_score * log_cls[i]).sum() for i, s in enumerate(samples)) / 3
    aux = -sum((s.token_score * log_aux[i]).sum() for i, s in enumerate(samples)) / (3 * 10)
    torch.testing.assert_close(losses['loss_cls'], cls)
    torch.testing.assert_close(losses['loss_aux'], 0.5 * aux)


def test_mistakes_are_named(feats):
    with pytest.raises(ValueError, match='num_classes'):
        RMTClsHead(num_classes=0, in_channels=32)
    head = RMTTokenLabelHead(num_classes=7, in_channels=32)
    with pytest.raises(ValueError, match='MakeTokenLabels'):
        head.loss(feats, [DataSample() for _ in range(3)])
    with pytest.raises(ValueError, match=r'\(3, 7, 7, 7\).*\(3, 7, 2, 5\)'):
        head.loss(feats, token_samples(7, 7, 7))


@pytest.mark.parametrize('head', ['RMTClsHead', 'RMTTokenLabelHead'])
def test_classifier_predicts_scores(head):
    model = build_classifier(head, LEAST_ARCH, num_classes=5, in_channels=32).eval()
    predictions = model(torch.randn(2, 3, 50, 70), mode='predict')
    for prediction in predictions:
        assert prediction.pred_score.shape == (5,)
        assert prediction.pred_score.sum().item() == pytest.approx(1, abs=1e-5)
