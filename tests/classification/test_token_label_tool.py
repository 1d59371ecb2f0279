"""Label maps made from the command line, by classifiers of several kinds."""

import json
import sys

import cv2
import numpy as np
import pytest
import torch

pytest.importorskip('mmpretrain')

from mmengine.config import Config  # noqa: E402
from mmengine.registry import DefaultScope  # noqa: E402
from mmpretrain.registry import MODELS  # noqa: E402
from torch import nn  # noqa: E402

from rmt_mm.classification.dense import dense_logits, timm_dense_logits  # noqa: E402
from rmt_mm.classification.label_map import load_label_map  # noqa: E402
from rmt_mm.tools.commands import make_token_labels  # noqa: E402

from support import ROOT  # noqa: E402
from support.scripts import run_script  # noqa: E402

TOOL = ROOT / 'tools/dataset_converters/make_token_labels.py'
RESNET = dict(
    type='ImageClassifier',
    data_preprocessor=dict(mean=[100.0] * 3, std=[50.0] * 3, to_rgb=True),
    backbone=dict(type='ResNet', depth=18, base_channels=8, stem_channels=8),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=7, in_channels=64),
)
SIZE_96 = dict(
    RESNET,
    backbone=dict(type='ConvNeXt', arch=dict(depths=[1, 1, 1, 1], channels=[8, 8, 16, 16])),
    neck=None,
    head=dict(type='LinearClsHead', num_classes=7, in_channels=16),
)
VIT = dict(
    RESNET,
    backbone=dict(
        type='VisionTransformer',
        img_size=96,
        patch_size=32,
        out_type='featmap',
        arch=dict(embed_dims=16, num_layers=1, num_heads=2, feedforward_channels=16),
    ),
    neck=None,
    head=dict(type='VisionTransformerClsHead', num_classes=7, in_channels=16),
)


def build(cfg):
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build(Config(dict(model=cfg)).model).eval()


def test_pooled_features_give_the_mean_of_the_places():
    """After average pooling and a Linear layer, the image's logits are the mean of the logits of its places."""
    model, inputs = build(RESNET), torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        places = dense_logits(model, inputs)
        torch.testing.assert_close(places.mean((2, 3)), model(inputs))
    assert places.shape == (2, 7, 3, 2)


def test_places_of_our_own_head_are_classified_one_by_one():
    cfg = Config.fromfile(ROOT / 'configs/classification/rmt-digits_tl.py').model
    model, inputs = build(cfg), torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        feats = model.extract_feat(inputs)[-1]
        places = dense_logits(model, inputs)
        for y in range(3):
            for x in range(2):
                torch.testing.assert_close(places[:, :, y, x], model.head((feats[:, :, y : y + 1, x : x + 1],)))


def test_transformers_and_norms_after_pooling():
    vit = build(VIT)
    assert dense_logits(vit, torch.randn(1, 3, 96, 96)).shape == (1, 7, 3, 3)
    convnext = build(SIZE_96)
    with pytest.raises(ValueError, match='ConvNeXt gives no feature map.*gap_before_final_norm=False'):
        dense_logits(convnext, torch.randn(1, 3, 96, 96))
    convnext.backbone.gap_before_final_norm = False
    assert dense_logits(convnext, torch.randn(1, 3, 96, 96)).shape == (1, 7, 3, 3)


class TimmLike(nn.Module):
    """The interface that timm models of both layouts share."""

    def __init__(self, output_fmt):
        super().__init__()
        self.output_fmt = output_fmt
        self.features, self.fc = nn.Conv2d(3, 4, 32, 32), nn.Linear(4, 7)

    def forward_features(self, x):
        x = self.features(x)
        return x.permute(0, 2, 3, 1) if self.output_fmt == 'NHWC' else x

    def forward_head(self, x):
        return self.fc(x.mean((1, 2) if self.output_fmt == 'NHWC' else (2, 3)))


@pytest.mark.parametrize('output_fmt', ['NCHW', 'NHWC'])
def test_layouts_of_timm(output_fmt):
    model, inputs = TimmLike(output_fmt), torch.randn(2, 3, 96, 64)
    places = timm_dense_logits(model, inputs)
    assert places.shape == (2, 7, 3, 2)
    torch.testing.assert_close(places.mean((2, 3)), model.forward_head(model.forward_features(inputs)))


@pytest.fixture
def workplace(tmp_path):
    """Make a config, its checkpoint and a folder of images."""
    model = build(RESNET)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'resnet.pth')
    (tmp_path / 'resnet.py').write_text(f"default_scope = 'mmpretrain'\nmodel = {RESNET!r}\n")
    rng = np.random.default_rng(0)
    for name in ('cat/1.png', 'cat/deep/2.jpg', 'dog/3.png'):
        path = tmp_path / 'images' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), rng.integers(0, 256, (50, 80, 3), np.uint8))
    return tmp_path


def run(workplace, *args, config='resnet.py', checkpoint='resnet.pth', images='images'):
    command = (TOOL, config, checkpoint, images, 'labels', '--size', 96, '--num-workers', 0)
    return run_script(*command, *args, cwd=workplace)


def test_a_model_of_timm(workplace):
    timm = pytest.importorskip('timm', reason='timm is not among the requirements: pip install timm')
    torch.save(timm.create_model('resnet10t').state_dict(), workplace / 'timm.pth')
    wrong = run(workplace, config='timm:resnet18', checkpoint='timm.pth')
    assert wrong.returncode == 1
    assert wrong.stderr.splitlines()[-1].startswith('error: timm.pth cannot be loaded into timm:resnet18: ')
    result = run(workplace, config='timm:resnet10t', checkpoint='timm.pth')
    assert result.returncode == 0, result.stderr
    assert load_label_map(str(workplace / 'labels/dog/3.pt'), num_classes=1000).shape == (2, 5, 3, 3)


def test_a_run_is_completed_by_the_next(workplace):
    result = run(workplace)
    assert result.returncode == 0, result.stderr
    assert 'all 3 images, 3 of them new' in result.stdout
    label = workplace / 'labels/cat/deep/2.pt'
    label_map = load_label_map(str(label), num_classes=7)
    assert label_map.shape == (2, 5, 3, 3)

    # The file holds the model's best classes for the whole image, resized to a square.
    image = cv2.imread(str(workplace / 'images/cat/deep/2.jpg'))
    model = build(RESNET)
    model.load_state_dict(torch.load(workplace / 'resnet.pth', weights_only=True)['state_dict'])
    inputs = torch.from_numpy(cv2.resize(image, (96, 96), interpolation=cv2.INTER_CUBIC)).permute(2, 0, 1)
    with torch.no_grad():
        logits = dense_logits(model, model.data_preprocessor(dict(inputs=[inputs]))['inputs'])[0]
    assert (label_map[1, 0] == logits.argmax(0)).float().mean() > 0.7  # OpenCV's bicubic differs from Pillow's

    label.unlink()
    kept = (workplace / 'labels/dog/3.pt').stat().st_mtime_ns
    result = run(workplace)
    assert 'all 3 images, 1 of them new' in result.stdout
    assert label.exists()
    assert (workplace / 'labels/dog/3.pt').stat().st_mtime_ns == kept
    assert json.loads((workplace / 'labels/annotator.json').read_text())['checkpoint'].startswith('resnet.pth ')

    result = run(workplace, '--top-k', '3')
    assert result.returncode == 1
    assert 'made otherwise' in result.stderr


def check_error(result, *parts):
    assert result.returncode == 1
    lines = result.stderr.strip().splitlines()
    assert lines[-1].startswith('error: '), result.stderr
    assert 'Traceback' not in result.stderr
    for part in parts:
        assert part in lines[-1]


def test_unreadable_images_are_named_and_the_others_done(workplace):
    (workplace / 'images/dog/3.png').write_bytes(b'no image')
    check_error(run(workplace), '1 images cannot be read', 'dog/3.png')
    assert (workplace / 'labels/cat/1.pt').exists()
    assert not (workplace / 'labels/dog/3.pt').exists()


def test_mistakes_are_named(workplace, monkeypatch):
    """The tool runs in this process: starting Python takes longer than finding a mistake."""
    monkeypatch.chdir(workplace)
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')  # undo the tool's change at the end

    def mistake(config='resnet.py', checkpoint='resnet.pth', images='images'):
        monkeypatch.setattr(sys, 'argv', [str(TOOL), config, checkpoint, images, 'labels', '--size', '96'])
        with pytest.raises(SystemExit) as stop:
            make_token_labels.main()
        assert stop.value.code.startswith('error: ') and '\n' not in stop.value.code
        return stop.value.code

    assert 'config nowhere.py does not exist' in mistake(config='nowhere.py')
    assert 'checkpoint nowhere.pth does not exist' in mistake(checkpoint='nowhere.pth')
    assert 'image folder nowhere does not exist' in mistake(images='nowhere')
    torch.save(dict(state_dict=dict(a=torch.zeros(1))), workplace / 'other.pth')
    assert 'other.pth cannot be loaded into resnet.py' in mistake(checkpoint='other.pth')
    assert not (workplace / 'labels').exists()
    (workplace / 'images/cat/1.jpg').write_bytes((workplace / 'images/cat/deep/2.jpg').read_bytes())
    assert 'would have the same label map' in mistake()
