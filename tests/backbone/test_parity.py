"""Parity with the original: golden outputs of its models, parameter counts, and the gradients of a plain reference."""

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from rmt_mm import RMT, convert_official_state_dict, ops
from rmt_mm.arch import ARCHS, resolve_arch
from rmt_mm.reference import PlainRMT

from support.archs import SMALL_ARCH
from support.official_files import GOLDEN, NANO, OFFICIAL_KEYS, nano_state_dict, weights


def official_state_dict(kind):
    """Return the deterministic weights of a kind such as 'tiny/dense', without what the model computes itself."""
    return {
        name: torch.from_numpy(weights.tensor(name, tuple(shape)))
        for name, shape in OFFICIAL_KEYS[kind].items()
        if 'Relpos' not in name and not name.endswith('num_batches_tracked')
    }


def official_name(name):
    """Return the name in the golden files of a size of :class:`RMT`."""
    return name.replace('swin-tiny', 'swin-t')


def load_strictly(model, state_dict):
    result = model.load_state_dict(state_dict, strict=False)
    assert not result.unexpected_keys
    assert all(name.endswith('num_batches_tracked') for name in result.missing_keys), result.missing_keys


def relative_error(out, expected):
    return float((out - expected).norm() / expected.norm())


@pytest.mark.parametrize('name', ['tiny', 'small', 'base', 'large', 'swin-tiny'])
def test_names_and_shapes_of_the_reference_are_the_official_ones(name):
    reference = PlainRMT(ARCHS[name])
    official = {k: tuple(v) for k, v in OFFICIAL_KEYS[f'{official_name(name)}/dense'].items() if 'Relpos' not in k}
    assert {k: tuple(v.shape) for k, v in reference.state_dict().items()} == official


@pytest.mark.parametrize(
    'name, params',
    [
        ('tiny', 12_783_776),
        ('small', 25_416_800),
        ('base', 52_604_680),
        ('large', 93_784_280),
        ('swin-tiny', 25_443_648),
        ('swin-small', 43_497_792),
    ],
)
def test_parameter_counts(name, params):
    with torch.device('meta'):
        model = RMT(name)
    assert sum(p.numel() for p in model.parameters()) == params


@pytest.mark.parametrize(
    'file, image',
    [
        ('tiny_dense_1x3x64x96', 'vis-a'),
        ('small_dense_2x3x96x64', 'vis-b'),
        ('base_dense_1x3x64x64', 'vis-c'),
        ('swin-t_dense_1x3x64x96', 'swin-a'),
    ],
)
def test_outputs_of_the_original(file, image):
    name, kind, shape = file.split('_')
    model = RMT(name).eval()
    load_strictly(model, convert_official_state_dict(official_state_dict(f'{name}/{kind}')))
    golden = np.load(GOLDEN / f'{file}.npz')
    with torch.no_grad():
        outs = model(torch.from_numpy(weights.image(image, tuple(map(int, shape.split('x'))))))
    for i, out in enumerate(outs):
        assert relative_error(out, torch.from_numpy(golden[f'out{i}'])) < 1e-5


@pytest.mark.parametrize(
    'name, size',
    [
        ('tiny', (64, 96)),
        ('small', (50, 71)),
        pytest.param('base', (33, 64), marks=pytest.mark.slow),  # fast with the original's outputs, above
        ('swin-tiny', (45, 50)),
    ],
)
def test_outputs_of_the_plain_reference(name, size):
    state = official_state_dict(f'{official_name(name)}/dense')
    model, reference = RMT(name).eval(), PlainRMT(ARCHS[name]).eval()
    load_strictly(model, convert_official_state_dict(state))
    load_strictly(reference, state)
    image = torch.from_numpy(weights.image('reference', (2, 3, *size)))
    with torch.no_grad():
        for out, expected in zip(model(image), reference(image)):
            assert out.shape == expected.shape
            assert relative_error(out, expected) < 1e-5


@pytest.mark.parametrize('size', [(1, 1), (3, 2), (33, 61), (7, 500), (900, 5), (224, 224)])
@pytest.mark.parametrize('way', ['gradients', 'no_grad', 'inference_mode', 'plain', 'fast', 'deploy'])
def test_every_way_of_computing_agrees_at_every_size(way, size):
    """All kernels at sizes that do not fit them: those of eager execution, plain torch alone, those for large maps."""
    official = nano_state_dict('dense')
    model, reference = RMT(NANO._asdict()).eval(), PlainRMT(NANO).eval()
    load_strictly(model, convert_official_state_dict(official))
    load_strictly(reference, {name: t for name, t in official.items() if name in reference.state_dict()})
    pins = {}
    if way == 'plain':
        pins = dict.fromkeys(ops.PRIORITY, 'plain')
    elif way == 'fast':
        pins = dict(attend_map='by_row')
    elif way == 'deploy':
        model.switch_to_deploy()
    image = torch.from_numpy(weights.image('sizes', (2, 3, *size)))
    context = dict(gradients=torch.enable_grad, inference_mode=torch.inference_mode).get(way, torch.no_grad)
    with context(), ops.use(**pins):
        outs = model(image)
    with torch.no_grad():
        expected = reference(image)
    for out, wanted in zip(outs, expected):
        assert out.shape == wanted.shape and relative_error(out.detach(), wanted) < 1e-5


def makes_fake_cuda_tensors():
    try:
        with FakeTensorMode():
            return torch.empty(1, device='cuda').uniform_().device.type == 'cuda'
    except (RuntimeError, AssertionError):
        return False


@pytest.mark.skipif(not makes_fake_cuda_tensors(), reason='this torch makes no fake CUDA tensors without a GPU')
@pytest.mark.parametrize('build', [RMT, lambda arch: PlainRMT(resolve_arch(arch))], ids=['RMT', 'PlainRMT'])
def test_every_table_is_on_the_device_of_the_input(build):
    """With fake tensors, which know their device and need none."""
    with FakeTensorMode(), torch.device('cuda'):
        model = build(SMALL_ARCH)
    with FakeTensorMode(allow_non_fake_inputs=True):
        outs = model(torch.empty(1, 3, 64, 96, device='cuda'))
    assert [out.device.type for out in outs] == ['cuda'] * 4


# Whole and decomposed attention by turns, and values of its own for every stage that has a formula.
OWN = {
    **SMALL_ARCH,
    'num_heads': (2, 3, 4, 4),
    'init_values': (2, 1, 2, 2),
    'heads_ranges': (4, 5, 6, 6),
    'mlp_ratios': (3, 4, 3, 3),
    'decomposed': (True, False, True, False),
    'layer_scales': (False, False, True, True),
}


@pytest.mark.parametrize('size', [(64, 96), (45, 61)])
def test_gradients_of_the_plain_reference(size):
    """Compare in double precision, so that rounding does not matter; the tables of both stay fp32."""
    arch = resolve_arch(OWN)
    reference = PlainRMT(arch).double().train()
    with torch.no_grad():
        for name, param in reference.named_parameters():
            param.copy_(torch.from_numpy(weights.tensor(name, tuple(param.shape))))
    model = RMT(OWN).double().train()
    load_strictly(model, convert_official_state_dict(reference.state_dict()))
    image = torch.from_numpy(weights.image('gradients', (2, 3, *size))).double()

    gradients = []
    for net in (reference, model):
        x = image.clone().requires_grad_()
        outs = net(x)
        directions = [torch.from_numpy(weights.uniform('direction', tuple(out.shape))).double() for out in outs]
        torch.autograd.backward(outs, directions)
        gradients.append({'input': x.grad, **{k: p.grad for k, p in net.named_parameters()}})
    expected = convert_official_state_dict({k: g for k, g in gradients[0].items() if k != 'input'})
    expected['input'] = gradients[0]['input']
    assert expected.keys() == gradients[1].keys()
    # A key's bias adds the same to all logits of a query, and a bias before a BatchNorm changes only its mean: those
    # gradients are zero except for rounding, which is compared with the largest gradient of a bias.
    floor = 1e-6 * max(float(g.norm()) for k, g in expected.items() if k.endswith('bias'))
    for name, gradient in gradients[1].items():
        error = float((gradient - expected[name]).norm() / expected[name].norm().clamp(min=floor))
        assert error < 1e-4, f'{name}: {error}'
