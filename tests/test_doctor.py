"""`rmt-doctor`: its output if everything works, and if something is missing or wrong."""

import importlib
import os
import re
import subprocess
import sys

import numpy as np
import pytest

import rmt_doctor as doctor
from rmt_mm import compat, version
from rmt_mm.ops import build
from rmt_mm.tools import golden

from support import ROOT


def run(*args, path=ROOT):
    env = dict(os.environ, PYTHONPATH=os.pathsep.join(map(str, (path, ROOT))))
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, check=False, env=env)


def test_the_package_carries_an_output_of_the_original():
    whole = np.load(ROOT / 'tests/data/golden/tiny_dense_1x3x64x96.npz')
    np.testing.assert_array_equal(np.load(golden.OUTPUTS)['out3'], whole['out3'])


def labels(report):
    """Return what the lines of a report are about; a line without a label goes on about the one before."""
    return {line[:12].strip() for line in report.split('\n\n')[0].splitlines()} - {''}


def test_a_working_environment(capsys):
    assert doctor.main([]) == 0
    out = capsys.readouterr().out
    kernels = re.findall(r'stages 1 to 4: (.*)', out)  # at 224 x 224 and at 800 x 1344
    assert kernels in (
        2 * ['attend=masa, attend=masa, attend=masa, attend=masa'],
        [
            f'attend_lines=plain, attend_lines=plain, attend_map={name}, attend_map={name}'
            for name in ('plain', 'by_row')
        ],
    )
    assert 'forward and backward in' in out and out.endswith('everything that is installed works\n')
    [shown] = re.findall(r'```text\n(Python .*?)```', (ROOT / 'docs/install.md').read_text(), re.DOTALL)
    assert labels(shown) == labels(out)


def test_without_the_kernels_in_cpp_it_names_the_command_that_builds_them(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv('RMT_MM_CACHE', str(tmp_path))
    monkeypatch.setattr(build, '_loaded', False)
    assert doctor.main([]) == 0
    assert f'not masa: {build.NOT_BUILT}' in capsys.readouterr().out


HIDE = """
from importlib import metadata
version = metadata.version
def hide(name):
    if 'mmcv' in name:
        raise metadata.PackageNotFoundError(name)
    return version(name)
metadata.version = hide
"""


def test_without_mmcv_it_still_starts_and_says_what_to_install(tmp_path):
    (tmp_path / 'sitecustomize.py').write_text(HIDE)
    sentence = 'rmt_mm needs mmcv and mmengine, and found '
    done = run('-m', 'rmt_doctor', path=tmp_path)
    assert done.returncode == 1 and not done.stderr
    assert f'rmt_mm       {version.__version__} in {ROOT / "rmt_mm"}\n' in done.stdout
    assert f'stack        PROBLEM: {sentence}torch ' in done.stdout
    assert 'to mend: stack: run `pip install "rmt-mm[openmmlab]"` or' in done.stdout
    done = run('-m', 'rmt_mm', path=tmp_path)
    assert done.returncode == 1 and f'ImportError: {sentence}' in done.stderr and len(done.stderr.splitlines()) == 1
    done = run('-c', 'import rmt_mm', path=tmp_path)
    assert done.returncode == 1 and f'ImportError: {sentence}' in done.stderr


def test_both_ways_to_call_it():
    assert run('-m', 'rmt_mm', '--help').stdout == run('-m', 'rmt_doctor', '--help').stdout != ''


def fail_import(monkeypatch, broken, error=ImportError('undefined symbol')):
    real = importlib.import_module

    def import_module(name, *args):
        if name in broken:
            raise type(error)(f'{name}: {error}')
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
    fail_import(monkeypatch, {'mmseg.models'})
    assert doctor.main([]) == 1
    assert 'to mend: mmseg: `pip install' in capsys.readouterr().out


def test_transformers_that_mmpretrain_does_not_know(monkeypatch, capsys):
    """Beside transformers 4.57 or 5, importing mmpretrain.models raises this error."""
    found = {**compat.find_installed(), 'mmpretrain': ('mmpretrain', '1.2.0')}
    monkeypatch.setattr(compat, 'find_installed', lambda: found)
    monkeypatch.setattr(doctor, 'check_model', lambda report: None)
    fail_import(monkeypatch, {'mmpretrain.models'}, TypeError('NoneType takes no arguments'))
    assert doctor.main([]) == 1
    assert 'to mend: mmpretrain: mmpretrain does not import beside a newer transformers' in capsys.readouterr().out


def test_the_package_itself_does_not_import(monkeypatch, capsys):
    monkeypatch.setattr(doctor, 'check_model', lambda report: pytest.fail('needs the package'))
    fail_import(monkeypatch, {'rmt_mm'})
    assert doctor.main([]) == 1
    assert 'rmt_mm       PROBLEM: does not import (ImportError: rmt_mm: undefined symbol)' in capsys.readouterr().out


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
