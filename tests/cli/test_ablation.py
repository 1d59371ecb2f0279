"""The scenes in which position decides the class, and the tool that trains on them without a part of RMT."""

import json
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from support import ROOT, load_tool
from support.scripts import run_script

MAKE = ROOT / 'tools/dataset_converters/make_relations.py'
ABLATION = ROOT / 'tools/analysis_tools/ablation.py'


@pytest.fixture(scope='module')
def relations(tmp_path_factory):
    out = tmp_path_factory.mktemp('data') / 'relations'
    done = run_script(MAKE, out, '--train', '60', '--val', '60')
    assert done.returncode == 0, done.stderr
    return out


def test_scenes(relations, tmp_path):
    for data, classes in (('side', ('above', 'below', 'left', 'right')), ('digit', '123456789')):
        files = list((relations / data).glob('*/*/*.png'))
        assert len(files) == 120 and {path.parent.name for path in files} == set(classes)
        assert cv2.imread(str(files[0])).shape == (48, 48, 3)
    again = tmp_path / 'again'
    run_script(MAKE, again, '--train', '60', '--val', '60')
    for path in relations.rglob('*.png'):
        assert np.array_equal(cv2.imread(str(path)), cv2.imread(str(again / path.relative_to(relations))))
    done = run_script(MAKE, again)
    assert done.returncode == 2 and 'exists: name another folder' in done.stderr


@pytest.mark.parametrize('epochs', [None, 16])
def test_the_learning_rate_falls_until_the_last_epoch(epochs, tmp_path):
    args = SimpleNamespace(epochs=epochs, size=None, data_root=tmp_path)
    cfg = load_tool('analysis_tools/ablation.py').make_config(args, 'digit', 'no LCE', 1, tmp_path)
    last = cfg.param_scheduler[-1]
    assert cfg.train_cfg.max_epochs == cfg.train_cfg.val_interval == last.T_max == last.end == (epochs or 8)
    assert (cfg.model.head.num_classes, cfg.model.backbone.arch_options) == (9, dict(lce=False))


@pytest.mark.slow
def test_runs_are_kept_and_listed(relations, tmp_path):
    def run(*forms):
        command = [ABLATION, tmp_path, '--data-root', relations, '--data', 'side', '--epochs', '1', '--seeds', '3']
        done = run_script(*command, '--forms', *forms)
        assert done.returncode == 0, done.stderr
        return done

    run('no LCE')
    folder = tmp_path / 'epochs-1'
    store = folder / 'side, no LCE, seed 3.json'
    first = json.loads(store.read_text())
    assert list(first) == ['48 px', 'resized to 32', 'resized to 64', 'resized to 96', 'padded to 64', 'padded to 96']
    assert all(0 <= top1 <= 100 for top1 in first.values())
    store.write_text(json.dumps(dict.fromkeys(first, 12.5)))
    done = run('no LCE', "RMT-Swin's stem", '--sizes', '32', '56')
    assert '| side | no LCE | 1 | 12.5 |' in done.stdout  # not trained again
    assert "| side | RMT-Swin's stem | 1 |" in done.stdout
    tested = json.loads((folder / "side, RMT-Swin's stem, seed 3.json").read_text())
    assert list(tested) == ['48 px', 'resized to 32', 'resized to 56', 'padded to 56']
    assert (folder / 'table.md').read_text() in done.stdout and (folder / 'ablation.png').stat().st_size > 5000
    # The form reaches the model: RMT-Swin's stem says so in the config of the log.
    assert "stem='swin'" in done.stdout + done.stderr


def test_missing_data_is_named(tmp_path):
    done = run_script(ABLATION, tmp_path, '--data-root', tmp_path)
    assert done.returncode == 2 and 'make_relations.py' in done.stderr
    for option in ('--size', '--epochs', '--sizes'):
        done = run_script(ABLATION, tmp_path, '--data-root', tmp_path, option, '0')
        assert done.returncode == 2 and f'{option} must be at least 1, got 0' in done.stderr
