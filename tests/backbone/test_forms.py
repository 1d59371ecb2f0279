"""The forms of MaSA and RMT for relatives and ablations, each against its formula."""

import pytest
import torch

from rmt_mm import RMT, MaSA, ops
from rmt_mm.arch import ARCHS, resolve_arch
from rmt_mm.errors import UsageError
from rmt_mm.reference import PlainRMT

from support.archs import SMALL_ARCH

DIM, HEADS, HEIGHT, WIDTH = 16, 2, 4, 5

FORMS = [
    dict(),
    dict(lce=False),
    dict(rotation=False),
    dict(decay='none'),
    dict(decay='outside'),
    dict(decay='learned'),
    dict(distance='euclidean'),
    dict(distance='chebyshev'),
    dict(decay='outside', distance='euclidean', rotation=False),
]
DISTANCES = {
    'manhattan': lambda dy, dx: dy.abs() + dx.abs(),
    'euclidean': lambda dy, dx: (dy**2 + dx**2).sqrt(),
    'chebyshev': lambda dy, dx: torch.maximum(dy.abs(), dx.abs()),
}


def by_formula(masa, x, decay='inside', distance='manhattan', rotation=True, lce=True, decomposed=False):
    """Compute MaSA of a map (H, W, C) from whole matrices of weights, in double precision."""
    height, width, dim = x.shape
    q, k, v = masa.qkv(x).view(height * width, 3, HEADS, -1).unbind(1)  # (tokens, heads, head_dim)
    index = torch.arange(height * width).double()
    if rotation:
        half = q.shape[-1] // 2
        phase = index[:, None, None] * 10000.0 ** (-torch.arange(half).double() / (half - 1))
        turn = torch.polar(torch.ones_like(phase), phase)
        q, k = (torch.view_as_real(torch.view_as_complex(t.unflatten(-1, (-1, 2))) * turn).flatten(-2) for t in (q, k))
    y, x_ = index.div(width, rounding_mode='floor'), index % width
    dy, dx = y[:, None] - y, x_[:, None] - x_
    gamma = torch.tensor(masa.log_decay).double().exp() if masa.log_rate is None else (-masa.log_rate.exp()).exp()
    scores = torch.einsum('ihd,jhd->hij', q, k) / q.shape[-1] ** 0.5

    def attend(v, lines):
        d = gamma[:, None, None] ** DISTANCES[distance](dy, dx)
        if decay == 'outside':
            weights = scores.masked_fill(~lines, -torch.inf).softmax(-1) * d
        else:
            weights = (scores + d.log()).masked_fill(~lines, -torch.inf).softmax(-1)
        return torch.einsum('hij,jhd->ihd', weights, v)

    out = attend(attend(v, dy == 0), dx == 0) if decomposed else attend(v, torch.ones_like(dy, dtype=torch.bool))
    out = out.reshape(height, width, dim)
    if lce:
        out = out + masa.lce(v.reshape(1, height, width, dim).permute(0, 3, 1, 2))[0].permute(1, 2, 0)
    return masa.proj(out)


@pytest.mark.parametrize(
    'form, decomposed',
    [(form, decomposed) for form in FORMS for decomposed in (False, True) if not (decomposed and 'distance' in form)],
    ids=str,
)
def test_every_form_is_its_formula(form, decomposed):
    torch.manual_seed(0)
    masa = MaSA(DIM, HEADS, 1, 3, decomposed, **form).double()
    x = torch.randn(2, HEIGHT, WIDTH, DIM, dtype=torch.float64, requires_grad=True)
    out = masa(x)
    expected = torch.stack([by_formula(masa, image, decomposed=decomposed, **form) for image in x])
    assert torch.allclose(out, expected, atol=1e-6)
    direction = torch.randn_like(out)
    parameters = [x, *masa.parameters()]
    found, wanted = (torch.autograd.grad((o * direction).sum(), parameters) for o in (out, expected))
    for a, b in zip(found, wanted):
        assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize('form', FORMS, ids=str)
def test_forms_differ(form):
    """A field that nothing reads would pass the other test if its formula were read from the module."""
    torch.manual_seed(0)
    masa, other = MaSA(DIM, HEADS), MaSA(DIM, HEADS, **form)
    other.load_state_dict(masa.state_dict(), strict=False)
    x = torch.randn(1, HEIGHT, WIDTH, DIM)
    same = torch.allclose(masa(x), other(x), atol=1e-6)
    assert same == (form in (dict(), dict(decay='learned')))  # which starts at the formula


@pytest.mark.parametrize(
    'form, reason',
    [
        (dict(decay='outside'), 'the decay is outside the softmax'),
        (dict(decay='learned'), 'the decay is learned'),
        (dict(distance='euclidean'), 'the distance is euclidean'),
    ],
)
def test_kernels_refuse_what_they_do_not_compute(form, reason):
    masa, x = MaSA(DIM, HEADS, **form), torch.randn(1, HEIGHT, WIDTH, DIM)
    with ops.record() as counter:
        masa(x)
    choices = [choice for choice in counter if choice.operator in ('attend', 'attend_map')]
    assert [choice.kernel for choice in choices] == ['plain', 'plain']
    reasons = dict(choices[0].reasons + choices[1].reasons)
    assert reasons['masa'] == reasons['by_row'] == reason
    with ops.use(attend_map='by_row'), pytest.raises(UsageError, match=reason):
        masa(x)


def test_other_kernels_compute_what_needs_no_kernel_of_its_own():
    """No decay and no rotation are numbers, and parts left out are not computed: the kernels take them."""
    for form in (dict(decay='none'), dict(rotation=False), dict(lce=False)):
        with ops.record() as counter, ops.use(attend_map='by_row'):
            MaSA(DIM, HEADS, **form)(torch.randn(1, HEIGHT, WIDTH, DIM))
        assert [choice.kernel for choice in counter if choice.operator == 'attend_map'] == ['by_row']


@pytest.mark.parametrize('with_cp', [False, True])
def test_every_block_learns_its_decay(with_cp):
    model = RMT(dict(SMALL_ARCH, decay='learned'), with_cp=with_cp).train()
    sum(out.square().mean() for out in model(torch.randn(1, 3, 64, 64))).backward()
    rates = {name: p.grad for name, p in model.named_parameters() if name.endswith('log_rate')}
    assert len(rates) == sum(SMALL_ARCH['depths']) and all(grad.abs().sum() > 0 for grad in rates.values())


def count(arch, options=None):
    with torch.device('meta'):
        return sum(p.numel() for p in RMT(arch, arch_options=options).parameters())


def test_parameters_of_ablations():
    tiny = ARCHS['tiny']
    whole = count('tiny')
    channels = sum(dim * depth for dim, depth in zip(tiny.embed_dims, tiny.depths))
    assert whole - count('tiny', dict(lce=False)) == 26 * channels  # 5x5 weights and a bias a channel
    assert whole - count('tiny', dict(cpe=False)) == 10 * channels
    assert count('tiny', dict(decay='learned')) - whole == sum(n * d for n, d in zip(tiny.num_heads, tiny.depths))
    for same in (dict(rotation=False), dict(decay='none'), dict(decay='outside'), dict(decomposed=(False,) * 4)):
        assert count('tiny', same) == whole
    # The stem's four convolutions and norms, against one of 4x4 pixels.
    stem = (27 + 1 + 2) * 32 + (9 * 32 + 1 + 2) * 32 + (9 * 32 + 1 + 2) * 64 + (9 * 64 + 1 + 2) * 64
    assert whole - count('tiny', dict(stem='patch4')) == stem - (48 + 1 + 2) * 64


@pytest.mark.parametrize(
    'change', [dict(cpe=False, lce=False), dict(stem='swin'), dict(stem='patch4'), dict(depths=(1,))]
)
@pytest.mark.parametrize('size', [(33, 61), (64, 64)])
def test_models_of_other_forms(change, size):
    """Sizes are rounded up, and the form for inference computes the same."""
    arch = {key: value[: len(change.get('depths', value))] for key, value in SMALL_ARCH.items()}
    torch.manual_seed(0)
    model = RMT({**arch, **change}).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            torch.nn.init.uniform_(module.running_mean)
    image = torch.randn(1, 3, *size)
    with torch.no_grad():
        outs = model(image)
        assert [out.shape[2:] for out in outs] == [tuple(-(-n // s) for n in size) for s in model.strides]
        model.switch_to_deploy()
        for out, deployed in zip(outs, model(image)):
            assert torch.allclose(out, deployed, atol=1e-4)


@pytest.mark.parametrize('options', [dict(lce=False), dict(decay='none'), dict(stem='patch4')])
def test_the_reference_refuses_what_it_does_not_compute(options):
    with pytest.raises(ValueError, match='released forms'):
        PlainRMT(resolve_arch(SMALL_ARCH, options))


def test_deit_has_one_resolution():
    model = RMT('deit-s', frozen_stages=1).eval()
    assert model.strides == (16,) and model.out_channels == (384,) and model.out_indices == (0,)
    (out,) = model(torch.randn(1, 3, 40, 64))
    assert out.shape == (1, 384, 3, 4)
    assert model.get_layer_depth('stages.0.11.cpe.weight') == (12, 14)
    with pytest.raises(ValueError, match='out_indices must be from 0 to 0'):
        RMT('deit-small', out_indices=(3,))


def test_options_replace_fields_of_an_arch():
    arch = resolve_arch('S', dict(decomposed=[True, True, False, False], lce=False))
    assert arch == ARCHS['small']._replace(decomposed=(True, True, False, False), lce=False)
    assert RMT(SMALL_ARCH, arch_options=dict(cpe=False)).arch == resolve_arch({**SMALL_ARCH, 'cpe': False})


@pytest.mark.parametrize(
    'options, words',
    [
        (dict(lces=False), ['arch_options', 'unknown: lces', 'lce']),
        (dict(stem='conv4'), ["'stem'", 'conv, swin, patch4, patch16', "'conv4'"]),
        (dict(decay='outer'), ["'decay'", 'inside, outside, learned, none']),
        (dict(rotation='no'), ["'rotation'", 'True, False', "'no'"]),
        (dict(rotation=2), ["'rotation'", 'True, False', '2']),
        (dict(distance='euclidean'), ['euclidean', 'decomposed', 'False for every stage']),
        (dict(depths=(2, 2)), ["'depths'", '4 values', '(2, 2)']),
        ('lce', ['arch_options must be a dict', 'str']),
    ],
)
def test_wrong_forms_are_named(options, words):
    with pytest.raises((ValueError, TypeError)) as error:
        resolve_arch('tiny', options)
    assert all(word in str(error.value) for word in words), error.value
