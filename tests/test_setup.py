"""`make setup`: what it refuses and in which words, when it does nothing, and how it compiles mmcv."""

import os
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest

from support import ROOT, load_tool

wheels = load_tool('mmcv_wheel.py')
planning = load_tool('setup_plan.py')

# A Python that notes how it was called and plays what set-up needs of it.
STUB = """#!/bin/sh
echo "$@" >> {calls}
case "$*" in
  *setup_plan.py*) touch {env}/.constraints.txt {env}/.requirements.txt; echo 2.12.1 ;;
  -c*) echo 3.11 ;;
  *'pip --disable-pip-version-check install'*) {install} ;;
esac
"""


@pytest.fixture
def setup(tmp_path):
    """Return a function that runs the script in an environment whose Python is a stub."""
    env = tmp_path / 'env'
    calls = tmp_path / 'calls'

    def run(*arguments, install=':', **options):
        (env / 'bin').mkdir(parents=True, exist_ok=True)
        python = env / 'bin' / 'python'
        python.write_text(STUB.format(calls=calls, env=env, install=install))
        python.chmod(0o755)
        calls.write_text('')
        variables = {k: v for k, v in os.environ.items() if k not in ('TORCH', 'MMCV_WHEEL', 'PYTHON')}
        variables.update(ENV=str(env), RMT_MM_CACHE=str(tmp_path / 'cache'))
        variables.update({key: str(value) for key, value in options.items()})
        command = ['bash', str(ROOT / 'tools/setup_env.sh'), *(arguments or ['openmmlab'])]
        done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60)
        done.calls = calls.read_text()
        return done

    return run


@pytest.mark.parametrize(
    'arguments, options, words',
    [
        (['pytorch'], {}, "unknown stack 'pytorch': choose openmmlab or onedl"),
        (['onedl', 'here'], {}, 'usage:'),
        ([], {'TORCH': '2.5'}, 'TORCH=2.5: a version such as 2.5.1 is wanted'),
        ([], {'MMCV_WHEEL': '/nowhere/mmcv.whl'}, 'MMCV_WHEEL=/nowhere/mmcv.whl: there is no such file'),
        ([], {'ENV': __file__}, 'is a file: name a folder'),
        ([], {'PYTHON': 'python9.9', 'ENV': 'NEW'}, 'python9.9 is not found: name a Python with PYTHON='),
        ([], {'PYTHON': 'false', 'ENV': 'NEW'}, 'Python 3.9 or later is wanted'),
    ],
)
def test_wrong_options_are_one_sentence(setup, tmp_path, arguments, options, words):
    options = {key: str(tmp_path / 'new') if value == 'NEW' else value for key, value in options.items()}
    done = setup(*arguments, **options)
    assert done.returncode in (1, 2) and words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert 'install' not in done.calls


def test_small_disk_is_told_before_anything_is_made(setup, tmp_path):
    stub = tmp_path / 'path' / 'df'
    stub.parent.mkdir()
    stub.write_text('#!/bin/sh\necho heading\ncase "$*" in *target*) echo / ;; *) echo 8000000 ;; esac\n')
    stub.chmod(0o755)
    options = {'PATH': f'{stub.parent}:{os.environ["PATH"]}', 'PYTHON': sys.executable, 'ENV': tmp_path / 'new'}
    done = setup(**options)
    # 6 GB for the environment fit; with 3 GB of downloads on the same disk they do not.
    assert 'has 7 GB free, and 9 GB are wanted: make room' in done.stderr
    assert not (tmp_path / 'new' / 'bin').exists()


@pytest.mark.parametrize(
    'words, sentence',
    [
        (
            "WARNING: Retrying after connection broken by 'NewConnectionError(...)'",
            'pip cannot reach its package index',
        ),
        ('ERROR: [Errno 28] No space left on device', 'the disk is full: make room'),
        ('ERROR: No matching distribution found for nothing', 'pip install failed: see above'),
    ],
)
def test_pip_failures(setup, words, sentence):
    done = setup(install=f'echo "{words}"; exit 1')
    assert done.returncode == 1 and f'setup: {sentence}' in done.stderr
    assert not done.stderr.startswith('setup') == ('see above' in sentence)


def test_second_set_up_does_nothing(setup, tmp_path):
    assert 'install' in setup().calls
    assert setup().calls == ''
    # Other options set up again; left out, they are as they were.
    assert 'setup_plan.py' in setup(TORCH='2.5.1').calls
    assert setup(TORCH='2.5.1').calls == setup().calls == ''
    assert 'setup_plan.py' in setup(TORCH='2.6.0').calls
    wheel = tmp_path / 'mmcv.whl'
    wheel.write_text('one')
    assert f'check {wheel}' in setup(TORCH='2.6.0', MMCV_WHEEL=wheel).calls
    assert setup(TORCH='2.6.0', MMCV_WHEEL=wheel).calls == ''
    wheel.write_text('another')
    assert f'check {wheel}' in setup(TORCH='2.6.0', MMCV_WHEEL=wheel).calls
    # A set-up that failed is not ready.
    assert setup(TORCH='2.7.0', install='exit 1').returncode == 1
    assert 'setup_plan.py' in setup().calls


def test_what_works_is_not_compiled_or_replaced(setup):
    done = setup()
    assert '-m rmt_mm.build_ops' in done.calls
    assert 'mmcv_wheel.py installed mmcv>=2.0.0,<2.2.0' in done.calls
    assert 'mmcv_wheel.py build' not in done.calls and '--force-reinstall' not in done.calls


# What pip is told -----------------------------------------------------------------------------------------------------

WANTED = {
    'torch': 'torch==2.12.1',
    'torchvision': 'torchvision==0.27.1',
    'mmcv': 'mmcv==2.1.0',
    'mmdet': 'mmdet==3.3.0',
}


def test_plan_of_a_new_environment():
    torch, requirements, constraints = planning.plan(WANTED, {}, None, keep=False)
    assert torch == '2.12.1' and constraints == []
    assert requirements == ['torch==2.12.1', 'torchvision==0.27.1', 'mmdet==3.3.0']


def test_plan_with_another_torch():
    torch, requirements, constraints = planning.plan(WANTED, {}, '2.1.2', keep=False)
    assert torch == '2.1.2' and constraints == ['numpy<2']
    assert requirements == ['torch==2.1.2', 'torchvision', 'mmdet==3.3.0']


def test_plan_keeps_what_is_there():
    installed = {'torch': '2.5.1+cu121', 'mmcv': '2.1.0', 'mmdet': '3.2.0', 'numpy': '1.26.4'}
    torch, requirements, constraints = planning.plan(WANTED, installed, None, keep=True)
    assert torch == '2.5.1'
    assert requirements == ['torchvision']
    assert constraints == ['torch==2.5.1+cu121', 'numpy==1.26.4', 'mmcv==2.1.0']
    assert planning.plan(WANTED, installed, '2.5.1', keep=True)[0] == '2.5.1'


@pytest.mark.parametrize(
    'installed, torch, words',
    [
        ({}, '2.4.1', 'torch 2.4.1 is too old, torch 2.5 or later is wanted'),
        ({'torch': '2.4.1'}, None, 'torch 2.4.1 is too old'),
        ({'torch': '2.5.1'}, '2.6.0', 'it holds torch 2.5.1: leave TORCH=2.6.0 out'),
        ({'onedl-mmcv': '2.3.6'}, None, 'it holds onedl-mmcv, whose files mmcv would overwrite'),
    ],
)
def test_plan_refuses(installed, torch, words):
    with pytest.raises(ValueError, match=words):
        planning.plan(WANTED, installed, torch, keep=True, oldest='2.5')


def test_plan_as_a_program(tmp_path):
    command = [
        sys.executable,
        '-S',
        str(ROOT / 'tools/setup_plan.py'),
        str(tmp_path),
        'onedl',
        '--torch',
    ]  # sees no package
    done = subprocess.run([*command, '9.0.0'], capture_output=True, text=True)
    assert done.stdout == '9.0.0\n' and 'torch==9.0.0' in (tmp_path / '.requirements.txt').read_text().splitlines()
    assert 'onedl-mmcv' not in (tmp_path / '.requirements.txt').read_text()
    done = subprocess.run([*command, '1.13.1'], capture_output=True, text=True)
    assert done.returncode == 1 and 'torch 1.13.1 is too old' in done.stderr


# Wheels that the user has ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'name, content, words',
    [
        ('mmcv-2.1.0-{tag}.whl', 'mmcv/_ext.so', None),
        ('mmcv.whl', 'mmcv/_ext.so', 'not the name of a wheel'),
        ('mmcv-2.2.0-{tag}.whl', 'mmcv/_ext.so', 'this is mmcv 2.2.0, and mmcv<2.2.0,>=2.0.0 is wanted'),
        ('onedl_mmcv-2.3.6-{tag}.whl', 'mmcv/_ext.so', 'this is onedl-mmcv 2.3.6'),
        ('mmcv-2.1.0-cp27-cp27mu-linux_x86_64.whl', 'mmcv/_ext.so', 'for another Python or platform'),
        ('mmcv-2.1.0-{tag}.whl', 'mmcv/version.py', 'no compiled operators'),
        ('mmcv-2.1.0-{tag}.whl', None, 'this file is damaged'),
    ],
)
def test_wheel_of_the_user(tmp_path, name, content, words):
    tags = pytest.importorskip('packaging.tags')
    path = tmp_path / name.format(tag=next(tags.sys_tags()))
    if content is None:
        path.write_text('half of a file')
    else:
        with zipfile.ZipFile(path, 'w') as archive:
            archive.writestr(content, '')
    problem = wheels.find_wheel_problem(path, 'mmcv>=2.0.0,<2.2.0')
    assert problem is None if words is None else words in problem


def test_wheel_that_does_not_load(tmp_path):
    path = tmp_path / 'mmcv.whl'
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('mmcv/__init__.py', '')
        archive.writestr('mmcv/ops.py', 'raise ImportError("undefined symbol: of another torch")')
    assert wheels.find_operator_problem(path) == 'ImportError: undefined symbol: of another torch'


# The compilation ------------------------------------------------------------------------------------------------------


def test_progress():
    log = 'running build_ext\n[1/3] c++ -c a.cpp\nwarning: [9/9] no progress\n[2/3] c++ -c b.cpp\n'
    assert wheels.read_progress('running build_ext\n', 0) is None
    assert wheels.read_progress(log, 0) == (2, 3, 2)
    # An earlier run had done 74 of the 77.
    assert wheels.read_progress(log, 77) == (76, 77, 2)


@pytest.mark.parametrize(
    'log, words',
    [
        ('fatal error: error writing to /tmp/x.s: No space left on device', 'the disk is full'),
        ('c++: fatal error: Killed signal terminated program cc1plus', 'MAX_JOBS=1'),
        ("error: 'x' was not declared in this scope", 'compiling failed'),
    ],
)
def test_reasons_of_failed_builds(log, words):
    assert words in wheels.explain_failure(log)


def test_missing_compiler_and_headers(monkeypatch, tmp_path):
    monkeypatch.delenv('CXX', raising=False)
    monkeypatch.setenv('PATH', str(tmp_path))
    problem = wheels.find_missing_tool()
    assert 'c++ is not found: install one' in problem and 'MMCV_WHEEL=FILE' in problem
    shutil.copy('/bin/sh', tmp_path / 'c++')
    monkeypatch.setattr(wheels.sysconfig, 'get_path', lambda name: str(tmp_path))
    assert 'Python.h is missing' in wheels.find_missing_tool()


needs_gcc = pytest.mark.skipif(not shutil.which('g++') or not wheels.is_gcc('g++'), reason='needs g++')


@needs_gcc
def test_header_is_precompiled_once_with_the_flags_of_the_build(tmp_path):
    header, source, tool = tmp_path / 'header.h', tmp_path / 'a.cpp', ROOT / 'tools/mmcv_wheel.py'
    header.write_text('#include <cstddef>\nstatic_assert(__OPTIMIZE__, "");\n')
    source.write_text('std::size_t size() { return NUMBER; }\n')
    # As torch writes it: `-c` twice.
    flags = ['-O2', '-include', str(header), '-c', '-c', str(source), '-o', str(tmp_path / 'a.o'), '-DNUMBER=3']
    command = [sys.executable, str(tool), 'cxx', 'g++', str(header), '-MMD', '-MF', str(tmp_path / 'a.d'), *flags]
    subprocess.run(command, check=True)
    assert (tmp_path / 'header.h.gch').exists() and (tmp_path / 'a.o').exists()
    # The next file does not read the header itself.
    header.write_text('#error parsed\n')
    subprocess.run(command, check=True)


@needs_gcc
def test_files_compile_without_a_precompiled_header(tmp_path):
    header, source, compiler = tmp_path / 'header.h', tmp_path / 'a.cpp', tmp_path / 'compiler'
    header.write_text('#define NUMBER 3\n')
    source.write_text('int number() { return NUMBER; }\n')
    compiler.write_text('#!/bin/sh\ncase "$*" in *c++-header*) exit 1 ;; esac\nexec g++ "$@"\n')
    compiler.chmod(0o755)
    command = [sys.executable, str(ROOT / 'tools/mmcv_wheel.py'), 'cxx', str(compiler), str(header)]
    command += ['-include', str(header), '-c', str(source), '-o', str(tmp_path / 'a.o')]
    subprocess.run(command, check=True)
    assert (tmp_path / 'a.o').exists() and not (tmp_path / 'header.h.gch').exists()


BUILD = """
import os, pathlib, sys, time
pathlib.Path({runs!r}).open('a').write('run\\n')
print('[1/2] c++ a', flush=True)
time.sleep({seconds})
print('[2/2] c++ b', flush=True)
out = pathlib.Path(sys.argv[1])
out.mkdir()
(out / 'mmcv-2.1.0-cp311-cp311-linux_x86_64.whl').write_text('a wheel')
"""


@pytest.fixture
def fake_build(tmp_path, monkeypatch):
    """Let a build write a wheel without compiling; return the file that counts them."""
    runs = tmp_path / 'runs'
    runs.touch()
    monkeypatch.setattr(wheels, 'BUILD', BUILD.format(runs=str(runs), seconds=1))
    monkeypatch.setattr(wheels, 'find_missing_tool', lambda: None)
    monkeypatch.setattr(wheels, 'find_missing_cuda', lambda: None)
    monkeypatch.setattr(wheels, 'is_gcc', lambda compiler: False)

    def fetch(requirement, work):
        (work / 'source').mkdir(exist_ok=True)
        return work / 'source'

    monkeypatch.setattr(wheels, 'fetch_source', fetch)
    return runs


def test_two_builds_at_once_compile_once(tmp_path, fake_build, capfd):
    made = []
    builds = [
        threading.Thread(target=lambda: made.append(wheels.build('mmcv==2.1.0', tmp_path / 'wheels'))) for _ in range(2)
    ]
    for build in builds:
        build.start()
        time.sleep(0.2)
    for build in builds:
        build.join()
    assert made[0] == made[1] and made[0].read_text() == 'a wheel'
    assert fake_build.read_text() == 'run\n'
    output = capfd.readouterr().out
    assert 'another set-up is compiling' in output and '2 of 2 files' in output
    assert [path.suffix for path in (tmp_path / 'wheels').iterdir() if path.name != '.lock'].count('.build') == 0


def test_interrupted_build_keeps_its_objects(tmp_path, fake_build, monkeypatch, capfd):
    folder = tmp_path / 'wheels'
    built = wheels.BUILD
    monkeypatch.setattr(wheels, 'BUILD', 'print("x.cpp:1: error: wrong"); raise SystemExit(1)')
    with pytest.raises(SystemExit, match='compiling failed'):
        wheels.build('mmcv==2.1.0', folder)
    assert 'x.cpp:1: error: wrong' in capfd.readouterr().err
    work = folder / 'mmcv-2.1.0.build'
    (work / 'source' / 'a.o').touch()
    wheels.prepare('mmcv==2.1.0', work)
    assert (work / 'source' / 'a.o').exists()
    # With another torch they are of no use.
    monkeypatch.setattr(wheels, 'build_key', lambda: 'torch9.9')
    wheels.prepare('mmcv==2.1.0', work)
    assert not (work / 'source' / 'a.o').exists()
    monkeypatch.setattr(wheels, 'BUILD', built)
    assert wheels.build('mmcv==2.1.0', folder).exists() and not work.exists()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_wheel_compiled_from_nothing(tmp_path):
    """Downloads and compiles mmcv with the torch of this environment: four user minutes."""
    requirement = next(
        line for line in (planning.REQUIREMENTS / 'openmmlab.txt').read_text().splitlines() if line.startswith('mmcv==')
    )
    wheel = wheels.build(requirement, Path(tmp_path / 'wheels'))
    assert wheel.stat().st_size < 32e6
    assert wheels.find_operator_problem(wheel) is None


def test_the_page_of_a_demo_that_was_not_trained_is_refused(tmp_path):
    done = subprocess.run(['make', 'webui', f'DEMO={tmp_path}'], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode and f'{tmp_path} holds no trained model: run `make demo` first.' in done.stderr
