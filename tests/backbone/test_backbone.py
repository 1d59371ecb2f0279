"""RMT as a backbone: the effects of its arguments, the sizes and dtypes that it takes, the inputs that it refuses."""

import copy
import importlib
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from rmt_mm import RMT, convert_official_state_dict, ops
from rmt_mm.arch import resolve_arch
from rmt_mm.ops.tables import line_bias, rotary_phases
from rmt_mm.reference import PlainRMT

from support import needs_torch
from support.archs import SMALL_ARCH


def build(**kwargs):
    model = RMT(**{'arch': SMALL_ARCH, **kwargs})
    model.init_weights()
    return model


@pytest.mark.parametrize('size', [(64, 64), (256, 309), (45, 33), (1, 1), (7, 130)])
def test_any_size_gives_four_strides(size):
    """The values equal those of the plain reference, with other weights than an untrained model's."""
    reference = PlainRMT(resolve_arch(SMALL_ARCH)).eval()
    for name, tensor in reference.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape) + 0.5 if 'var' in name else 0.2 * torch.randn(tensor.shape))
    model = build().eval()
    result = model.load_state_dict(convert_official_state_dict(reference.state_dict()), strict=False)
    assert not result.unexpected_keys and all(name.endswith('num_batches_tracked') for name in result.missing_keys)
    image = torch.rand(2, 3, *size)
    with torch.no_grad():
        outs, expected = model(image), reference(image)
    assert len(outs) == 4
    for i, out in enumerate(outs):
        assert out.shape == (2, SMALL_ARCH['embed_dims'][i], *(-(-length // 2 ** (i + 2)) for length in size))
        assert error(out, expected[i]) < 1e-4
        assert out.is_contiguous(), "mmcv's RoIAlign reads memory as (B, C, H, W)"


@pytest.mark.parametrize('scope', ['mmengine', 'mmdet', 'mmseg', 'mmpretrain'])
def test_found_by_type_in_every_scope(scope):
    pytest.importorskip(scope)
    registry = importlib.import_module(f'{scope}.registry').MODELS
    assert isinstance(registry.build(dict(type='RMT', arch=SMALL_ARCH)), RMT)


@pytest.mark.parametrize('out_indices', [(1, -1), (-1, 1), (3, 1, 3)])
def test_out_indices_choose_outputs_and_their_norms(out_indices):
    """Outputs are in the order of the stages, with indices in any order."""
    model = build(out_indices=out_indices).eval()
    assert model.out_indices == (1, 3) and model.out_channels == (24, 48)
    assert model.embed_dims == SMALL_ARCH['embed_dims'] and model.strides == (4, 8, 16, 32)
    assert [name for name, _ in model.named_children() if name.startswith('norm')] == ['norm1', 'norm3']
    assert [out.shape[1] for out in model(torch.rand(1, 3, 32, 32))] == [24, 48]


@pytest.mark.parametrize('last', range(4))
def test_last_stages_need_not_run(last):
    """Nothing after the last output is computed, and that output is the same as with all outputs."""
    whole, model = build().eval(), build(out_indices=(last,)).eval()
    model.load_state_dict({name: whole.state_dict()[name] for name in model.state_dict()})
    x = torch.rand(1, 3, 40, 48)
    (out,) = model(x)
    assert torch.equal(out, whole(x)[last])
    ran = set()
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *args, name=name: ran.add(name))
    model(x)
    assert {int(name.split('.')[1]) for name in ran if name.startswith('stages.')} == set(range(last + 1))
    assert {int(name.split('.')[1]) for name in ran if name.startswith('downsamples.')} == set(range(last))


def test_norms_have_the_published_eps():
    """Checkpoints hold no eps: 1e-6 in the blocks, PyTorch's 1e-5 on the outputs."""
    for name, module in build().named_modules():
        if isinstance(module, nn.LayerNorm):
            assert module.eps == (1e-6 if name.startswith('stages.') else 1e-5), name
        elif isinstance(module, _BatchNorm):
            assert (module.eps, module.momentum) == (1e-5, 0.1), name


def test_out_norm_off_returns_the_stage_itself():
    with_norm, without = build().eval(), build(out_norm=False).eval()
    without.load_state_dict({k: v for k, v in with_norm.state_dict().items() if not k.startswith('norm')})
    x = torch.rand(1, 3, 40, 40)
    for i, (normed, raw) in enumerate(zip(with_norm(x), without(x))):
        expected = getattr(with_norm, f'norm{i}')(raw.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        torch.testing.assert_close(normed, expected)


@pytest.mark.parametrize('in_channels', [1, 4])
def test_in_channels(in_channels):
    assert len(build(in_channels=in_channels).eval()(torch.rand(1, in_channels, 32, 32))) == 4


def test_init_weights_is_the_published_one():
    torch.manual_seed(0)
    model = build()
    weight = model.stages[3][0].ffn.fc1.weight
    assert 0.015 < float(weight.detach().std()) < 0.025
    assert float(weight.detach().abs().max()) < 2
    for module in model.modules():
        if isinstance(module, nn.Linear):
            assert not module.bias.any()
        elif isinstance(module, (nn.LayerNorm, _BatchNorm)):
            assert (module.weight == 1).all() and not module.bias.any()


def test_layer_scale_only_where_the_arch_says_so():
    model = build(layer_scale_init=0.3)
    scales = {name: p for name, p in model.named_parameters() if 'gamma' in name}
    assert set(scales) == {'stages.3.0.gamma1', 'stages.3.0.gamma2'}
    assert all(p.shape == (1, 1, 1, 48) and (p == 0.3).all() for p in scales.values())


def test_drop_path_grows_linearly_and_acts_in_training_only():
    model = build(drop_path_rate=0.5)
    rates = [d.drop_prob for stage in model.stages for block in stage for d in (block.drop_path1, block.drop_path2)]
    assert rates == pytest.approx([0.1 * (i // 2) for i in range(12)])
    x = torch.rand(4, 3, 32, 32)
    model.eval()
    torch.testing.assert_close(model(x), model(x))
    model.train()
    assert not torch.equal(model(x)[3], model(x)[3])


def test_drop_path_acts_on_both_branches_and_not_on_cpe():
    """With a rate of almost 1, only CPE of a block remains; a sample is dropped as a whole."""
    model = build(drop_path_rate=1 - 1e-6).train()
    block, seen = model.stages[3][-1], {}
    block.cpe.register_forward_hook(lambda module, args, out: seen.update(cpe=out.detach().clone()))
    block.register_forward_hook(lambda module, args, out: seen.update(block=out.detach().clone()))
    model(torch.rand(4, 3, 64, 64))
    torch.testing.assert_close(seen['block'], seen['cpe'], rtol=0, atol=0)

    model = build(drop_path_rate=0.5).train()  # the first of two blocks in stage 2 has 0.3, on each branch
    branches = [], []
    block = model.stages[2][0]
    for drop_path, calls in zip((block.drop_path1, block.drop_path2), branches):
        drop_path.register_forward_hook(lambda module, args, out, calls=calls: calls.append((args[0], out)))
    for _ in range(20):
        model(torch.rand(16, 3, 32, 32))
    for given, kept in (zip(*calls) for calls in branches):
        given, kept = torch.cat(given).flatten(1), torch.cat(kept).flatten(1)
        dropped = (kept == 0).all(1)
        torch.testing.assert_close(kept[~dropped], given[~dropped] / 0.7)
        assert 0.2 < float(dropped.float().mean()) < 0.4


@pytest.mark.parametrize('stages', range(-1, 5))
def test_frozen_stages_have_no_gradient_and_stay_in_eval_mode(stages):
    model = build(frozen_stages=stages)
    model.eval()
    assert model.train() is model
    outs = model(torch.rand(2, 3, 64, 64))
    if stages < 4:
        sum(out.sum() for out in outs).backward()
    for name, param in model.named_parameters():
        part, _, rest = name.partition('.')
        if part == 'stem':
            frozen = stages >= 0
        elif part == 'stages':
            frozen = int(rest[0]) < stages
        elif part == 'downsamples':
            frozen = int(rest[0]) + 1 < stages
        else:
            frozen = int(part[-1]) < stages
        assert param.requires_grad is not frozen, name
        assert (param.grad is None) is frozen, name
    assert model.stem.training is (stages < 0)
    assert [stage.training for stage in model.stages] == [i >= stages for i in range(4)]


@pytest.mark.parametrize('norm', ['BN', 'SyncBN'])
def test_norm_eval_holds_every_batchnorm(norm):
    norms = [m for m in build(norm_eval=True, norm_cfg=dict(type=norm)).train().modules() if isinstance(m, _BatchNorm)]
    assert len(norms) == 7 and not any(m.training for m in norms)
    assert all(m.training for m in build(norm_cfg=dict(type=norm)).train().modules() if isinstance(m, _BatchNorm))


def test_norm_cfg_reaches_stem_and_downsampling():
    model = build(norm_cfg=dict(type='GN', num_groups=4))
    assert sum(isinstance(m, nn.GroupNorm) for m in model.modules()) == 7
    assert not any(isinstance(m, _BatchNorm) for m in model.modules())


def saved_bytes_and_gradients(model, x):
    """Train a step, and return the bytes that autograd held for its backward pass, and the gradients.

    Count each storage once, without parameters. Tensors that are recomputed are not held, so they are not counted.
    """
    held = {p.untyped_storage().data_ptr(): 0 for p in model.parameters()}
    kept = []  # keeps storages alive, so that no address is used twice

    def pack(tensor):
        storage = tensor.untyped_storage()
        held.setdefault(storage.data_ptr(), storage.nbytes())
        kept.append(tensor)
        return tensor

    torch.manual_seed(0)  # the same drop path in every model
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = sum(out.square().sum() for out in model(x))
    loss.backward()
    return sum(held.values()), [param.grad for param in model.parameters()]


def test_with_cp_changes_memory_and_not_gradients():
    """Gradients, drop path included, stay the same with a fraction of the memory; each marked stage saves its share."""
    plain = build(drop_path_rate=0.5)
    x, start = torch.rand(2, 3, 64, 64), copy.deepcopy(plain.state_dict())
    held, expected = saved_bytes_and_gradients(plain, x)
    sizes = []
    for with_cp in (True, (True, False, False, False), (False, True, False, True), (False, False, True, False)):
        model = build(drop_path_rate=0.5, with_cp=with_cp)
        model.load_state_dict(start)
        size, gradients = saved_bytes_and_gradients(model, x)
        sizes.append(size)
        for gradient, reference in zip(gradients, expected):
            torch.testing.assert_close(gradient, reference)
        for name, buffer in model.named_buffers():  # recomputation does not update statistics twice
            torch.testing.assert_close(buffer, plain.get_buffer(name))
    whole, *parts = sizes
    assert whole < 0.5 * held
    assert all(whole < part < held for part in parts)
    savings = sum(held - part for part in parts)
    assert savings == pytest.approx(held - whole, rel=0.01), 'stages save each their own'


def test_ffn_with_cp_changes_memory_and_not_gradients():
    x = torch.rand(2, 3, 64, 64)
    models = [build(drop_path_rate=0.5, ffn_with_cp=with_cp) for with_cp in (True, False)]
    models[1].load_state_dict(models[0].state_dict())
    (less, gradients), (more, expected) = (saved_bytes_and_gradients(model, x) for model in models)
    assert less < 0.9 * more
    for gradient, reference in zip(gradients, expected):
        torch.testing.assert_close(gradient, reference)


def test_state_dict_has_parameters_and_norm_statistics_only():
    model = build()
    before = set(model.state_dict())
    model(torch.rand(1, 3, 64, 96))
    assert set(model.state_dict()) == before
    buffers = {name.rsplit('.', 1)[-1] for name, _ in model.named_buffers()}
    assert buffers == {'running_mean', 'running_var', 'num_batches_tracked'}
    assert set(pickle.loads(pickle.dumps(model)).state_dict()) == set(copy.deepcopy(model).state_dict()) == before


@pytest.fixture
def _bias_in_memory():
    """Pin the kernels that hold a bias: the one in C++ holds none."""
    with ops.use(attend='plain'):
        yield


@pytest.mark.usefixtures('_bias_in_memory')
def test_tables_are_cached_bounded_and_usable_after_inference_mode():
    line_bias.cache_clear()
    rotary_phases.cache_clear()
    model = build(out_indices=(0,))
    with torch.inference_mode():
        model(torch.rand(1, 3, 32, 64))
    built = line_bias.cache_info().misses, rotary_phases.cache_info().misses
    model(torch.rand(2, 3, 32, 64))[0].sum().backward()  # tables of the inference above serve training
    assert (line_bias.cache_info().misses, rotary_phases.cache_info().misses) == built
    model.eval()
    with torch.no_grad():
        for width in range(4, 600, 4):
            model(torch.rand(1, 3, 4, width))
    for table in (line_bias, rotary_phases):
        assert table.cache_info().currsize == table.cache_info().maxsize


def error(out, expected):
    out, expected = out.detach().double(), expected.detach().double()
    return float((out - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    'dtype, tolerance',
    [(torch.bfloat16, 4e-2), pytest.param(torch.float16, 5e-3, marks=needs_torch('2.3', 'fp16 autocast on CPU'))],
)
def test_autocast(dtype, tolerance):
    model = build()
    x = torch.rand(2, 3, 64, 96)
    model.eval()
    expected = model(x)
    with torch.autocast('cpu', dtype):
        outs = model(x)
        sum(out.float().sum() for out in outs).backward()
    for out, reference in zip(outs, expected):
        assert error(out, reference) < tolerance
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_module_cast_to_bf16():
    model = build().eval()
    x = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        expected = model(x)
        outs = model.bfloat16()(x.bfloat16())
    for out, reference in zip(outs, expected):
        assert out.dtype == torch.bfloat16
        assert error(out, reference) < 4e-2


def test_phases_are_fp32_and_exact_where_half_precision_ends():
    """On COCO the token index reaches 67,200: fp16 cannot represent it, and bf16 only every 512th integer."""
    phases = rotary_phases(200, 336, 16, torch.device('cpu'))
    assert phases.dtype == torch.float32
    cos = phases[..., 0]
    index = 200 * 336 - 1
    expected = torch.tensor(float(index), dtype=torch.float64)  # angle_0 is 1
    assert abs(float(cos[-1, -1, 0, 0]) - float(expected.cos())) < 1e-6
    assert float(cos[-1, -1, 0, 0]) != float(cos[-1, -2, 0, 0])
    bias = line_bias((-0.3,), 336, torch.device('cpu'), torch.bfloat16)
    torch.testing.assert_close(bias[0, 0].float(), -0.3 * torch.arange(336.0), rtol=2**-8, atol=0)


@pytest.mark.parametrize(
    'kwargs, words',
    [
        (dict(arch='huge'), ['huge', 'tiny']),
        (dict(out_indices=(0, 4)), ['out_indices', '4', '0 to 3']),
        (dict(frozen_stages=5), ['frozen_stages', '5', '4']),
        (dict(with_cp=(True, False)), ['with_cp', '4']),
        (dict(drop_path_rate=1.5), ['drop_path_rate', '1.5']),
        (dict(out_indices=()), ['out_indices', 'empty']),
        (dict(pretrained='a.pth', init_cfg=dict(type='Pretrained', checkpoint='b.pth')), ['pretrained', 'init_cfg']),
        (dict(pretrained='open-mmlab://resnet50_v1c'), ['resnet50_v1c', 'model.pretrained=None']),
    ],
)
def test_wrong_arguments_are_named(kwargs, words):
    with pytest.raises(ValueError) as caught:
        build(**kwargs)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize('shape', [(1, 4, 32, 32), (3, 32, 32)])
def test_wrong_input_is_named(shape):
    with pytest.raises(ValueError, match=r'in_channels=3.*shape \(' + ', '.join(map(str, shape))):
        build()(torch.rand(shape))


def test_layer_depth_follows_the_forward_pass():
    model = build()
    depths = {name: model.get_layer_depth(f'backbone.{name}', 'backbone.') for name, _ in model.named_parameters()}
    assert {count for _, count in depths.values()} == {8}
    assert depths['stem.0.weight'][0] == 0
    assert depths['stages.0.0.norm1.weight'][0] == depths['norm0.weight'][0] == 1
    assert depths['downsamples.0.conv.weight'][0] == depths['stages.1.0.cpe.weight'][0] == 2
    assert depths['stages.1.1.ffn.fc1.weight'][0] == 3 and depths['stages.2.1.attn.proj.bias'][0] == 5
    assert depths['stages.3.0.gamma1'][0] == depths['norm3.bias'][0] == 6
    assert model.get_layer_depth('head.fc.weight', 'backbone.') == (7, 8)


def test_pretrained_is_init_cfg(tmp_path):
    """mmseg passes model.pretrained to its backbones as an argument."""
    trained = build()
    with torch.no_grad():
        trained.norm3.weight.fill_(7)
    torch.save(trained.state_dict(), tmp_path / 'rmt.pth')
    model = build(pretrained=str(tmp_path / 'rmt.pth'))
    assert (model.norm3.weight == 7).all() and build(pretrained=None).norm3.weight.max() == 1


def test_mask_replaces_tokens_of_the_stem():
    model, x = build(mask_token=True).eval(), torch.rand(2, 3, 64, 96)
    nothing, mask = torch.zeros(2, 16, 24), torch.zeros(2, 16, 24, dtype=torch.long)
    for out, expected in zip(model(x, nothing), model(x, mask=None)):
        torch.testing.assert_close(out, expected)
    mask[:, 8:] = 1  # the lower half: its pixels must not matter, except those that the stem's kernels reach
    other = x.clone()
    other[:, :, 48:] = 0
    for out, expected in zip(model(x, mask), model(other, mask)):
        torch.testing.assert_close(out, expected)
    assert not torch.allclose(model(x)[0], model(other)[0])
    model(x, mask)[3].sum().backward()
    assert model.mask_token.grad.abs().sum() > 0
    assert model.get_layer_depth('mask_token')[0] == 0
    with pytest.raises(ValueError, match='mask_token=True'):
        build()(x, mask)
    with pytest.raises(ValueError, match=r'\(2, 16, 24\), got \(2, 2, 3\)'):
        model(x, mask[:, ::8, ::8])


def test_mask_token_is_not_there_unless_asked_for(tmp_path):
    assert 'mask_token' not in build().state_dict()
    masked, plain = build(mask_token=True).state_dict(), build().state_dict()
    for given, kwargs in ((masked, {}), (plain, dict(mask_token=True))):  # pre-training to fine-tuning, and back
        torch.save(given, tmp_path / 'rmt.pth')
        model = build(init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'rmt.pth')), **kwargs)
        build(**kwargs).load_state_dict(given, strict=False)
        assert torch.equal(model.stages[0][0].attn.qkv.weight, given['stages.0.0.attn.qkv.weight'])
    weight = build(mask_token=True).mask_token
    assert 0 < weight.abs().max() < 0.1


def test_simmim():
    """RMT works in mmpretrain's masked image modelling, with the masks that its own pipeline makes."""
    pytest.importorskip('mmpretrain')
    from mmengine.registry import DefaultScope
    from mmpretrain.registry import MODELS
    from mmpretrain.structures import DataSample

    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(
            dict(
                type='SimMIM',
                backbone=dict(type='RMT', arch=SMALL_ARCH, out_indices=(3,), mask_token=True),
                neck=dict(type='SimMIMLinearDecoder', in_channels=48, encoder_stride=32),
                head=dict(
                    type='SimMIMHead',
                    patch_size=4,
                    loss=dict(type='PixelReconstructionLoss', criterion='L1', channel=3),
                ),
            )
        )
    model.init_weights()
    samples = [DataSample() for _ in range(2)]
    for sample in samples:
        sample.mask = torch.rand(2, 2).round().repeat_interleave(8, 0).repeat_interleave(8, 1)
    loss = model.loss(torch.rand(2, 3, 64, 64), samples)['loss']
    loss.backward()
    assert loss.isfinite() and model.backbone.mask_token.grad is not None
    assert model.extract_feat(torch.rand(1, 3, 64, 64))[0].shape == (1, 48, 2, 2)


def test_an_unused_output_leaves_no_parameter_without_gradient(tmp_path):
    """DistributedDataParallel waits for the gradient of every parameter."""
    torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(build())
        for _ in range(3):  # it stops in the second iteration if one is missing
            outs = model(torch.rand(2, 3, 64, 64))
            F.relu_(outs[3]).sum().backward()  # heads may change their inputs in place
        grads = {name: p.grad for name, p in model.module.named_parameters()}
        assert not [name for name, grad in grads.items() if grad is None]
        assert not grads['norm0.weight'].any() and grads['norm3.weight'].any()
    finally:
        # barrier() waits without the GIL, which gloo's thread needs to free the tensors that backward() sent.
        # destroy_process_group() waits for that thread with the GIL: called first, it would wait forever.
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
