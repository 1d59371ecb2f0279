"""tools/analysis_tools/gpu_report.py, tried on the CPU with its small sizes."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch

from rmt_mm.ops import dispatch
from rmt_mm.tools.cli import UsageError

from support import ROOT, load_tool
from support.scripts import run_script

TOOL = 'tools/analysis_tools/gpu_report.py'
# What compiles is run as it is: compiling is not the subject, and takes a minute.
ENV = dict(os.environ, OMP_NUM_THREADS='1', TORCHDYNAMO_DISABLE='1', CUDA_VISIBLE_DEVICES='')
FIGURES = dict(seconds=0.5, spread=0.1, first=2.0, peak_mb=1234.0)


def run(out, *args):
    return run_script(TOOL, '--device', 'cpu', '--quick', '--out', out, *args, cwd=ROOT, env=ENV)


@pytest.fixture(scope='module')
def tool():
    return load_tool('analysis_tools/gpu_report.py')


@pytest.fixture
def restored():
    """Put back what a check changes in its process."""
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    yield
    for backend, allow in zip(backends, before):
        backend.allow_tf32 = allow


@pytest.fixture(scope='module')
def killed(tmp_path_factory):
    """The folder of a call that was killed after its first check."""
    out = tmp_path_factory.mktemp('report')
    command = [sys.executable, TOOL, '--device', 'cpu', '--quick', '--out', str(out)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=ENV)
    for line in process.stdout:
        if line.startswith('check'):
            break
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return out


def test_what_a_killed_call_found_is_kept_and_the_next_one_goes_on(tool, killed):
    path = killed / 'results.json'
    results = json.loads(path.read_text())
    measures = tool.plan(tool.QUICK, 'cpu')
    assert [name for name in measures if name in results][-1] == 'check bias held fp32 50x71'
    assert results['check bias held fp32 50x71']['result']['passed']
    # Of the others, all but one were found before, one of them not to fit.
    others = [name for name, measure in measures.items() if name not in results and not measure.obstacle]
    last = 'infer bf16 2x64x64 small rmt_mm'
    results.update({name: dict(result=FIGURES) for name in others if name != last})
    results.update({name: dict(result=dict(errors={}, passed=True)) for name in others if name.startswith('check')})
    results['train bf16 2x64x64 small reference'] = dict(failure='out of memory')
    path.write_text(json.dumps(results))

    done = run(killed)
    assert done.returncode == 0, done.stderr
    assert [line.split(':')[0] for line in done.stdout.splitlines()] == [last]
    found = json.loads(path.read_text())
    assert found.pop(last)['result']['seconds'] > 0
    assert found == results
    report = (killed / 'report.md').read_text()
    assert '| train bf16 2x64x64 small | out of memory | 500.00 ms, 1234 MB |' in report
    assert 'not measured: FlexAttention has gradients on CUDA only' in report and 'no time yet' not in report
    assert (killed / 'report.png').stat().st_size > 0


@pytest.mark.slow
def test_it_stops_at_the_budget_and_says_what_is_missing(tool, tmp_path):
    done = run(tmp_path, '--budget', 0)
    assert done.returncode == 0, done.stderr
    missing = [name for name, measure in tool.plan(tool.QUICK, 'cpu').items() if not measure.obstacle]
    assert f'{len(missing)} missing after 0 s' in done.stdout and missing[-1] in done.stdout
    assert '- fp32 256: not measured: no time yet' in (tmp_path / 'report.md').read_text()


@pytest.mark.slow
def test_a_measure_that_fails_does_not_end_the_rest(tool, tmp_path):
    done = run(tmp_path, '--limit', 0)
    assert done.returncode == 1 and 'Wrong, or ended without a result: check bias held fp32' in done.stderr
    results = json.loads((tmp_path / 'results.json').read_text())
    results.pop('about')
    assert len(results) > 10 and all(outcome == dict(failure='took longer than 0 s') for outcome in results.values())


@pytest.mark.slow
def test_results_of_another_device_are_not_mixed_with(tmp_path):
    text = '{"about": {"device": "another"}}'
    (tmp_path / 'results.json').write_text(text)
    done = run(tmp_path)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert "was measured on {'device': 'another'}" in done.stderr and 'choose another --out' in done.stderr
    assert (tmp_path / 'results.json').read_text() == text


@pytest.mark.parametrize('text, message', [('{', 'is not JSON'), ('[]', 'does not hold results of this tool')])
def test_another_file_of_that_name(text, message, tool, tmp_path):
    (tmp_path / 'results.json').write_text(text)
    with pytest.raises(UsageError, match=f'{message}.*choose another --out'):
        tool.read_results(tmp_path / 'results.json')


def test_without_a_gpu_it_says_so(tmp_path):
    done = run(tmp_path / 'out', '--device', 'cuda')
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith(
        'no CUDA device is available; --device cpu --quick tries the tool without one'
    )
    assert not (tmp_path / 'out').exists()


def test_torchvision_missing(tool, monkeypatch):
    find = tool.importlib.util.find_spec
    monkeypatch.setattr(tool.importlib.util, 'find_spec', lambda name: None if name == 'torchvision' else find(name))
    measures = tool.plan(tool.FULL, 'cpu')
    obstacles = {name: measure.obstacle for name, measure in measures.items()}
    assert obstacles['infer bf16 128x224x224 small torchvision.swin_t'] == 'torchvision is not installed'
    assert obstacles['infer bf16 128x224x224 small rmt_mm'] is None


def test_a_check_notices_wrong_attention(tool, restored, monkeypatch):
    arch, shape = tool.QUICK.check
    assert tool.check('by row', 'fp32', arch, shape, 'cpu')['passed']
    key, by_row = ('attend_map', 'by_row'), dispatch._KERNELS['attend_map', 'by_row']
    monkeypatch.setitem(dispatch._KERNELS, key, by_row._replace(run=lambda *args: 1.001 * by_row.run(*args)))
    assert not tool.check('by row', 'fp32', arch, shape, 'cpu')['passed']


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device is available')
def test_checks_on_cuda(tool, restored):
    for form, dtype in tool.CHECKS:
        result = tool.check(form, dtype, *tool.FULL.check, 'cuda')
        assert result['passed'], (form, dtype, result)
