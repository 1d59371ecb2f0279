"""Hooks, tracers, exporters, transforms, quantisation and modes get the model's true values and do not change it."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses import FakeTensorMode

from rmt_mm import RMT, ops
from rmt_mm.ops import tables

from support.archs import SMALL_ARCH

TABLES = (
    tables.line_bias,
    tables.manhattan_bias,
    tables.manhattan_bias_by_row,
    tables.coordinates,
    tables.rotary_phases,
)


@pytest.fixture(autouse=True)
def _empty_caches():
    for table in TABLES:
        table.cache_clear()
    yield
    for table in TABLES:
        table.cache_clear()


@pytest.mark.parametrize('grad', [True, False])
def test_outputs_that_hooks_keep_are_not_overwritten(grad):
    model, kept = RMT(SMALL_ARCH).eval(), {}

    def keep(name):
        return lambda module, args, out: kept.__setitem__(name, (out, out.detach().clone()))

    for name, module in model.named_modules():
        if not list(module.children()):
            module.register_forward_hook(keep(name))
    with torch.set_grad_enabled(grad):
        model(torch.rand(1, 3, 40, 48))
    changed = [name for name, (out, copied) in kept.items() if not torch.equal(out, copied)]
    assert len(kept) > 60 and not changed


def test_a_global_hook_keeps_outputs_too():
    model, kept = RMT(SMALL_ARCH).eval(), []
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, args, out: kept.append((out, out.detach().clone())) if isinstance(out, torch.Tensor) else None
    )
    try:
        with torch.no_grad():
            model(torch.rand(1, 3, 40, 48))
    finally:
        handle.remove()
    assert len(kept) > 60 and all(torch.equal(out, copied) for out, copied in kept)


@pytest.mark.parametrize('kind', ['forward', 'pre', 'backward'])
def test_every_hook_fires_once_a_training_step(kind):
    model, fired = RMT(SMALL_ARCH, drop_path_rate=0.1).train(), []
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and name in ('stages', 'downsamples') or not name:
            continue

        def note(*args, name=name):
            fired.append(name)

        if kind == 'forward':
            module.register_forward_hook(note)
        elif kind == 'pre':
            module.register_forward_pre_hook(note)
        elif 'drop_path' not in name:  # the identity's output is its input, which is used twice
            module.register_full_backward_hook(note)
    sum(out.sum() for out in model(torch.rand(2, 3, 64, 64))).backward()
    hooked = {
        name
        for name, module in model.named_modules()
        if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
    }
    assert sorted(fired) == sorted(hooked)


@pytest.mark.parametrize('name', ['fc1', 'dwconv', 'fc2'])
def test_a_single_hook_on_the_ffn_fires_once(name):
    model, fired = RMT(SMALL_ARCH).train(), []
    getattr(model.stages[0][0].ffn, name).register_forward_hook(lambda *args: fired.append(name))
    sum(out.sum() for out in model(torch.rand(2, 3, 64, 64))).backward()
    assert fired == [name]


def test_a_hook_on_a_stage_sees_its_output():
    model, seen = RMT(SMALL_ARCH, out_norm=False).eval(), []
    for stage in model.stages:
        stage.register_forward_hook(lambda module, args, out: seen.append(out))
    outs = model(torch.rand(1, 3, 64, 96))
    for out, stage_out in zip(outs, seen):
        assert torch.equal(out, stage_out.permute(0, 3, 1, 2))
    assert len(seen) == 4


def test_hooks_change_no_value_beyond_rounding():
    model, x = RMT(SMALL_ARCH).eval(), torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        plain = model(x)
        for module in model.modules():
            module.register_forward_hook(lambda module, args, out: None)
        for out, expected in zip(model(x), plain):
            torch.testing.assert_close(out, expected)


@pytest.mark.parametrize('arch', [SMALL_ARCH, {**SMALL_ARCH, 'decomposed': (True,) * 4}])
def test_a_layer_in_place_of_lce_may_return_its_input(arch):
    """If an ablation replaces LCE by nn.Identity, its output is the values, which must not be overwritten."""
    model = RMT(arch).train()
    for stage in model.stages:
        for block in stage:
            block.attn.lce = nn.Identity()
    sum(out.sum() for out in model(torch.rand(2, 3, 64, 64))).backward()  # raises if a saved tensor was changed


def test_jit_trace_with_gradients_enabled():
    model, x = RMT(SMALL_ARCH).eval(), torch.rand(1, 3, 64, 64)
    traced = torch.jit.trace(model, x)  # compares a second trace, graph and values
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    for out, expected in zip(torch.jit.load(file)(x), model(x)):
        torch.testing.assert_close(out, expected)


def test_quantize_dynamic_finds_the_linear_layers():
    model, x = RMT(SMALL_ARCH).eval(), torch.rand(1, 3, 64, 64)
    quantized = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8)
    found = [m for m in quantized.modules() if isinstance(m, torch.ao.nn.quantized.dynamic.Linear)]
    assert len(found) == 4 * sum(SMALL_ARCH['depths'])
    with torch.no_grad():
        for out, expected in zip(quantized(x), model(x)):
            assert 0 < float((out - expected).norm() / expected.norm()) < 0.1


def test_functional_gradients():
    model, x = RMT(SMALL_ARCH).double().eval(), torch.rand(2, 3, 32, 48).double()
    params = dict(model.named_parameters())

    def loss(params, x):
        return sum(out.square().sum() for out in torch.func.functional_call(model, params, (x,)))

    found = torch.func.grad(loss)(params, x)
    expected = torch.autograd.grad(loss(params, x), list(params.values()))
    for name, gradient in zip(params, expected):
        torch.testing.assert_close(found[name], gradient, msg=name)


@pytest.mark.parametrize('grad', [True, False])
def test_vmap(grad):
    model, x = RMT(SMALL_ARCH).eval(), torch.rand(3, 2, 3, 32, 48)
    with torch.set_grad_enabled(grad):
        outs = torch.func.vmap(model, randomness='different')(x)
        for out, expected in zip(outs, model(x.flatten(0, 1))):
            torch.testing.assert_close(out.flatten(0, 1), expected, rtol=1e-4, atol=1e-4)


def test_per_sample_gradients():
    """Differential privacy computes per-sample gradients, by torch.func.vmap over torch.func.grad."""
    model = RMT({**SMALL_ARCH, 'depths': (1, 1, 1, 1)}, norm_cfg=dict(type='GN', num_groups=4)).double().eval()
    params = {name: p.detach() for name, p in model.named_parameters()}
    x = torch.rand(3, 3, 32, 32).double()

    def loss(params, image):
        return torch.func.functional_call(model, params, (image[None],))[3].square().sum()

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(params, x)
    for name in ('stem.0.weight', 'stages.0.0.attn.qkv.weight', 'stages.3.0.ffn.dwconv.weight'):
        for i in range(3):
            torch.testing.assert_close(found[name][i], torch.func.grad(loss)(params, x[i])[name])


def expected_outputs(model, x):
    with torch.no_grad():
        return model(x)


def test_a_fake_forward_leaves_no_fake_table():
    model, x = RMT(SMALL_ARCH).eval(), torch.rand(1, 3, 64, 64)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
        outs = model(mode.from_tensor(x))
    assert [tuple(out.shape) for out in outs] == [(1, 16, 16, 16), (1, 24, 8, 8), (1, 32, 4, 4), (1, 48, 2, 2)]
    fresh = expected_outputs(model, x)  # with new tables, made after the fake ones
    assert all(type(out) is torch.Tensor and out.isfinite().all() for out in fresh)


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
def test_another_default_dtype_changes_no_table(dtype):
    model, x = RMT(SMALL_ARCH).eval(), torch.rand(1, 3, 64, 64)
    expected = expected_outputs(model, x)
    for table in TABLES:
        table.cache_clear()
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        under = expected_outputs(model, x)
    finally:
        torch.set_default_dtype(before)
    for outs in (under, expected_outputs(model, x)):
        assert all(torch.equal(out, wanted) for out, wanted in zip(outs, expected))


@pytest.mark.parametrize('decomposed', [True, False])
def test_another_default_device_changes_no_table(decomposed):
    model = RMT({**SMALL_ARCH, 'decomposed': (decomposed,) * 4}).eval()
    x = torch.rand(1, 3, 64, 64)
    with torch.device('meta'):
        outs = expected_outputs(model, x)
    for out, expected in zip(outs, expected_outputs(model, x)):
        assert torch.equal(out, expected)


def test_the_older_onnx_exporter():
    """It does not support complex numbers. The test needs the package onnx, which writes the file."""
    onnx = pytest.importorskip('onnx')
    model, x, file = RMT(SMALL_ARCH).eval(), torch.rand(1, 3, 64, 64), io.BytesIO()
    newer = dict(dynamo=False) if torch.__version__ >= '2.5' else {}  # it has another exporter, its default since 2.9
    torch.onnx.export(model, (x,), file, opset_version=17, **newer)
    onnx.checker.check_model(onnx.load_model_from_string(file.getvalue()))


def test_recorded_rotation_is_the_eager_one():
    x = torch.rand(1, 5, 7, 2, 8)

    def rotate(x):
        return ops.rotate(x, ops.PositionTables((-0.1, -0.2), 5, 7, 8, x.device))

    traced = torch.jit.trace(rotate, (x,))
    assert 'complex' not in str(traced.graph)
    torch.testing.assert_close(traced(x), rotate(x))


def test_gelu_of_ffn_keeps_the_input_of_others():
    """GELU overwrites fc1's output only if nothing else can read it."""
    ffn, x = RMT(SMALL_ARCH).stages[0][0].ffn.eval(), torch.rand(1, 4, 4, 16)
    seen = []
    ffn.fc1.register_forward_hook(lambda module, args, out: seen.append(out))
    with torch.no_grad():
        ffn(x)
        torch.testing.assert_close(seen[0], F.linear(x, ffn.fc1.weight, ffn.fc1.bias))
