"""What the tools that measure share."""

import json
import math

import pytest
import torch

from rmt_mm.tools.cli.measure import Case, build

from support.miniature import call


@pytest.mark.parametrize('impl', ['torchvision.swin_t', 'torchvision.convnext_tiny'])
def test_a_training_step_of_torchvision_drops_nothing(impl):
    model = build(impl, Case('small', (64, 64), 2, 'train', 'cpu', 'fp32'))
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        first, again = model(x), model(x)
    assert model.training and torch.equal(first, again)


def test_forms_of_attention():
    for impl, decomposed in (('whole', False), ('decomposed', True)):
        for arch, stages in (('tiny', 4), ('deit-small', 1)):
            model = build(impl, Case(arch, (64, 64), 1, 'infer', 'meta', 'fp32'))
            assert model.arch.decomposed == (decomposed,) * stages


@pytest.mark.slow  # the tests above build and step implementations
def test_scaling_over_sizes(tmp_path):
    pytest.importorskip('matplotlib', reason='the plot needs matplotlib')
    plot = tmp_path / 'scaling.png'
    command = [
        'tools/analysis_tools/benchmark.py',
        '--arch',
        'tiny',
        '--impl',
        'rmt_mm',
        'whole',
        '--repeat',
        1,
        '--sizes',
        97,
        64,
        512,
    ]
    result = json.loads(call(*command, '--scaling', plot, '--max-gmac', 1, '--json').stdout)
    assert plot.stat().st_size
    for impl in ('rmt_mm', 'whole'):
        assert result[impl]['tokens'] == [16**2, 25**2, 128**2]
        assert [len(result[impl][key]) for key in ('gmac', 'seconds', 'peak_mb')] == [3, 2, 2]
    assert result['whole']['gmac'][-1] > 5 * result['rmt_mm']['gmac'][-1] > 10
    assert result['whole']['exponents']['gmac'] > 1.5 > 1.1 > result['rmt_mm']['exponents']['gmac']
    for key in ('seconds', 'peak_mb'):
        first, last = result['whole'][key]
        slope = math.log(last / first) / math.log(25**2 / 16**2)
        assert result['whole']['exponents'][key] == pytest.approx(slope)
    assert 'name the plot with --scaling' in call(*command, fails=True).stderr
    refused = call(*command, '--scaling', plot, '--max-gmac', 0.1, fails=True)
    assert 'leaves less than two sizes of rmt_mm to run' in refused.stderr
