"""tools/analysis_tools/vis_masa.py: files that a paper could print, and mistakes in one sentence."""

import sys
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from rmt_mm.tools.analysis import View
from rmt_mm.tools.commands import vis_masa

from support import ROOT

CONFIG = str(ROOT / 'configs/classification/rmt-digits.py')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Return a folder with model.pth, of random weights, and images/."""
    mmpretrain = pytest.importorskip('mmpretrain')
    torch.manual_seed(0)
    model = mmpretrain.get_model(Config.fromfile(CONFIG))
    folder = tmp_path_factory.mktemp('vis')
    torch.save(dict(state_dict=model.state_dict()), folder / 'model.pth')
    (folder / 'images').mkdir()
    for name in ('a.png', 'a.jpg', 'b.png'):
        noise = np.random.RandomState(0).randint(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((96, 72)).save(folder / 'images' / name)
    return folder


def run(folder, source, monkeypatch, *args):
    """Run the tool and return its exit status or message."""
    monkeypatch.setattr(
        sys, 'argv', ['vis_masa.py', CONFIG, str(folder / 'model.pth'), str(folder / source), '--device', 'cpu', *args]
    )
    with pytest.raises(SystemExit) as stop:
        vis_masa.main()
    return stop.value.code


def test_pictures(folder, tmp_path, monkeypatch, capsys):
    (folder / 'images/broken.jpg').write_bytes(b'no image')
    out = ['--out-dir', str(tmp_path), '--draw', 'attention', 'features', '--query', '40', '30', '--head', '0', '3']
    assert run(folder, 'images', monkeypatch, *out) == 1
    (folder / 'images/broken.jpg').unlink()
    said = capsys.readouterr().out
    assert 'skipped: ' in said and 'broken.jpg cannot be read' in said
    assert said.count('the drawn attention gives the output of MaSA to') == 3
    names = [f'{name}_{what}' for name in ('a.jpg', 'a.png', 'b') for what in ('attention_stage2_block2', 'features')]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f'{n}.{s}' for n in names for s in ('png', 'svg'))
    for name in names:
        assert np.asarray(Image.open(tmp_path / f'{name}.png').convert('L')).std() > 10
        ET.parse(tmp_path / f'{name}.svg')
    text = (tmp_path / 'b_attention_stage2_block2.svg').read_text()
    assert all(word in text for word in ('>mean<', '>head 0<', '>head 3<', '>decay<')) and '>head 1<' not in text


def test_receptive_fields_stand_beside_those_of_other_backbones(folder, tmp_path, monkeypatch):
    pytest.importorskip('mmdet')
    assert run(folder, 'images/b.png', monkeypatch, '--out-dir', str(tmp_path), '--draw', 'receptive-field') == 0
    assert [path.name for path in sorted(tmp_path.iterdir())] == ['receptive_field.png', 'receptive_field.svg']
    text = (tmp_path / 'receptive_field.svg').read_text()
    assert 'model.pth' in text and text.count('random weights') == 2 and 'stride 32' in text


def test_lines_of_equal_distance(tmp_path):
    """The line of distance d passes through the centres of the tokens that are d rows, or d columns, away."""
    view = View.from_metainfo(dict(ori_shape=(128, 256), img_shape=(64, 128), scale_factor=(0.5, 0.5)))
    figures = vis_masa.Figures(tmp_path)
    figure, axes = figures.panels(1, 1, 0.5)
    figures._distances(axes[0, 0], view, (3, 4), 8)
    for distance, line in zip((2, 4, 8), axes[0, 0].lines):
        corners = set(zip(*(values.tolist() for values in line.get_data())))
        wanted = [(3, 4 - distance), (3, 4 + distance), (3 - distance, 4), (3 + distance, 4)]
        assert corners == {view.pixel(*token, 8) for token in wanted}


def test_the_side_that_holds_half():
    field = torch.zeros(21, 21)
    field[8:13, 8:13] = 1
    assert vis_masa.side_of_share(field, 0.5) == 5 and vis_masa.side_of_share(field, 0.3) == 3
    assert vis_masa.side_of_share(torch.zeros(4, 6), 0.5) == 1


@pytest.mark.parametrize(
    'args, words',
    [
        (['--stage', '4'], 'stages are from 0 to 3'),
        (['--stage', '1', '--block', '9'], 'there is no block 9'),
        (['--head', '0', '4'], '--head: stage 2 has the heads 0 to 3'),
        (['--query', '96', '5'], '--query: pixel (96.0, 5.0) lies outside the image of 96 x 72 pixels'),
        (['--cfg-options', 'model.backbone.arch_options.decay=outside'], 'attention maps are for the released form'),
        (['--device', 'cuda:99'], '--device cuda:99 cannot be used'),
        (['--out-dir', 'FILE'], 'cannot be made'),
        (['--cfg-options', 'model.backbone.type=TIMMBackbone'], 'TIMMBackbone'),
    ],
)
def test_mistakes_are_one_sentence(args, words, folder, tmp_path, monkeypatch):
    (tmp_path / 'file').touch()
    args = [str(tmp_path / 'file/x') if arg == 'FILE' else arg for arg in args]
    message = run(folder, 'images/b.png', monkeypatch, '--out-dir', str(tmp_path / 'out'), *args)
    assert message.startswith('error: ') and words in message and '\n' not in message
