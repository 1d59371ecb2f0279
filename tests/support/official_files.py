"""Files in the format of the authors' published ones, with deterministic weights."""

import argparse
import json
import math

import torch

from rmt_mm.arch import Arch
from rmt_mm.checkpoints.official_names import official_backbone_shapes
from rmt_mm.checkpoints.shapes import HEADS, classifier
from rmt_mm.reference import PlainRMT
from rmt_mm.tools import golden as weights

from support import ROOT
from support.archs import SMALL_ARCH

GOLDEN = ROOT / 'tests/data/golden'
OFFICIAL_KEYS = json.loads((GOLDEN / 'official_checkpoint_keys.json').read_text())

# Tests put it into ARCHS, so that the converter recognises it like a published size.
NANO = Arch(**SMALL_ARCH)


def tensors(shapes, arch):
    """Return the tensors of an official state dict, position buffers by the formulas of the paper's code."""
    state_dict = {}
    for name, shape in shapes.items():
        if name.endswith('num_batches_tracked'):
            tensor = torch.tensor(300)
        elif name.endswith('Relpos.angle'):
            half = shape[0] // 2
            tensor = torch.tensor([10000 ** (-(j // 2) / (half - 1)) if half > 1 else 1.0 for j in range(shape[0])])
        elif name.endswith('Relpos.decay'):
            stage, heads = int(name.split('.')[-3]), shape[0]
            a, r = arch.init_values[stage], arch.heads_ranges[stage]
            tensor = torch.tensor([math.log(1 - 2.0 ** (-a - r * i / heads)) for i in range(heads)])
        else:
            tensor = torch.from_numpy(weights.tensor(name, tuple(shape)))
        state_dict[name] = tensor
    return state_dict


def nano_state_dict(kind, classes=7):
    """Return the official state dict of a NANO model; ``kind`` is a kind of classifier, 'dense', or a name in HEADS."""
    if kind in HEADS:
        backbone = {f'backbone.{name}': shape for name, shape in official_backbone_shapes(NANO).items()}
        heads = HEADS[kind].shapes(NANO.embed_dims, classes)
        generator = torch.Generator().manual_seed(0)
        state_dict = tensors(backbone, NANO)
        for name, shape in heads.items():
            # Heads are large: expand one number per row, which takes no time and no space in a file.
            rows = torch.rand(shape[:1] + (1,) * (len(shape) - 1), generator=generator)
            state_dict[name] = rows.expand(shape) if shape else torch.tensor(300)
        return state_dict
    shapes = official_backbone_shapes(NANO, out_norms=kind == 'dense')
    if kind != 'dense':
        shapes.update(classifier(NANO.embed_dims, classes, kind == 'token_label'))
    return tensors(shapes, NANO)


def save_classifier(path, state_dict, average=1e-3, **more):
    """Write a file as the official training code does, including the entries other than weights.

    The moving average is larger than the weights by ``average``; with 0, both share their space in the file.
    """
    ema = {
        name: t + average if average and t.is_floating_point() and 'Relpos' not in name else t
        for name, t in state_dict.items()
    }
    torch.save(
        dict(
            model=state_dict,
            model_ema=ema,
            optimizer=dict(state={}, param_groups=[dict(lr=1e-3, params=[0])]),
            lr_scheduler=dict(t_in_epochs=True),
            epoch=299,
            scaler=dict(scale=65536.0),
            max_accuracy=84.1,
            args=argparse.Namespace(model='RMT', batch_size=128, opts=None),
            **more,
        ),
        path,
    )
    return str(path)


def save_mm(path, state_dict, classes=('cat', 'dog')):
    """Write a file as mmdet 2 and mmseg 0 do."""
    meta = dict(CLASSES=classes, PALETTE=None, epoch=12, config='model = dict()', hook_msgs={})
    torch.save(dict(meta=meta, state_dict=state_dict, optimizer={}), path)
    return str(path)


class Trap:
    """An object whose unpickling creates a file."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return open, (self.marker, 'w')


def assert_same_features(backbone, official, norms=True):
    """Assert that the backbone's outputs equal those of the plain reference with the official weights."""
    reference = PlainRMT(backbone.arch).eval()
    computed = {name: t for name, t in official.items() if name in reference.state_dict()}
    missing = reference.load_state_dict(computed, strict=False).missing_keys
    assert all(name.startswith('extra_norms') for name in missing) and bool(missing) != norms
    image = torch.from_numpy(weights.image('file', (1, 3, 64, 64)))
    with torch.no_grad():
        for out, expected in zip(backbone.eval()(image), reference(image)):
            assert float((out - expected).norm() / expected.norm()) < 1e-5
