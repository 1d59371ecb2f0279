"""Classifiers equal the original: its outputs for deterministic weights, loaded through the converter."""

import json

import numpy as np
import pytest
import torch

from rmt_mm.tools import golden as weights

from support import ROOT

pytest.importorskip('mmpretrain')

from mmengine.config import Config  # noqa: E402
from mmengine.registry import DefaultScope  # noqa: E402
from mmpretrain.registry import MODELS  # noqa: E402

from rmt_mm import convert_official_state_dict  # noqa: E402

GOLDEN = ROOT / 'tests/data/golden'
OFFICIAL_KEYS = json.loads((GOLDEN / 'official_checkpoint_keys.json').read_text())


def build(config):
    cfg = Config.fromfile(ROOT / f'configs/classification/{config}.py')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build(cfg.model).eval()


def official_state_dict(kind):
    return {
        name: torch.from_numpy(weights.tensor(name, tuple(shape)))
        for name, shape in OFFICIAL_KEYS[kind].items()
        if 'Relpos' not in name and not name.endswith('num_batches_tracked')
    }


def load_all(model, state_dict):
    result = model.load_state_dict(convert_official_state_dict(state_dict), strict=False)
    assert not result.unexpected_keys
    assert all(name.endswith('num_batches_tracked') for name in result.missing_keys), result.missing_keys


@pytest.mark.parametrize(
    'config, kind, file, image',
    [
        ('rmt-tiny_8xb128_in1k', 'tiny/classification', 'tiny_classification_2x3x64x64', 'vis-d'),
        ('rmt-small_tl_8xb128-310e_in1k', 'small/token_label', 'small_token_label_2x3x64x64', 'vis-e'),
    ],
)
def test_logits_of_the_original(config, kind, file, image):
    model = build(config)
    load_all(model, official_state_dict(kind))
    expected = torch.from_numpy(np.load(GOLDEN / f'{file}.npz')['logits'])
    with torch.no_grad():
        logits = model(torch.from_numpy(weights.image(image, (2, 3, 64, 64))))
    error = float((logits - expected).norm() / expected.norm())
    assert error < 1e-5


@pytest.mark.parametrize(
    'config, kind',
    [
        ('rmt-small_8xb128_in1k', 'small/classification'),
        ('rmt-base_8xb128_in1k', 'base/classification'),
        ('rmt-large_8xb128_in1k', 'large/classification'),
        ('rmt-base_tl_8xb128-310e_in1k', 'base/token_label'),
        ('rmt-large_tl_8xb128-310e_in1k', 'large/token_label'),
    ],
)
def test_official_checkpoints_fit(config, kind):
    load_all(
        build(config),
        {
            name: torch.zeros(shape)
            for name, shape in OFFICIAL_KEYS[kind].items()
            if 'Relpos' not in name and not name.endswith('num_batches_tracked')
        },
    )
