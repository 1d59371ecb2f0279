"""The check of the installed stack."""

import configparser
import subprocess
import sys

import pytest

from rmt_mm.compat import DISTRIBUTIONS, check_stack, find_stack_problem

from support import ROOT

GOOD = dict(
    mmcv=('mmcv', '2.1.0'),
    mmengine=('mmengine', '0.10.7'),
    mmdet=('mmdet', '3.3.0'),
    mmseg=('mmsegmentation', '1.2.2'),
    mmpretrain=('mmpretrain', '1.2.0'),
)


def test_this_stack_works():
    check_stack()


@pytest.mark.parametrize(
    'change',
    [
        {},
        dict(mmcv=('mmcv-lite', '2.1.0'), mmdet=None, mmseg=None, mmpretrain=None),
        dict(
            mmcv=('onedl-mmcv', '2.3.6'), mmengine=('onedl-mmengine', '0.10.12'), mmdet=('onedl-mmdetection', '3.5.1')
        ),
    ],
)
def test_stacks_that_work(change):
    assert find_stack_problem({k: v for k, v in {**GOOD, **change}.items() if v}) is None


@pytest.mark.parametrize(
    'change, words',
    [
        (dict(mmcv=('mmcv-full', '1.7.2')), ['mmcv-full 1.7.2', 'mmcv >= 2.0', 'pip uninstall -y mmcv-full']),
        (dict(mmcv=('mmcv', '1.7.0')), ['mmcv 1.7.0', 'mmcv >= 2.0', 'pip install']),
        (dict(mmdet=('mmdet', '2.28.2')), ['mmdet 2.28.2', 'mmdet >= 3.3.0', 'pip install "mmdet>=3.3.0"']),
        (dict(torch=('torch', '2.0.1+cpu')), ['torch 2.0.1+cpu', 'torch >= 2.1', 'pip install "torch>=2.1"']),
        (dict(mmengine=('onedl-mmengine', '0.10.7')), ['mmengine >= 0.10.12', 'pip install "onedl-mmengine>=0.10.12"']),
        (dict(mmcv=('mmcv', '2.2.0')), ['mmdet 3.3.0', 'mmcv 2.2.0', '< 2.2.0', 'pip install "mmcv>=2.0.0,<2.2.0"']),
        (dict(mmcv=None), ['needs mmcv and mmengine', 'pip install']),
    ],
)
def test_stacks_that_cannot_work_get_one_sentence(change, words):
    problem = find_stack_problem({k: v for k, v in {**GOOD, **change}.items() if v})
    assert '\n' not in problem
    assert all(word in problem for word in words), problem


def test_what_is_wanted_is_what_setup_cfg_says():
    setup = configparser.ConfigParser()
    setup.read(ROOT / 'setup.cfg')
    lines = [*setup['options']['install_requires'].split(), *setup['options.extras_require']['openmmlab'].split()]
    wanted = {line.partition('>')[0]: line.partition('>=')[2].partition(',')[0] for line in lines if '>=' in line}
    assert {'torch', 'mmcv', 'mmengine', 'mmdet', 'mmsegmentation', 'mmpretrain'} <= wanted.keys()
    for package, (distribution, *_) in DISTRIBUTIONS.items():
        good = find_stack_problem({**GOOD, package: (distribution, wanted[distribution])})
        bad = find_stack_problem({**GOOD, package: (distribution, '0.0.1')})
        assert good is None and f'{package} >= {wanted[distribution]},' in bad


def test_import_and_backbone_need_no_library_and_no_compiled_operator():
    code = (
        "import sys, rmt_mm; rmt_mm.RMT('tiny'); "
        "print(*[m for m in ('mmdet', 'mmseg', 'mmpretrain', 'mmcv.ops', 'mmcv._ext') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.split() == [], done.stdout + done.stderr
