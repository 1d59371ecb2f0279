"""tools/model_converters/rmt_to_mm.py, run as a user runs it."""

import argparse
import importlib
import io
import os
import pickle
import stat
import sys
import tarfile
import zipfile

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner.checkpoint import load_checkpoint

from rmt_mm import RMT
from rmt_mm.arch import ARCHS, resolve_arch
from rmt_mm.checkpoints import loading
from rmt_mm.checkpoints.files import CheckpointError, file_hash, read_checkpoint, write_checkpoint
from rmt_mm.checkpoints.shapes import HEADS
from rmt_mm.reference import PlainRMT
from rmt_mm.tools.commands import rmt_to_mm

from support import ROOT
from support.official_files import (
    GOLDEN,
    NANO,
    OFFICIAL_KEYS,
    Trap,
    assert_same_features,
    nano_state_dict,
    save_classifier,
    save_mm,
    tensors,
    weights,
)
from support.scripts import run_script

OPEN = f'{open.__module__}.open'  # of io, since Python 3.12 of _io
TOOL = ROOT / 'tools/model_converters/rmt_to_mm.py'

KINDS = ('dense', 'classification', 'token_label', *HEADS)


@pytest.fixture(autouse=True)
def nano(monkeypatch):
    monkeypatch.setitem(ARCHS, 'nano', NANO)
    monkeypatch.setattr(os, 'fsync', lambda descriptor: None)  # do not wait for the disk


@pytest.fixture
def run(tmp_path, capsys):
    """Run the converter in this process; return exit status (0 or 1), stdout, and the error."""

    def run(*args):
        try:
            rmt_to_mm.main([str(arg) for arg in args])
        except SystemExit as exit:
            assert exit.code != 0
            return 1, capsys.readouterr().out, str(exit.code)
        return 0, capsys.readouterr().out, ''

    return run


def save(path, kind, classes=7):
    state_dict = nano_state_dict(kind, classes)
    return (save_mm if kind in HEADS else save_classifier)(path, state_dict)


def refused(run, tmp_path, *args, words):
    """Assert that the converter fails with one sentence that has all words, and leaves no file behind."""
    before = sorted(tmp_path.iterdir())
    status, _, error = run(*args)
    assert status == 1
    assert error.startswith('error: ') and len(error.splitlines()) == 1
    assert all(word in error for word in words), error
    assert sorted(tmp_path.iterdir()) == before


def test_command_line(tmp_path):
    """Run in a separate process, with a published size; check status, stdout, stderr, and the file."""
    official = tensors(OFFICIAL_KEYS['tiny/classification'], ARCHS['tiny'])
    src, dst = save_classifier(tmp_path / 'RMT_T.pth', official, average=0), tmp_path / 'rmt-t.pth'

    done = run_script(TOOL, src, dst)
    assert done.returncode == 0, done.stderr
    for line in ('kind: classification', 'arch: tiny', 'weights: model', 'tensors used: 366', 'missing: 0'):
        assert line in done.stdout.splitlines()
    assert file_hash(str(dst)) in done.stdout

    again = run_script(TOOL, src, dst)
    assert (again.returncode, again.stdout) == (1, '')
    assert 'exists already' in again.stderr and '--force' in again.stderr and 'Traceback' not in again.stderr

    model = RMT('tiny', init_cfg=dict(type='Pretrained', checkpoint=str(dst)))
    model.init_weights()
    assert_same_features(model, official, norms=False)


@pytest.mark.parametrize(
    'file, image, config',
    [
        ('tiny_dense_1x3x64x96', 'vis-a', 'detection/mask-rcnn_rmt-t_fpn_amp-1x_coco.py'),
        ('small_dense_2x3x96x64', 'vis-b', 'segmentation/rmt-small_fpn_8xb2-80k_ade20k-512x512.py'),
        pytest.param(
            'base_dense_1x3x64x64',
            'vis-c',
            'segmentation/rmt-base_upernet_8xb2-amp-160k_ade20k-512x512.py',
            marks=pytest.mark.slow,
        ),
        ('swin-t_dense_1x3x64x96', 'swin-a', 'segmentation/rmt-swin-tiny_upernet_8xb2-amp-160k_ade20k-512x512.py'),
        ('tiny_classification_2x3x64x64', 'vis-d', 'classification/rmt-tiny_8xb128_in1k.py'),
        ('small_token_label_2x3x64x64', 'vis-e', 'classification/rmt-small_tl_8xb128-310e_in1k.py'),
    ],
)
def test_outputs_of_the_original_through_files(file, image, config, run, tmp_path):
    """An official file, converted and loaded by mmengine into a real config's model, gives the original's outputs."""
    size, shape = file.split('_')[0], tuple(map(int, file.split('_')[-1].split('x')))
    kind = file[len(size) + 1 : file.rindex('_')]
    official = tensors(OFFICIAL_KEYS[f'{size}/{kind}'], resolve_arch(size))
    src = save_classifier(tmp_path / 'official.pth', official, average=0)
    assert run(src, tmp_path / 'ours.pth')[0] == 0
    cfg = Config.fromfile(ROOT / 'configs' / config)
    for name in cfg.custom_imports.imports:
        importlib.import_module(name)
    pytest.importorskip(f'{cfg.default_scope}.models')
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = revert_sync_batchnorm(MODELS.build(cfg.model)).eval()
    load_checkpoint(model, str(tmp_path / 'ours.pth'), map_location='cpu')
    golden = np.load(GOLDEN / f'{file}.npz')
    x = torch.from_numpy(weights.image(image, shape))
    with torch.no_grad():
        outs = {f'out{i}': out for i, out in enumerate(model.backbone(x))} if kind == 'dense' else dict(logits=model(x))
    assert outs.keys() == set(golden)
    for name, out in outs.items():
        expected = torch.from_numpy(golden[name])
        assert float((out - expected).norm() / expected.norm()) < 1e-5


def plain_logits(size, state, x):
    """Return the logits of an official classifier by the formulas: plain backbone without output norm, and its head."""
    backbone = PlainRMT(ARCHS[size]).eval()
    backbone.extra_norms[3] = torch.nn.Identity()
    backbone.load_state_dict(
        {k: v for k, v in state.items() if k.startswith(('patch_embed', 'layers')) and 'Relpos' not in k}, strict=False
    )
    tokens = backbone(x)[3].permute(0, 2, 3, 1)
    h = F.linear(tokens, state['proj.weight'], state['proj.bias'])
    h = (h - state['norm.running_mean']) / (state['norm.running_var'] + 1e-5).sqrt()
    h = h * state['norm.weight'] + state['norm.bias']
    logits = F.linear((h * h.sigmoid()).mean((1, 2)), state['head.weight'], state['head.bias'])
    if 'aux_head.weight' in state:
        logits = logits + 0.5 * F.linear(tokens, state['aux_head.weight'], state['aux_head.bias']).amax((1, 2))
    return logits


@pytest.mark.slow
@pytest.mark.parametrize(
    'kind, config', [('classification', '{}_8xb128_in1k'), ('token_label', '{}_tl_8xb128-310e_in1k')]
)
@pytest.mark.parametrize('size', ['base', 'large'])
def test_logits_through_files_where_no_golden_output_is(size, kind, config, run, tmp_path):
    state = tensors(OFFICIAL_KEYS[f'{size}/{kind}'], ARCHS[size])
    src = save_classifier(tmp_path / 'official.pth', state, average=0)
    assert run(src, tmp_path / 'ours.pth')[0] == 0
    cfg = Config.fromfile(ROOT / f'configs/classification/rmt-{config.format(size)}.py')
    importlib.import_module('rmt_mm.classification')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = revert_sync_batchnorm(MODELS.build(cfg.model)).eval()
    load_checkpoint(model, str(tmp_path / 'ours.pth'), map_location='cpu')
    x = torch.from_numpy(weights.image('logits', (2, 3, 64, 64)))
    with torch.no_grad():
        logits, expected = model(x), plain_logits(size, state, x)
    assert float((logits - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.parametrize(
    'kind, suffix',
    [
        *((kind, '.pth') for kind in KINDS),
        ('token_label', '.safetensors'),
        ('RetinaNet', '.safetensors'),
        ('Semantic FPN', '.safetensors'),
    ],
)
def test_there_and_back(kind, suffix, run, tmp_path):
    official = nano_state_dict(kind)
    # The buffers that we compute may be rounded differently in the file: conversion must keep the file's values.
    for name, tensor in official.items():
        if 'Relpos' in name:
            official[name] = torch.nextafter(tensor, torch.zeros(()))
    src = (save_mm if kind in HEADS else save_classifier)(tmp_path / 'official.pth', official)
    ours, back = tmp_path / f'ours{suffix}', tmp_path / f'back{suffix}'
    assert run(src, ours)[0] == 0
    status, out, _ = run('--to-official', ours, back)
    assert status == 0 and 'arch: nano' in out
    content = read_checkpoint(str(back))
    content = content.get('model') or content['state_dict']
    assert content.keys() == official.keys()
    for name in official:
        assert content[name].dtype == official[name].dtype and torch.equal(content[name], official[name]), name


@pytest.mark.parametrize('kind', KINDS)
def test_kind_and_names(kind, run, tmp_path):
    status, out, _ = run(save(tmp_path / 'official.pth', kind), tmp_path / 'ours.pth')
    content = torch.load(tmp_path / 'ours.pth', weights_only=True)
    expected = HEADS[kind].task if kind in HEADS else kind
    assert status == 0 and f'kind: {expected}' in out
    meta = content['meta']['rmt_mm']
    assert (meta['arch'], meta['kind'], meta['source']) == ('nano', expected, 'official.pth')
    assert meta['source_sha256'] == file_hash(str(tmp_path / 'official.pth')) and meta['version']
    if kind in HEADS:
        assert content['meta']['dataset_meta'] == dict(classes=('cat', 'dog'))
    backbone = {name for name in content['state_dict'] if name.startswith('backbone.')}
    out_indices = (1, 2, 3) if kind == 'RetinaNet' else (0, 1, 2, 3)
    dense = kind == 'dense' or kind in HEADS
    model = RMT(NANO._asdict(), out_indices=out_indices, out_norm=dense)
    assert backbone == {f'backbone.{name}' for name in model.state_dict()}
    heads = {name.split('.')[0] for name in content['state_dict']} - {'backbone'}
    assert (
        heads
        == dict(dense=set(), classification={'head'}, token_label={'head'}, detector=heads, segmentor=heads)[expected]
    )


def test_the_way_back_takes_our_files_only(run, tmp_path):
    src = save(tmp_path / 'official.pth', 'dense')
    refused(run, tmp_path, '--to-official', src, tmp_path / 'back.pth', words=('official checkpoint already',))


def test_raw_and_average(run, tmp_path):
    src = save(tmp_path / 'official.pth', 'dense')
    weights = {}
    for which in ('auto', 'model', 'model_ema'):
        status, out, _ = run(src, tmp_path / f'{which}.pth', '--weights', which)
        assert status == 0 and ('--weights model_ema' in out) == (which == 'auto')
        content = torch.load(tmp_path / f'{which}.pth', weights_only=True)
        weights[which] = content['state_dict']['backbone.stem.0.bias']
        assert content['meta']['rmt_mm']['weights'] == ('model' if which == 'auto' else which)
    assert torch.equal(weights['auto'], weights['model'])
    torch.testing.assert_close(weights['model_ema'], weights['model'] + 1e-3)


def test_average_that_is_not_there(run, tmp_path):
    torch.save(dict(model=nano_state_dict('dense')), tmp_path / 'official.pth')
    args = (tmp_path / 'official.pth', tmp_path / 'ours.pth', '--weights', 'model_ema')
    refused(run, tmp_path, *args, words=("'model_ema'",))


@pytest.mark.parametrize(
    'kind, task, heads',
    [
        ('token_label', 'classification', {'head.proj', 'head.norm', 'head.fc'}),
        ('token_label', 'dense', set()),
        ('Mask R-CNN', 'dense', set()),
        ('UperNet', 'segmentor', {'decode_head', 'auxiliary_head'}),
    ],
)
def test_task(kind, task, heads, run, tmp_path):
    status, out, _ = run(save(tmp_path / 'official.pth', kind), tmp_path / 'ours.pth', '--task', task)
    assert status == 0 and f'kind: {task}' in out
    names = [n for n in torch.load(tmp_path / 'ours.pth', weights_only=True)['state_dict'] if 'backbone' not in n]
    assert {n.rpartition('.')[0] if n.startswith('head.') else n.split('.')[0] for n in names} == heads


def test_task_that_the_file_is_not(run, tmp_path):
    src = save(tmp_path / 'official.pth', 'classification')
    refused(run, tmp_path, src, tmp_path / 'ours.pth', '--task', 'detector', words=('classification', 'detector'))


def test_unknown_heads(run, tmp_path):
    official = {k: v for k, v in nano_state_dict('Mask R-CNN').items() if k.startswith('backbone.')}
    src = save_mm(tmp_path / 'fcos.pth', {**official, 'bbox_head.conv_cls.weight': torch.zeros(1)})
    refused(run, tmp_path, src, tmp_path / 'ours.pth', words=('bbox_head.conv_cls.weight', '--task dense'))
    assert run(src, tmp_path / 'ours.pth', '--task', 'dense')[0] == 0


def test_auxiliary_head_of_the_released_token_label_model(run, tmp_path):
    official = nano_state_dict('token_label')
    official['aux_head.weight'] = torch.zeros(7, 1024)
    src, dst = save_classifier(tmp_path / 'RMT_S_star.pth', official), tmp_path / 'ours.pth'
    refused(run, tmp_path, src, dst, words=('head takes 1024 channels', 'known mismatch', '--task classification'))
    status, out, _ = run(src, dst, '--task', 'classification')
    assert status == 0 and 'aux_head.weight' in out


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('change', ['missing', 'unexpected', 'shape'])
def test_nothing_is_written_of_an_incomplete_file(kind, change, run, tmp_path):
    official = nano_state_dict(kind)
    name = [n for n in official if 'Relpos' not in n and n.endswith('.weight')][-1]
    if change == 'missing':
        del official[name]
    elif change == 'unexpected':
        name = f'{name}_2'
        official[name] = torch.zeros(2)
    else:
        official[name] = torch.zeros(2, 3, 4)
    src = save_mm(tmp_path / 'official.pth', official)
    refused(run, tmp_path, src, tmp_path / 'ours.pth', words=(name,))


def adapted_backbone(channels, run, tmp_path):
    src, dst = save(tmp_path / 'official.pth', 'dense'), tmp_path / f'ours-{channels}.pth'
    status, out, _ = run(src, dst, '--in-channels', channels)
    assert status == 0 and ('adapted: the first convolution' in out) == (channels != 3)
    model = RMT(NANO._asdict(), in_channels=channels, init_cfg=dict(type='Pretrained', checkpoint=str(dst)))
    model.init_weights()
    return model.eval()


def test_one_input_channel_is_three_equal_ones(run, tmp_path):
    grey = torch.rand(1, 1, 64, 64)
    outs = [adapted_backbone(channels, run, tmp_path)(grey.expand(-1, channels, -1, -1)) for channels in (1, 3)]
    for out, expected in zip(*outs):
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


def test_four_input_channels(run, tmp_path):
    four, three = (adapted_backbone(channels, run, tmp_path).stem[0].weight for channels in (4, 3))
    torch.testing.assert_close(four, three[:, [0, 1, 2, 0]] * 0.75)


@pytest.mark.parametrize(
    'kind, left_out',
    [
        ('classification', {'head.fc'}),
        ('token_label', {'head.fc', 'head.aux_fc'}),
        ('Mask R-CNN', {'roi_head.bbox_head.fc_cls', 'roi_head.bbox_head.fc_reg', 'roi_head.mask_head.conv_logits'}),
        ('RetinaNet', {'bbox_head.retina_cls'}),
        ('UperNet', {'decode_head.conv_seg', 'auxiliary_head.conv_seg'}),
    ],
)
def test_number_of_classes(kind, left_out, run, tmp_path):
    src = save(tmp_path / 'official.pth', kind)
    assert run(src, tmp_path / 'same.pth', '--num-classes', 7)[0] == 0
    status, out, _ = run(src, tmp_path / 'other.pth', '--num-classes', 3)
    assert status == 0 and 'made for 7 classes, not 3' in out
    same, other = (torch.load(tmp_path / n, weights_only=True)['state_dict'] for n in ('same.pth', 'other.pth'))
    assert {name.rpartition('.')[0] for name in same.keys() - other.keys()} == left_out
    assert 'dataset_meta' not in torch.load(tmp_path / 'other.pth', weights_only=True)['meta']


def test_number_of_classes_of_a_backbone(run, tmp_path):
    src = save(tmp_path / 'official.pth', 'dense')
    refused(run, tmp_path, src, tmp_path / 'ours.pth', '--num-classes', 3, words=('no classes',))


def test_publish(run, tmp_path):
    src = save(tmp_path / 'official.pth', 'dense')
    assert run(src, tmp_path / 'rmt.pth', '--publish')[0] == 0
    (published,) = tmp_path.glob('rmt-*.pth')
    assert published.name == f'rmt-{file_hash(str(published))[:8]}.pth'
    assert not (tmp_path / 'rmt.pth').exists()
    # The same weights get the same name in every run.
    assert run(src, tmp_path / 'other.pth', '--publish')[0] == 0
    assert next(tmp_path.glob('other-*.pth')).name[-12:] == published.name[-12:]


def test_destination(run, tmp_path):
    src, dst = save(tmp_path / 'official.pth', 'dense'), tmp_path / 'ours.pth'
    dst.write_text('precious')
    refused(run, tmp_path, src, dst, words=('exists already', '--force'))
    assert dst.read_text() == 'precious'
    assert run(src, dst, '--force')[0] == 0
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(dst.stat().st_mode) == 0o666 & ~umask
    refused(run, tmp_path, src, src, '--force', words=('SRC itself',))
    refused(run, tmp_path, src, tmp_path / 'no' / 'ours.pth', words=('does not exist',))
    refused(run, tmp_path, src, tmp_path / 'ours.onnx', words=('.pth', '.safetensors'))


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / 'ours.pth'
    path.write_text('precious')

    def fail(checkpoint, file):
        file.write(b'half')
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(torch, 'save', fail)
    with pytest.raises(OSError, match='No space'):
        write_checkpoint({}, str(path), force=True)
    assert path.read_text() == 'precious' and list(tmp_path.iterdir()) == [path]


def damaged(folder):
    """Write files that are not checkpoints; return each with words of its error."""
    whole = (folder / 'whole.pth').read_bytes()
    with zipfile.ZipFile(folder / 'other.zip', 'w') as archive:
        archive.writestr('a/readme.txt', 'hello')
    np.save(folder / 'array.npy', np.zeros(3))
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 255
    torch.jit.save(torch.jit.script(torch.nn.Identity()), folder / 'script.pt')
    torch.save(torch.zeros(3), folder / 'tensor.pt')
    torch.save([1], folder / 'list.pt')
    return {
        'missing': (None, 'does not exist'),
        'empty': (b'', 'empty'),
        'truncated': (whole[: len(whole) // 2], 'cut off'),
        'flipped': (bytes(flipped), 'damaged'),
        'html': (b'\n<!DOCTYPE html><html>', 'web page'),
        'lfs': (b'version https://git-lfs.github.com/spec/v1\noid', 'git lfs pull'),
        'paddle': (pickle.dumps({'conv.weight': np.zeros(3)}, protocol=2), 'plain pickle'),
        'keras': (b'\x89HDF\r\n\x1a\n' + bytes(99), 'HDF5'),
        'gzip': (b'\x1f\x8b' + bytes(99), 'unpack'),
        'text': (b'epoch 1 loss 2', 'not a PyTorch checkpoint'),
        'zip': ((folder / 'other.zip').read_bytes(), 'not a PyTorch checkpoint'),
        'numpy': ((folder / 'array.npy').read_bytes(), 'NumPy'),
        'script': ((folder / 'script.pt').read_bytes(), 'TorchScript'),
        'tensor': ((folder / 'tensor.pt').read_bytes(), 'Tensor'),
        'list': ((folder / 'list.pt').read_bytes(), 'list'),
    }


@pytest.mark.parametrize(
    'kind',
    [
        'missing',
        'empty',
        'truncated',
        'flipped',
        'html',
        'lfs',
        'paddle',
        'keras',
        'gzip',
        'text',
        'zip',
        'numpy',
        'script',
        'tensor',
        'list',
    ],
)
def test_files_that_are_no_checkpoints(kind, run, tmp_path):
    save(tmp_path / 'whole.pth', 'dense')
    content, word = damaged(tmp_path)[kind]
    path = tmp_path / f'{kind}.pth'
    if content is not None:
        path.write_bytes(content)
    refused(run, tmp_path, path, tmp_path / 'ours.pth', words=(str(path), word))
    with pytest.raises((CheckpointError, FileNotFoundError), match=word):
        RMT(NANO._asdict(), init_cfg=dict(type='Pretrained', checkpoint=str(path))).init_weights()


def test_damaged_safetensors(run, tmp_path):
    assert run(save(tmp_path / 'official.pth', 'dense'), tmp_path / 'whole.safetensors')[0] == 0
    path = tmp_path / 'half.safetensors'
    path.write_bytes((tmp_path / 'whole.safetensors').read_bytes()[:1000])
    refused(run, tmp_path, path, tmp_path / 'ours.pth', words=(str(path), 'safetensors'))


def test_other_models(run, tmp_path):
    torch.save(dict(state_dict=torch.nn.Linear(2, 2).state_dict()), tmp_path / 'other.pth')
    refused(run, tmp_path, tmp_path / 'other.pth', tmp_path / 'ours.pth', words=('not a checkpoint of RMT', 'weight'))


def test_a_trap_does_not_spring(run, tmp_path):
    marker, src, dst = tmp_path / 'marker', tmp_path / 'trap.pth', tmp_path / 'ours.pth'
    save_classifier(src, nano_state_dict('dense'), extra=Trap(marker))
    refused(run, tmp_path, src, dst, words=(OPEN, f'--allow-type {OPEN}'))
    # --allow-type reads the tensors, and still executes nothing.
    assert run(src, dst, '--allow-type', OPEN)[0] == 0
    assert not marker.exists()
    assert torch.load(dst, weights_only=True)['state_dict'].keys()
    torch.load(src, weights_only=False)
    assert marker.exists()


class Settings(dict):
    """A stand-in for the config classes that training code stores in its checkpoints."""


def test_opting_in_for_one_type(run, tmp_path):
    src, dst = tmp_path / 'official.pth', tmp_path / 'ours.pth'
    save_classifier(src, nano_state_dict('dense'), config=Settings(lr=1, nested=Settings(a=[1, 2])))
    name = f'{Settings.__module__}.Settings'
    refused(run, tmp_path, src, dst, words=(f'type {name},', f'--allow-type {name}'))
    assert run(src, dst, '--allow-type', name)[0] == 0
    # The type is allowed for one call only, not for later ones.
    with pytest.raises(pickle.UnpicklingError):
        torch.load(src, weights_only=True)


class System:
    def __reduce__(self):
        return os.system, ('true',)


def test_commands_are_refused_whatever_is_allowed(run, tmp_path):
    src = tmp_path / 'trap.pth'
    save_classifier(src, nano_state_dict('dense'), extra=System())
    args = (src, tmp_path / 'ours.pth', '--allow-type', 'posix.system')
    refused(run, tmp_path, *args, words=('posix.system', 'Do not open'))


def test_force_safe_loading(forced, tmp_path):
    """The tools call it first. Then mmengine's loaders cannot be made to execute a file either."""
    marker, path = tmp_path / 'marker', tmp_path / 'trap.pth'
    for content in (dict(state_dict=Trap(marker)), Trap(marker)):
        torch.save(content, path)
        with pytest.raises(pickle.UnpicklingError):
            load_checkpoint(torch.nn.Linear(1, 1), str(path))
        with pytest.raises(pickle.UnpicklingError):
            torch.load(path, weights_only=False)
    path.write_bytes(pickle.dumps(Trap(marker)))
    with pytest.raises((pickle.UnpicklingError, RuntimeError)):
        load_checkpoint(torch.nn.Linear(1, 1), str(path))
    assert not marker.exists()
    # What torch before 2.6 reads in other ways, which can be made to run programs.
    torch.jit.script(torch.nn.Linear(1, 1)).save(str(path))
    with pytest.raises((pickle.UnpicklingError, RuntimeError)):
        torch.load(path, weights_only=False)
    with tarfile.open(path, 'w', format=tarfile.PAX_FORMAT) as archive:
        for name in ('storages', 'tensors', 'pickle'):
            member = tarfile.TarInfo(name)
            member.size = len(pickle.dumps(0, 2))
            archive.addfile(member, io.BytesIO(pickle.dumps(0, 2)))
    with pytest.raises((pickle.UnpicklingError, RuntimeError)):
        torch.load(path, weights_only=False)


TRAP_CONFIG = """
custom_imports = dict(imports=['rmt_mm'], allow_failed_imports=False)
model = dict(type='RMT')
"""


@pytest.fixture
def run_tool(tmp_path, monkeypatch):
    """Run train or test of rmt_mm.tools.commands in this process, up to where the Runner is built.

    Return the error, or the config that a Runner would be built from.
    """
    for name in ('TORCH_FORCE_WEIGHTS_ONLY_LOAD', 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', 'LOCAL_RANK'):
        monkeypatch.setenv(name, '0')  # so that the tools' changes are undone

    def run_tool(checkpoint, tool, *args, at_runner=None):
        (tmp_path / 'config.py').write_text(TRAP_CONFIG)
        (tmp_path / 'last_checkpoint').write_text(str(checkpoint))
        args = [arg.format(config=tmp_path / 'config.py', checkpoint=checkpoint) for arg in args]
        module = importlib.import_module(f'rmt_mm.tools.commands.{tool}')

        class Built(BaseException):
            pass

        def build_runner(cfg, brief=False):
            if at_runner:
                at_runner()
            raise Built(cfg)

        monkeypatch.setattr(module.cli, 'build_runner', build_runner)
        monkeypatch.setattr(sys, 'argv', [tool, *args, '--work-dir', str(tmp_path)])
        try:
            module.main()
        except SystemExit as exit:
            assert str(exit.code).startswith('error: ') and len(str(exit.code).splitlines()) == 1
            return str(exit.code)
        except Built as built:
            return built.args[0]
        raise AssertionError('no Runner was built')

    return run_tool


LOADING = [
    ('test', '{config}', '{checkpoint}'),
    ('train', '{config}', '--resume', '{checkpoint}'),
    ('train', '{config}', '--resume'),
    ('train', '{config}', '--cfg-options', 'load_from={checkpoint}'),
]


@pytest.mark.parametrize('args', LOADING)
def test_a_trap_does_not_spring_in_the_tools(args, run_tool, tmp_path):
    marker, trap = tmp_path / 'marker', tmp_path / 'trap.pth'
    content = dict(state_dict=nano_state_dict('dense'), meta=dict(epoch=1, iter=1), message_hub=Trap(marker))
    torch.save(content, trap)
    error = run_tool(trap, *args)
    assert OPEN in error and str(trap) in error
    assert not marker.exists()


@pytest.mark.parametrize('args', LOADING)
def test_the_tools_hold_all_loading_to_safety(args, run_tool, tmp_path):
    """This includes loading by torch.hub, and by onedl-mmengine after safe loading has failed."""
    marker, trap, good = tmp_path / 'marker', tmp_path / 'trap.pth', tmp_path / 'good.pth'
    torch.save(Trap(marker), trap)
    torch.save(dict(state_dict={'stages.0.0.attn.qkv.weight': torch.zeros(2)}), good)
    loads = []

    def load():
        for options in (dict(weights_only=False), {}):
            with pytest.raises(pickle.UnpicklingError):
                torch.load(trap, **options)
            loads.append(options)

    assert run_tool(good, *args, at_runner=load).load_from == str(good)
    assert len(loads) == 2 and not marker.exists()


def test_mmengine_runs_no_config_of_a_checkpoint(run_tool, tmp_path):
    """When resuming, its Runner would call Config.fromstring(meta['config'])."""
    path = tmp_path / 'old.pth'
    torch.save(dict(state_dict={'stages.0.0.attn.qkv.weight': torch.zeros(2)}, meta=dict(config='import os')), path)
    for args in LOADING:
        found = run_tool(path, *args)
        if '--resume' in args:
            assert "meta['config']" in found and str(path) in found
        else:
            assert found.load_from == str(path)


def test_the_tools_check_the_very_file_that_mmengine_loads(run_tool, tmp_path, monkeypatch):
    path = tmp_path / 'download.pth'
    torch.save(dict(state_dict={'stages.0.0.attn.qkv.weight': torch.zeros(2)}), path)
    monkeypatch.setattr(loading, 'local_copy', {'https://example.com/a.pth': str(path)}.get)
    for args in LOADING:
        if args[-1] != '--resume':
            assert run_tool('https://example.com/a.pth', *args).load_from == str(path)


def test_mmengine_can_read_what_the_tools_let_through(run_tool, tmp_path):
    """The tools refuse the argparse.Namespace that the converter removes from official files: mmengine would too."""
    path = tmp_path / 'a.pth'
    state_dict = {'stages.0.0.attn.qkv.weight': torch.zeros(2)}
    torch.save(dict(state_dict=state_dict, args=argparse.Namespace(a=1)), path)
    for args in LOADING:
        assert 'argparse.Namespace' in run_tool(path, *args)


def test_the_tools_name_the_converter(run_tool, tmp_path):
    path = save_classifier(tmp_path / 'official.pth', nano_state_dict('classification'))
    assert 'rmt_to_mm.py' in run_tool(path, 'test', '{config}', '{checkpoint}')
