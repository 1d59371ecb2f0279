"""`python -m rmt_mm`: its output if everything works, and if something is missing or wrong."""

import importlib
import os
import subprocess
import sys

import numpy as np
import pytest

from rmt_mm import compat
from rmt_mm.tools import golden
from rmt_mm.tools.commands import doctor

from support import ROOT


def run(*args, path=ROOT):
    env = dict(os.environ, PYTHONPATH=os.pathsep.join(map(str, (path, ROOT))))
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, check=False, env=env)


def test_the_package_carries_an_output_of_the_original():
    whole = np.load(ROOT / 'tests/data/golden/tiny_dense_1x3x64x96.npz')
    np.testing.assert_array_equal(np.load(golden.OUTPUTS)['out3'], whole['out3'])


def test_a_working_environment(capsys):
    assert doctor.main([]) == 0
    out = capsys.readouterr().out
    assert 'attend_decomposed, attend_decomposed, attend_full_at_once, attend_full_at_once' in out
    assert 'attend_decomposed, attend_decomposed, attend_full_by_row, attend_full_by_row' in out
    assert 'forward and backward in' in out and out.endswith('everything that is installed works\n')


@pytest.mark.skipif(sys.version_info < (3, 10), reason='Python 3.9 does not keep its command line: import fails first')
def test_without_mmcv_it_still_starts_and_says_what_to_install(tmp_path):
    (tmp_path / 'sitecustomize.py').write_text(
        'from importlib import metadata\n'
        'version = metadata.version\n'
        'def hide(name):\n'
        "    if 'mmcv' in name:\n"
        '        raise metadata.PackageNotFoundError(name)\n'
        '    return version(name)\n'
        'metadata.version = hide\n'
    )
    done = run('-m', 'rmt_mm', path=tmp_path)
    assert done.returncode == 1, done.stderr
    assert 'to mend: stack: run `pip install "rmt-mm[openmmlab]"` or' in done.stdout and not done.stderr
    done = run('-c', 'import rmt_mm', path=tmp_path)
    assert done.returncode == 1 and 'ImportError: rmt_mm needs mmcv and mmengine' in done.stderr


def test_other_modules_of_the_package_are_not_taken_for_it():
    done = run('-m', 'rmt_mm.tools.commands.get_flops', '--help')
    assert done.returncode == 0 and 'usage' in done.stdout
    code = "import sys; sys.argv = ['-m']; import rmt_mm; print(rmt_mm.RMT.__name__)"
    assert run('-c', code).stdout == 'RMT\n'


def fail_import(monkeypatch, broken):
    real = importlib.import_module

    def import_module(name, *args):
        if name in broken:
            raise ImportError(f'{name}: undefined symbol')
        return real(name, *args)

    monkeypatch.setattr(importlib, 'import_module', import_module)


@pytest.mark.parametrize('has_mmdet', [True, False])
def test_operators_are_a_problem_only_for_mmdet(monkeypatch, capsys, has_mmdet):
    installed = {'mmcv': ('mmcv', '2.1.0'), 'mmengine': ('mmengine', '0.10.7')}
    if has_mmdet:
        installed['mmdet'] = ('mmdet', '3.3.0')
    monkeypatch.setattr(compat, 'find_installed', lambda: installed)
    monkeypatch.setattr(doctor, 'check_model', lambda report: None)
    fail_import(monkeypatch, {'mmcv.ops'})
    assert doctor.main([]) == int(has_mmdet)
    out = capsys.readouterr().out
    assert 'undefined symbol' in out and 'make setup' in out
    assert 'not installed; for segmentation: `pip install "mmsegmentation' in out


def test_a_library_that_does_not_import(monkeypatch, capsys):
    found = {**compat.find_installed(), 'mmseg': ('mmsegmentation', '1.2.2')}
    monkeypatch.setattr(compat, 'find_installed', lambda: found)
    monkeypatch.setattr(doctor, 'check_model', lambda report: None)
    fail_import(monkeypatch, {'mmseg'})
    assert doctor.main([]) == 1
    assert 'to mend: mmseg: `pip install' in capsys.readouterr().out


def test_without_torch(monkeypatch, capsys):
    monkeypatch.setattr(doctor, 'check_model', lambda report: pytest.fail('needs torch'))
    fail_import(monkeypatch, {'torch'})
    assert doctor.main([]) == 1
    assert 'to mend: torch: install torch' in capsys.readouterr().out


def test_wrong_numbers_are_a_problem(monkeypatch, capsys):
    real = golden.image
    monkeypatch.setattr(golden, 'image', lambda name, shape: real(name, shape) + np.float32(0.01))
    assert doctor.main([]) == 1
    assert 'PROBLEM: RMT-T differs' in capsys.readouterr().out
