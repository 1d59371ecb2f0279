"""Contents of a wheel and an sdist: every package, every config, the tools that users of a wheel call."""

import configparser
import os
import subprocess
import sys
import zipfile

import pytest

import rmt_mm

from support import ROOT

SCRIPTS = (
    'rmt-train',
    'rmt-test',
    'rmt-demo',
    'rmt-vis-masa',
    'rmt-report',
    'rmt-webui',
    'rmt-export',
    'rmt-convert',
    'rmt-doctor',
)


def read_setup():
    setup = configparser.ConfigParser()
    setup.read(ROOT / 'setup.cfg')
    return setup


def test_every_package_is_listed():
    folders = {path.parent.relative_to(ROOT) for path in ROOT.glob('rmt_mm/**/__init__.py')}
    packages = {'.'.join(folder.parts) for folder in folders}
    assert set(read_setup()['options']['packages'].split()) == {*packages, 'rmt_mm.configs'}


def test_console_scripts_are_there():
    lines = read_setup()['options.entry_points']['console_scripts'].strip().splitlines()
    scripts = dict(line.split(' = ') for line in lines)
    assert set(scripts) == set(SCRIPTS)
    for target in scripts.values():
        module, function = target.split(':')
        __import__(module)
        assert callable(getattr(sys.modules[module], function))


def run(*command, **options):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    """Build an sdist, a wheel from the checkout, and a wheel from the sdist."""
    folder = tmp_path_factory.mktemp('built')
    code = 'import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))'
    source = tmp_path_factory.mktemp('source') / 'rmt-mm'
    run('git', 'clone', '-q', ROOT, source)  # without untracked files of the working tree
    run(sys.executable, '-c', code, folder, cwd=source)
    (sdist,) = folder.glob('*.tar.gz')
    wheels = []
    for name, origin in (('checkout', source), ('sdist', sdist)):
        run(sys.executable, *'-m pip wheel --no-deps --no-build-isolation -q -w'.split(), folder / name, origin)
        wheels += (folder / name).glob('rmt_mm-*.whl')
    return wheels


@pytest.mark.slow
def test_the_sdist_makes_the_same_wheel(built):
    from_checkout, from_sdist = (set(zipfile.ZipFile(wheel).namelist()) for wheel in built)
    assert from_checkout == from_sdist
    configs = {name for name in from_checkout if name.startswith('rmt_mm/configs/') and name.endswith('.py')}
    assert len(configs) == len(list(ROOT.glob('configs/**/*.py')))


@pytest.mark.slow
@pytest.mark.parametrize('origin', [0, 1], ids=['checkout', 'sdist'])
def test_an_installed_wheel_works_from_another_folder(built, origin, tmp_path):
    site = tmp_path / 'site'
    run(sys.executable, *'-m pip install --no-deps -q --target'.split(), site, built[origin])
    env = dict(os.environ, PYTHONPATH=str(site))
    code = (
        'import rmt_mm; from mmengine import Config; '
        'print(len(rmt_mm.list_configs()), rmt_mm.get_config_path("mask-rcnn_rmt-s_fpn_amp-1x_coco")); '
        'Config.fromfile(rmt_mm.get_config_path("mask-rcnn_rmt-s_fpn_amp-1x_coco"))'
    )
    count, path = run(sys.executable, '-c', code, cwd=tmp_path, env=env).split()
    assert int(count) == len(rmt_mm.list_configs()) and str(site) in path
    for script in SCRIPTS:
        assert run(site / 'bin' / script, '--help', cwd=tmp_path, env=env).startswith(f'usage: {script}')
    # The hint names an installed command: a wheel has no tools/.
    code = 'from rmt_mm.tools.cli import options; print(options.CONVERTER)'
    assert run(sys.executable, '-c', code, cwd=tmp_path, env=env).strip() == 'rmt-convert'
