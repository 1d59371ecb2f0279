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
        '--repeat',
        1,
        '--sizes',
        97,
        64,
    ]
    result = json.loads(call(*command, '--scaling', plot, '--json').stdout)['rmt_mm']
    assert plot.stat().st_size and result['tokens'] == [16**2, 25**2]
    for key, exponent in result['exponents'].items():
        first, last = result[key]
        assert exponent == pytest.approx(math.log(last / first) / math.log(25**2 / 16**2))
    assert '--sizes: name the plot with --scaling' in call(*command, fails=True).stderr
