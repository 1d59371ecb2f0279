"""The commands of docs/deployment.md, run as they stand there."""

import json
import re
import subprocess
import sys

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from PIL import Image

from support import ROOT


def commands():
    page = (ROOT / 'docs/deployment.md').read_text()
    [block] = re.findall(r'<!-- commands -->\n```bash\n(.*?)```', page, re.S)
    return block.strip().splitlines()


def test_the_page_has_commands():
    assert [line.split()[1] for line in commands()] == ['tools/deployment/export.py', 'tools/deployment/run.py']


@pytest.mark.slow
def test_the_commands_of_the_page(tmp_path):
    pytest.importorskip('onnxruntime')
    pytest.importorskip('mmdet.utils').register_all_modules(init_default_scope=False)
    cfg = Config.fromfile(ROOT / 'configs/detection/mask-rcnn_rmt-mini_fpn_4e_digits.py')
    with DefaultScope.overwrite_default_scope('mmdet'):
        torch.manual_seed(0)
        model = MODELS.build(cfg.model)
    demo, picture = tmp_path / 'work_dirs/demo', tmp_path / 'data/digits/coco/val2017/000000000001.jpg'
    demo.mkdir(parents=True)
    picture.parent.mkdir(parents=True)
    torch.save(dict(state_dict=model.state_dict()), demo / 'epoch_4.pth')
    (demo / 'last_checkpoint').write_text(str(demo / 'epoch_4.pth'))
    Image.radial_gradient('L').resize((160, 160)).convert('RGB').save(picture)
    (tmp_path / 'tools').symlink_to(ROOT / 'tools')
    for line in commands():
        line = line.replace('python ', f'{sys.executable} ', 1)
        done = subprocess.run(line, shell=True, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
    [entry] = json.loads((tmp_path / 'outputs/onnx/predictions.json').read_text())
    assert entry['file_name'] == picture.name
    assert Image.open(tmp_path / 'outputs/onnx' / picture.name).size == (160, 160)
