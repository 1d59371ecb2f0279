"""The layout of the authors' checkpoints, and loading them directly."""

import contextlib
import copy
import functools
import http.server
import threading

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModule, PretrainedInit
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner.checkpoint import load_checkpoint

from rmt_mm import RMT
from rmt_mm.arch import ARCHS, resolve_arch
from rmt_mm.checkpoints import load_pretrained
from rmt_mm.checkpoints.loading import check_checkpoint_file
from rmt_mm.checkpoints.official_model import parse_checkpoint
from rmt_mm.checkpoints.official_names import (
    POSITION_BUFFER,
    convert_official_state_dict,
    is_backbone_tensor,
    official_backbone_shapes,
    position_buffers,
    revert_to_official_state_dict,
)
from rmt_mm.checkpoints.shapes import HEADS, backbone_shapes, classifier
from rmt_mm.errors import CheckpointError

from support import ROOT
from support.official_files import (
    NANO,
    OFFICIAL_KEYS,
    Trap,
    assert_same_features,
    nano_state_dict,
    save_classifier,
    save_mm,
    tensors,
)

CONFIGS = {
    'Mask R-CNN': 'mask-rcnn_rmt_fpn',
    'Cascade Mask R-CNN': 'cascade-mask-rcnn_rmt_fpn',
    'RetinaNet': 'retinanet_rmt_fpn',
    'UperNet': 'upernet_rmt',
    'Semantic FPN': 'fpn_rmt',
}


@pytest.fixture
def nano(monkeypatch):
    monkeypatch.setitem(ARCHS, 'nano', NANO)


def build_model(name):
    """Build one of the models in configs/_base_/models around a NANO backbone."""
    cfg = Config.fromfile(ROOT / f'configs/_base_/models/{CONFIGS[name]}.py').model
    cfg.backbone.arch = NANO._asdict()
    inputs = [NANO.embed_dims[i] for i in cfg.backbone.get('out_indices', range(4))]
    for part in ('neck', 'decode_head'):
        if part in cfg and len(cfg[part].in_channels) == len(inputs) and (part == 'neck' or 'neck' not in cfg):
            cfg[part].in_channels = inputs
    if 'auxiliary_head' in cfg:
        cfg.auxiliary_head.in_channels = NANO.embed_dims[2]
    if HEADS[name].task == 'detector':
        scope = 'mmdet'
    else:
        scope = 'mmseg'
    pytest.importorskip(f'{scope}.utils').register_all_modules(init_default_scope=False)
    with DefaultScope.overwrite_default_scope(scope):  # other tests must not find this scope set
        return MODELS.build(cfg)


def load(model, path, **options):
    load_pretrained(model, model.checkpoint_spec(), path, **options)


FORMS = [
    dict(lce=False, cpe=False),
    dict(decay='learned'),
    dict(stem='patch4'),
]


@pytest.mark.parametrize('settings', [{}, dict(in_channels=4), dict(out_norm=False)])
@pytest.mark.parametrize('size, form', [*((size, {}) for size in ARCHS), *(('base', form) for form in FORMS)])
def test_the_table_of_shapes_is_that_of_the_model(size, form, settings):
    with torch.device('meta'):
        model = RMT(size, arch_options=form, **settings)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    arch = resolve_arch(size, form)
    table = backbone_shapes(arch, settings.get('in_channels', 3), settings.get('out_norm', True))
    assert list(table.items()) == list(shapes.items())
    assert model.checkpoint_spec() == (arch, shapes, False)
    assert all(is_backbone_tensor(name) for name in shapes)


def test_a_spec_tells_what_a_backbone_computes_adds_and_has_folded():
    model = Extended(NANO._asdict())
    spec = model.checkpoint_spec()
    assert spec.shapes.keys() == model.state_dict().keys()
    assert 'computed' not in spec.shapes
    assert [name for name in spec.shapes if not is_backbone_tensor(name)] == ['adapter.weight', 'adapter.bias', 'kept']
    model.eval().switch_to_deploy()
    assert model.checkpoint_spec().deploy and model.checkpoint_spec().shapes.keys() == model.state_dict().keys()


class Extended(RMT):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.adapter = torch.nn.Linear(1, 1)
        self.register_buffer('kept', torch.zeros(1))
        self.register_buffer('computed', torch.zeros(1), persistent=False)


@pytest.mark.parametrize('key', OFFICIAL_KEYS)
def test_layout(key):
    size, kind = key.split('/')
    arch = resolve_arch(size)
    shapes = official_backbone_shapes(arch, out_norms=kind == 'dense')
    if kind != 'dense':
        shapes.update(classifier(arch.embed_dims, 1000, kind == 'token_label'))
    assert shapes == {name: tuple(shape) for name, shape in OFFICIAL_KEYS[key].items()}


@pytest.mark.parametrize('size', ARCHS)
def test_position_buffers(size):
    arch = ARCHS[size]
    shapes = {name: shape for name, shape in official_backbone_shapes(arch).items() if POSITION_BUFFER.fullmatch(name)}
    ours, expected = position_buffers(arch), tensors(shapes, arch)
    assert ours.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(ours[name], expected[name], rtol=1e-5, atol=0)


@pytest.mark.parametrize('kind', ['dense', 'classification', 'token_label'])
def test_names_there_and_back(kind):
    official = {name: t for name, t in nano_state_dict(kind).items() if not POSITION_BUFFER.fullmatch(name)}
    back = revert_to_official_state_dict(convert_official_state_dict(official))
    assert back.keys() == official.keys()
    assert all(torch.equal(back[name], official[name]) for name in official)


@pytest.mark.parametrize('name', CONFIGS)
def test_heads_are_those_of_the_installed_libraries(name):
    """The converter keeps mmdet 2's and mmseg 0's names, so the installed libraries must still have them."""
    model = build_model(name)
    classes = 80 if HEADS[name].task == 'detector' else 150
    heads = {key: tuple(t.shape) for key, t in model.state_dict().items() if not key.startswith('backbone.')}
    assert heads == HEADS[name].shapes(NANO.embed_dims, classes)


@pytest.mark.parametrize('name', CONFIGS)
def test_converted_model_loads_strictly(name, nano):
    model = build_model(name)
    classes = 80 if HEADS[name].task == 'detector' else 150
    official = nano_state_dict(name, classes)
    converted = parse_checkpoint(dict(state_dict=official, meta={})).to_ours()['state_dict']
    model.load_state_dict(converted, strict=True)
    loaded = model.state_dict()
    for key, tensor in official.items():
        if not key.startswith('backbone.'):
            assert torch.equal(loaded[key], tensor)


@pytest.mark.parametrize('prefix', [None, 'backbone.', 'backbone'])
@pytest.mark.parametrize('kind', ['dense', 'classification', 'token_label', 'Mask R-CNN', 'UperNet'])
def test_init_cfg_takes_official_files(kind, prefix, tmp_path):
    official = nano_state_dict(kind)
    save = save_mm if kind in HEADS else save_classifier
    path = save(tmp_path / 'official.pth', official)
    model = RMT(NANO._asdict(), init_cfg=dict(type='Pretrained', checkpoint=path, prefix=prefix))
    model.init_weights()
    official = {name.replace('backbone.', '', 1): tensor for name, tensor in official.items()}
    assert_same_features(model, official, norms=kind in ('dense', *HEADS))


@pytest.mark.parametrize(
    'size',
    ['tiny', 'small', 'swin-t', *(pytest.param(size, marks=pytest.mark.slow) for size in ('base', 'large'))],
)
def test_init_cfg_takes_official_files_of_every_size(size, tmp_path):
    official = tensors(OFFICIAL_KEYS[f'{size}/dense'], resolve_arch(size))
    path = save_classifier(tmp_path / 'official.pth', official, average=0)
    model = RMT(size, init_cfg=dict(type='Pretrained', checkpoint=path))
    model.init_weights()
    assert_same_features(model, official)


def test_init_cfg_as_list_and_class(tmp_path):
    path = save_classifier(tmp_path / 'official.pth', nano_state_dict('classification'))
    first = dict(type='Constant', layer='LayerNorm', val=3.0)
    model = RMT(NANO._asdict(), init_cfg=[dict(type=PretrainedInit, checkpoint=path), first])
    model.init_weights()
    # The file overrides the other initialisers for its tensors, in any order.
    assert torch.equal(
        model.stages[0][0].norm1.weight, nano_state_dict('dense')['layers.0.blocks.0.retention_layer_norm.weight']
    )
    assert (model.norm0.weight == 3).all()


def test_report_in_the_log(tmp_path, monkeypatch):
    messages = []
    monkeypatch.setattr('rmt_mm.checkpoints.loading.print_log', lambda message, logger: messages.append(message))
    path = save_classifier(tmp_path / 'official.pth', nano_state_dict('classification'))
    RMT(NANO._asdict(), init_cfg=dict(type='Pretrained', checkpoint=path)).init_weights()
    (log,) = messages
    for text in ('official checkpoint', 'proj.weight', 'no part of the backbone', 'no output norms', 'model_ema'):
        assert text in log


class Detector(BaseModule):
    def __init__(self, **backbone):
        super().__init__()
        self.backbone = RMT(NANO._asdict(), **backbone)


@pytest.mark.parametrize(
    'save_prefix, prefix',
    [
        ('', None),
        ('backbone.', None),
        ('backbone.', 'backbone.'),
        ('module.backbone.', None),
        ('teacher.backbone.', 'teacher.backbone'),
    ],
)
def test_init_cfg_takes_own_files(save_prefix, prefix, tmp_path):
    source = RMT(NANO._asdict())
    source.init_weights()
    path = tmp_path / 'own.pth'
    torch.save(dict(state_dict={save_prefix + k: v for k, v in source.state_dict().items()}, meta={}), path)
    model = Detector(init_cfg=dict(type='Pretrained', checkpoint=str(path), prefix=prefix))
    model.init_weights()
    for name, tensor in source.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[name], tensor)


def test_init_cfg_takes_addresses(tmp_path, monkeypatch):
    save_classifier(tmp_path / 'official.pth', nano_state_dict('dense'))
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path / 'hub'))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f'http://127.0.0.1:{server.server_port}/official.pth'
        model = RMT(NANO._asdict(), init_cfg=dict(type='Pretrained', checkpoint=address))
        model.init_weights()
        server.shutdown()
    assert len(list((tmp_path / 'hub/checkpoints').glob('official-*.pth'))) == 1
    assert_same_features(model, nano_state_dict('dense'))


def test_norms_of_unused_stages_are_no_error(tmp_path):
    path = save_classifier(tmp_path / 'official.pth', nano_state_dict('dense'))
    for settings in (dict(out_indices=(1, 2, 3)), dict(out_norm=False)):
        RMT(NANO._asdict(), init_cfg=dict(type='Pretrained', checkpoint=path), **settings).init_weights()


def broken(official):
    """Yield a description, a state dict and words of the error, for each state dict that must not load."""
    first = 'layers.1.blocks.0.retention.k_proj.weight'
    yield {k: v for k, v in official.items() if k != first}, ('layers.1.blocks.0.retention has no k_proj.weight',)
    yield {**official, 'layers.9.what': torch.zeros(1)}, ('1 names are not', 'layers.9.what')
    yield {**official, first: torch.zeros(3, 3)}, ('wrong shape', 'k_proj.weight is (3, 3)')
    yield {k: v for k, v in official.items() if k != 'extra_norms.2.bias'}, ('1 missing', 'extra_norms.2.bias')
    yield {**official, 'layers.0.Relpos.decay': official['layers.0.Relpos.decay'] * 1.5}, ('another decay', 'layers.0')
    decay = official['layers.0.Relpos.decay']
    yield {**official, 'layers.0.Relpos.decay': decay.repeat(2)}, ('another decay', 'layers.0')
    fc1 = 'layers.0.blocks.0.ffn.fc1.weight'
    yield {**official, fc1: torch.zeros(3, 3)}, ('1 of the wrong shape', f'{fc1} is (3, 3)')
    for which in 'qkv':  # all three alike
        official = {**official, first.replace('k_proj', f'{which}_proj'): torch.zeros(3, 3)}
    yield official, ('3 of the wrong shape', f'{first.replace("k_proj", "q_proj")} is (3, 3)')
    yield {**official, first: torch.tensor(1.0)}, ('wrong shape', 'k_proj.weight is ()')
    yield {'conv1.weight': torch.zeros(1)}, ('not a checkpoint of RMT', 'conv1.weight')
    yield {}, ('no state dict', 'empty')


@pytest.mark.parametrize('case', range(11))
def test_incomplete_files_do_not_load(case, tmp_path):
    state_dict, words = list(broken(nano_state_dict('dense')))[case]
    path = save_classifier(tmp_path / 'official.pth', state_dict)
    model = RMT(NANO._asdict())
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(CheckpointError) as error:
        load(model, path)
    assert all(word in str(error.value) for word in (*words, path)), str(error.value)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.items())


@pytest.mark.parametrize('case', range(11))
def test_incomplete_files_are_not_converted(case, nano):
    state_dict, _ = list(broken(nano_state_dict('dense')))[case]
    with pytest.raises(CheckpointError):
        parse_checkpoint(dict(model=state_dict))


@pytest.mark.parametrize('official', [True, False])
@pytest.mark.parametrize('key, file', [('tiny', 'tiny'), ('swin-t', 'swin-tiny')])
def test_another_size_is_named(key, file, official, tmp_path):
    names = tensors(OFFICIAL_KEYS[f'{key}/dense'], ARCHS[file])
    names = names if official else convert_official_state_dict(names)
    path = str(tmp_path / 'file.pth')
    torch.save(names, path)
    with pytest.raises(CheckpointError, match=rf'the file is RMT {file}, the model is RMT small'):
        load(RMT('small'), path)


def test_other_input_channels_are_an_error_that_says_what_to_do(tmp_path):
    path = save_classifier(tmp_path / 'official.pth', nano_state_dict('dense'))
    with pytest.raises(CheckpointError, match='for images of 3 channels, and that of the model for 4') as error:
        load(RMT(NANO._asdict(), in_channels=4), path)
    assert (error.value.remedy, error.value.facts) == ('in_channels', dict(channels=4))


def test_unknown_prefix(tmp_path):
    path = save_classifier(tmp_path / 'official.pth', nano_state_dict('dense'))
    with pytest.raises(CheckpointError, match="starts with 'student.'"):
        load(RMT(NANO._asdict()), path, prefix='student.')


# Whole models, loaded by load_from and the libraries' own functions, with which mmengine would log and go on.


def whole_models():
    official, ours = nano_state_dict('classification'), Detector().state_dict()
    block = [name for name in ours if name.startswith('backbone.stages.2.1.')]
    return dict(
        bare=(official, "no tensor of RMT below 'backbone.'.*init_cfg"),
        official=(dict(model=official), "no tensor of RMT below 'backbone.'.*init_cfg"),
        mmdet_2=(nano_state_dict('Mask R-CNN'), 'an official RMT checkpoint: .* converted'),
        nothing=({'head.fc.weight': torch.zeros(2, 2)}, "no tensor of RMT below 'backbone.'"),
        own_without_prefix=(RMT(NANO._asdict()).state_dict(), "no tensor of RMT below 'backbone.'.*init_cfg"),
        swin=(
            {'backbone.stages.0.blocks.0.norm1.weight': torch.zeros(8), 'backbone.norm0.weight': torch.zeros(8)},
            r'not a checkpoint of RMT.*it has stages\.0\.blocks\.0\.norm1\.weight',
        ),
        resnet=({'backbone.conv1.weight': torch.zeros(8, 3, 7, 7)}, r'not a checkpoint of RMT.*conv1\.weight'),
        tiny=({f'backbone.{name}': t for name, t in RMT('tiny').state_dict().items()}, 'the file is RMT tiny'),
        one_tensor=({'backbone.norm0.weight': torch.zeros(8)}, r'missing \(stem\.0\.weight'),
        no_block=(
            {name: t for name, t in ours.items() if name not in block},
            rf'{len(block)} missing \(stages\.2\.1\.cpe\.weight.*complete it',
        ),
        no_bias=(
            {name: t for name, t in ours.items() if name != 'backbone.stages.0.0.attn.proj.bias'},
            r'1 missing \(stages\.0\.0\.attn\.proj\.bias\)',
        ),
        more=({**ours, 'backbone.adapter.weight': torch.zeros(1)}, r'1 unexpected \(adapter\.weight\)'),
        shape=(
            {**ours, 'backbone.stages.0.0.norm1.weight': torch.zeros(9)},
            r'1 of the wrong shape \(stages\.0\.0\.norm1\.weight is \(9,\), not \(16,\)\)',
        ),
    )


@pytest.mark.parametrize('layout', whole_models())
@pytest.mark.parametrize('load', ['mmengine', 'torch'])
def test_whole_models_never_load_nothing(layout, load, tmp_path):
    state_dict, words = whole_models()[layout]
    model = Detector()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(CheckpointError, match=words) as error:
        if load == 'torch':
            model.load_state_dict(state_dict, strict=False)
        else:
            torch.save(state_dict if layout == 'official' else dict(state_dict=state_dict), tmp_path / 'file.pth')
            load_checkpoint(model, str(tmp_path / 'file.pth'), map_location='cpu')
    assert error.value.remedy == ('convert' if layout == 'mmdet_2' else '')
    assert 'tools/' not in str(error.value) and '(0, ' not in str(error.value)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.items())


def test_a_part_that_is_completed_loads():
    model, other = Detector(), Detector()
    part = {name: tensor + 1.0 for name, tensor in other.state_dict().items() if '.stages.0.' in name}
    model.load_state_dict({**model.state_dict(), **part})
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in part.items())


def test_a_backbone_by_itself_takes_what_is_its_own():
    source, model = Detector().backbone, RMT(NANO._asdict())
    model.load_state_dict({**source.state_dict(), 'head.fc.weight': torch.zeros(1)}, strict=False)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in source.state_dict().items())
    with pytest.raises(CheckpointError, match='without a prefix'):
        model.load_state_dict(Detector().state_dict(), strict=False)


# Output norms.


@pytest.mark.parametrize('way', ['init_cfg', 'mmengine', 'torch'])
@pytest.mark.parametrize(
    'theirs, ours, new, unused',
    [((3,), (0, 1, 2, 3), [0, 1, 2], []), ((0, 1, 2, 3), (1, 2), [], [0, 3]), ((0, 1), (1, 2), [2], [0])],
)
def test_output_norms_may_be_missing_singly(theirs, ours, new, unused, way, tmp_path, monkeypatch):
    """After self-supervised pre-training the backbone has only the norm of the last output."""
    messages = []
    monkeypatch.setattr('rmt_mm.checkpoints.loading.print_log', lambda message, logger: messages.append(message))
    source = Detector(out_indices=theirs)
    source.init_weights()
    for parameter in source.parameters():
        parameter.data += 0.5
    path = str(tmp_path / 'file.pth')
    torch.save(dict(state_dict=source.state_dict()), path)
    model = Detector(out_indices=ours, init_cfg=dict(type='Pretrained', checkpoint=path) if way == 'init_cfg' else None)
    if way == 'init_cfg':
        model.init_weights()
        (log,) = messages
        assert ('new: ' + ', '.join(f'norm{i}' for i in new) + '; ' in log) == bool(new)
        assert ('unused: ' + ', '.join(f'norm{i}' for i in unused) + '; ' in log) == bool(unused)
    elif way == 'mmengine':
        load_checkpoint(model, path, map_location='cpu')
    else:
        left = model.load_state_dict(source.state_dict(), strict=False)
        assert {name.split('.')[1] for name in left.missing_keys} == {f'norm{i}' for i in new}
        assert {name.split('.')[1] for name in left.unexpected_keys} == {f'norm{i}' for i in unused}
    for name, tensor in model.backbone.state_dict().items():
        if name.split('.')[0] in [f'norm{i}' for i in new]:
            assert torch.equal(tensor, torch.full_like(tensor, float(name.endswith('weight'))))
        else:
            assert torch.equal(tensor, source.backbone.state_dict()[name])


def test_official_backbones_with_fewer_norms(nano, tmp_path):
    official = {name: t for name, t in nano_state_dict('dense').items() if not name.startswith('extra_norms.1.')}
    model = RMT(NANO._asdict())
    load(model, save_classifier(tmp_path / 'official.pth', official))
    assert (model.norm1.weight == 1).all() and torch.equal(model.norm2.weight, official['extra_norms.2.weight'])
    parsed = parse_checkpoint(official)
    assert 'norm1' in '\n'.join(parsed.report()) and 'norm1.weight' not in parsed.to_ours()['state_dict']


# The form for inference.


@pytest.mark.parametrize('way', ['init_cfg', 'mmengine'])
@pytest.mark.parametrize('deploy', [False, True])
def test_the_form_for_inference_is_loaded_into_its_own_kind_alone(deploy, way, tmp_path):
    files = dict(ordinary=Detector(), deployed=Detector().eval())
    files['deployed'].backbone.switch_to_deploy()
    for form, source in files.items():
        path = str(tmp_path / f'{form}.pth')
        torch.save(dict(state_dict=source.state_dict()), path)
        model = Detector(deploy=deploy)
        load_it = (
            functools.partial(load_checkpoint, model, path)
            if way == 'mmengine'
            else functools.partial(load, model.backbone, path)
        )
        if deploy == (form == 'deployed'):
            load_it()
            assert all(torch.equal(t, model.state_dict()[name]) for name, t in source.state_dict().items())
        else:
            words = 'model.backbone.deploy=True' if form == 'deployed' else 'leave model.backbone.deploy at False'
            with pytest.raises(CheckpointError, match=words):
                load_it()


def test_the_form_for_inference_of_other_norms_is_told_by_the_file(tmp_path):
    settings = dict(norm_cfg=dict(type='GN', num_groups=1))
    arch = {**NANO._asdict(), 'layer_scales': (False,) * 4}
    source = RMT(arch, **settings).eval()
    source.switch_to_deploy()
    path = str(tmp_path / 'file.pth')
    torch.save(dict(state_dict=source.state_dict(), meta=dict(rmt_mm=dict(deploy=True))), path)
    load(RMT(arch, deploy=True, **settings), path)
    with pytest.raises(CheckpointError, match='model.backbone.deploy=True'):
        load(RMT(arch, **settings), path)


def test_no_way_leads_back_from_the_form_for_inference(nano):
    model = Detector().eval()
    model.backbone.switch_to_deploy()
    with pytest.raises(CheckpointError, match='no way leads back'):
        parse_checkpoint(dict(state_dict=model.state_dict()))


# Backbones that are more than RMT.


class Adapted(RMT):
    def __init__(self, **settings):
        super().__init__(NANO._asdict(), **settings)
        self.adapter = torch.nn.Linear(2, 2)


class LowRank(torch.nn.Module):
    """A replacement for a Linear layer, like LoRA's."""

    def __init__(self, layer):
        super().__init__()
        self.original_layer, self.lora_down = layer, torch.nn.Linear(2, 2)


def test_what_a_subclass_adds_may_be_missing(tmp_path):
    path = tmp_path / 'file.pth'
    torch.save(RMT(NANO._asdict()).state_dict(), path)
    model = Adapted(init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    model.init_weights()
    assert torch.equal(model.stem[0].weight, torch.load(path)['stem.0.weight'])
    part = {name: tensor for name, tensor in torch.load(path).items() if 'stages.1' not in name}
    with pytest.raises(CheckpointError, match='missing'):
        model.load_state_dict(part, strict=False)


def test_replaced_layers_are_not_checked():
    model = Detector()
    model.backbone.stages[0][0].attn.qkv = LowRank(model.backbone.stages[0][0].attn.qkv)
    low_rank = {name: tensor + 1 for name, tensor in model.state_dict().items() if 'lora' in name}
    assert len(low_rank) == 2
    model.load_state_dict(low_rank, strict=False)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in low_rank.items())


def test_models_with_replaced_layers_take_no_other_model(tmp_path):
    path = str(tmp_path / 'swin.pth')
    torch.save({'backbone.stages.0.blocks.0.norm1.weight': torch.zeros(8)}, path)
    model = RMT(NANO._asdict())
    model.stages[0][0].attn.qkv = LowRank(model.stages[0][0].attn.qkv)
    with pytest.raises(CheckpointError, match='not a checkpoint of RMT'):
        load(model, path)


def test_addresses_of_other_storage(tmp_path, monkeypatch):
    path = save_classifier(tmp_path / 'official.pth', nano_state_dict('dense'))
    asked = []

    @contextlib.contextmanager
    def get_local_path(address):
        asked.append(address)
        yield path

    monkeypatch.setattr('rmt_mm.checkpoints.loading.get_local_path', get_local_path)
    for address in ('s3://bucket/rmt.pth', 'petrel://bucket/rmt.pth', 'cluster:s3://bucket/rmt.pth'):
        model = RMT(NANO._asdict(), init_cfg=dict(type='Pretrained', checkpoint=address))
        model.init_weights()
        assert asked[-1] == address and torch.equal(model.norm0.bias, nano_state_dict('dense')['extra_norms.0.bias'])
    with pytest.raises(CheckpointError, match='open-mmlab://resnet50.* no RMT'):
        RMT(NANO._asdict(), init_cfg=dict(type='Pretrained', checkpoint='open-mmlab://resnet50')).init_weights()


def test_own_files_still_load(tmp_path):
    model = Detector()
    torch.save(dict(state_dict=copy.deepcopy(model).state_dict()), tmp_path / 'file.pth')
    load_checkpoint(model, str(tmp_path / 'file.pth'), strict=True)


def test_check_checkpoint_file(tmp_path):
    own = str(tmp_path / 'own.pth')
    torch.save(dict(state_dict=Detector().state_dict()), own)
    assert check_checkpoint_file(own) == own
    assert check_checkpoint_file('torchvision://resnet50') == 'torchvision://resnet50'
    official = save_classifier(tmp_path / 'official.pth', nano_state_dict('dense'))
    with pytest.raises(CheckpointError, match='official') as error:
        check_checkpoint_file(official)
    assert error.value.remedy == 'convert'
    with pytest.raises(FileNotFoundError, match='does not exist'):
        check_checkpoint_file(str(tmp_path / 'no.pth'))


# Safety: no way of loading executes what a file holds.


def ways_in(path):
    return dict(
        init_cfg=RMT(NANO._asdict(), init_cfg=dict(type='Pretrained', checkpoint=path)).init_weights,
        prefix=RMT(NANO._asdict(), init_cfg=dict(type='Pretrained', checkpoint=path, prefix='backbone.')).init_weights,
        check=functools.partial(check_checkpoint_file, path),
    )


@pytest.mark.parametrize('way', ['init_cfg', 'prefix', 'check'])
@pytest.mark.parametrize('legacy', [False, True])
def test_traps_do_not_spring(way, legacy, tmp_path):
    marker, path = tmp_path / 'marker', str(tmp_path / 'trap.pth')
    torch.save(dict(model=nano_state_dict('dense'), args=Trap(marker)), path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match='open') as error:
        ways_in(path)[way]()
    assert (error.value.remedy, error.value.facts) == ('allow_type', dict(allow_type=[f'{open.__module__}.open']))
    assert not marker.exists()
    torch.load(path, weights_only=False)  # unsafe loading does execute the trap
    assert marker.exists()
