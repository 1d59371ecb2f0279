"""Backbones of drawn archs, sizes and settings: documented shapes, finite values, and those of the plain reference."""

import pytest
import torch

pytest.importorskip('hypothesis')

from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from rmt_mm import RMT, convert_official_state_dict, ops  # noqa: E402
from rmt_mm.arch import resolve_arch  # noqa: E402
from rmt_mm.backbone.layers import LCE, ResidualDWConv  # noqa: E402
from rmt_mm.errors import UsageError  # noqa: E402
from rmt_mm.ops import masa  # noqa: E402
from rmt_mm.reference import PlainRMT  # noqa: E402

from support.properties import bounded  # noqa: E402

MAX_TOKENS = 1600  # of a map whose attention is not decomposed: the reference builds a square of them
sides = st.one_of(st.integers(1, 40), st.integers(1, 40), st.integers(1, 300))
flags = st.booleans()


def four(values):
    return st.lists(values, min_size=4, max_size=4)


@st.composite
def archs(draw, height=1, width=1):
    """Draw an arch that the reference computes, for images of a size."""
    heads = draw(four(st.integers(1, 3)))
    tokens = [-(-height // 2 ** (i + 2)) * -(-width // 2 ** (i + 2)) for i in range(4)]
    decomposed = [flag or count > MAX_TOKENS for flag, count in zip(draw(four(flags)), tokens)]
    return dict(
        embed_dims=[number * dim for number, dim in zip(heads, draw(four(st.sampled_from((4, 6, 8)))))],
        depths=draw(four(st.integers(1, 2))),
        num_heads=heads,
        init_values=draw(four(st.floats(0.5, 4))),
        heads_ranges=draw(four(st.floats(0, 6))),
        mlp_ratios=draw(four(st.sampled_from((1, 2, 3, 3.5)))),
        decomposed=decomposed,
        layer_scales=draw(four(flags)),
        stem=draw(st.sampled_from(('conv', 'swin'))),
    )


def randomize(reference):
    for name, tensor in reference.state_dict().items():
        if tensor.is_floating_point():
            positive = 'running_var' in name or name.endswith('norm.weight')
            tensor.copy_(torch.rand(tensor.shape) + 0.5 if positive else 0.2 * torch.randn(tensor.shape))


def error(out, expected):
    return float((out - expected).norm()) / max(float(expected.norm()), 1.0)


@bounded
@given(st.data())
def test_outputs(data):
    height, width, batch = data.draw(sides), data.draw(sides), data.draw(st.integers(1, 4))
    arch = data.draw(archs(height, width))
    channels = data.draw(st.sampled_from((3, 3, 1, 5)))
    indices = data.draw(st.lists(st.integers(-4, 3), min_size=1, max_size=4))
    settings = dict(in_channels=channels, out_indices=indices, frozen_stages=data.draw(st.integers(-1, 4)))
    torch.manual_seed(0)
    reference = PlainRMT(resolve_arch(arch)).eval()
    randomize(reference)
    model = RMT(arch, **settings).eval()
    if channels == 3:
        model.load_state_dict(convert_official_state_dict(reference.state_dict()), strict=False)
    if data.draw(flags):
        model.switch_to_deploy()
    image = torch.randn(batch, channels, height, width)
    with torch.no_grad():
        outs = model(image)
        expected = reference(image) if channels == 3 else None
    wanted = sorted({index % 4 for index in indices})
    assert len(outs) == len(wanted) and model.out_channels == tuple(arch['embed_dims'][i] for i in wanted)
    for i, out in zip(wanted, outs):
        assert out.shape == (batch, arch['embed_dims'][i], *(-(-side // 2 ** (i + 2)) for side in (height, width)))
        assert out.isfinite().all()
        assert expected is None or error(out, expected[i]) < 1e-4


@bounded
@given(st.data())
def test_gradients(data):
    """Recomputation changes no gradient, and frozen stages have none."""
    height, width = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 70))
    arch, batch = data.draw(archs(height, width)), data.draw(st.integers(2, 4))
    frozen = data.draw(st.integers(-1, 4))
    with_cp = data.draw(st.one_of(flags, four(flags).map(tuple)))
    settings = dict(arch=arch, frozen_stages=frozen, drop_path_rate=data.draw(st.sampled_from((0.0, 0.5))))
    image, gradients = torch.randn(batch, 3, max(height, 33), max(width, 33)), []
    models = [RMT(**settings), RMT(**settings, with_cp=with_cp)]
    models[1].load_state_dict(models[0].state_dict())
    for model in models:
        torch.manual_seed(0)
        outs = model.train()(image)
        loss = sum(out.square().mean() for out in outs)
        if loss.requires_grad:
            loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, plain in gradients[0].items():
        recomputed = gradients[1][name]
        assert (plain is None) == (recomputed is None), name
        if plain is not None:
            assert plain.isfinite().all(), name
            torch.testing.assert_close(recomputed, plain, rtol=1e-4, atol=1e-6, msg=name)
        stage = int(name.split('.')[1]) if name.startswith('stages.') else None
        assert stage is None or (plain is None) == (stage < frozen), name


OPERATORS = {
    'attend': lambda q, k, v, positions: ops.attend(torch.stack((q, k, v), 3).flatten(3), positions, True)[0],
    'attend whole': lambda q, k, v, positions: ops.attend(torch.stack((q, k, v), 3).flatten(3), positions, False)[0],
    'attend_map': ops.attend_map,
    'rotate': lambda q, k, v, positions: ops.rotate(q, positions),
    'dwconv': lambda q, k, v, positions: convolve(q.flatten(3)),
}


def convolve(x):
    """Convolve a map (B, H, W, C) by CPE's layer and LCE's, the second after GELU."""
    torch.manual_seed(1)
    layers = ResidualDWConv(x.shape[3]), LCE(x.shape[3])
    return ops.dwconv(layers[1], layers[0](x), gelu=True)


@bounded
@given(st.data())
def test_kernels(data):
    """Every kernel that a machine without a GPU has computes what `plain` computes."""
    height, width, batch = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 30)), data.draw(st.integers(1, 4))
    heads, dim = data.draw(st.integers(1, 4)), data.draw(st.sampled_from((2, 8, 8, 16, 32)))
    log_decay = tuple(sorted(data.draw(st.lists(st.floats(-3, 0), min_size=heads, max_size=heads))))
    positions = ops.PositionTables(log_decay, height, width, dim, torch.device('cpu'))
    torch.manual_seed(0)
    given_values = [torch.randn(batch, height, width, heads, dim) for _ in range(3)]
    operators = OPERATORS if masa.is_loaded() else {name: OPERATORS[name] for name in ('attend_map', 'rotate')}
    for name, operator in operators.items():
        results = {}
        for kernel in ops.PRIORITY[name.split()[0]]:
            if kernel in ('flex', 'triton', 'float32'):
                continue
            qkv = [value.clone().requires_grad_() for value in given_values]
            try:
                with ops.use(**{name.split()[0]: kernel}):
                    out = operator(*qkv, positions)
            except UsageError as refused:  # of heads, for one, that are no multiple of 8
                assert 'does not take the call' in str(refused)
                continue
            out.square().sum().backward()
            results[kernel] = [out.detach(), *(value.grad for value in qkv if value.grad is not None)]
        assert 'plain' in results and (len(results) > 1 or dim % 8), name
        for kernel, values in results.items():
            for ours, plain in zip(values, results['plain']):
                assert error(ours, plain) < 1e-4, (name, kernel)
