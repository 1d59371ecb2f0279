"""docs/relatives.md: its programs run, and its counts are those of the models."""

import re

import pytest
import torch

from rmt_mm import RMT
from rmt_mm.arch import ARCHS
from rmt_mm.tools.flops import MacCounter

from support import ROOT

PAGE = (ROOT / 'docs/relatives.md').read_text()
BLOCKS = re.findall(r'```python\n(.*?)```', PAGE, re.DOTALL)
PROGRAMS = [block for block in BLOCKS if 'import' in block]
LINES = [block for block in BLOCKS if 'import' not in block]
ROWS = re.findall(r'^\| (?:`(\S.*?)`|none) \|[^|]*\| ([\d.]+) M \| ([\d.]+) \|', PAGE, re.MULTILINE)


@pytest.mark.parametrize('program, shape', zip(PROGRAMS, [(2, 10), (1, 5, 64, 96)]))
def test_programs(program, shape, capsys):
    exec(program, {})
    assert capsys.readouterr().out.strip() == f'torch.Size({list(shape)})'
    assert len([line for line in program.splitlines() if line.strip()]) <= 36


def test_config_lines():
    assert len(LINES) == 2
    for line in LINES:
        code = line.split('=', 1)[1].split('#')[0]
        with torch.device('meta'):
            RMT(**{key: value for key, value in eval(code, dict(dict=dict)).items() if key != 'type'})


@pytest.mark.parametrize('options, millions, giga', ROWS)
def test_counts_of_ablations(options, millions, giga):
    with torch.device('meta'):
        model = RMT('tiny', arch_options=eval(f'dict({options})'), out_norm=False).eval()
        with torch.no_grad(), MacCounter(model) as counter:
            model(torch.zeros(1, 3, 224, 224))
    assert f'{sum(p.numel() for p in model.parameters()) / 1e6:.2f}' == millions
    assert f'{sum(counter.macs.values()) / 2**30:.2f}' == giga


@pytest.mark.parametrize(
    'row, decomposed', [(r'`decomposed=\(True, True, True, True\)`', (True,) * 4), ('released', None)]
)
def test_counts_at_size(row, decomposed):
    (cells,) = re.findall(rf'^\| {row} \|(.*)\|$', PAGE, re.MULTILINE)
    options = dict(decomposed=decomposed) if decomposed else {}
    with torch.device('meta'):
        model = RMT('small', arch_options=options).eval()
        for size, cell in zip((224, 320, 512, 800, 1024, 2048), cells.split('|')):
            with torch.no_grad(), MacCounter(model) as counter:
                model(torch.zeros(1, 3, size, size))
            assert float(cell) == pytest.approx(sum(counter.macs.values()) / 1e9, abs=0.06, rel=1e-3)


def test_every_size_and_every_option_is_named():
    assert len(ROWS) == 9
    for name in ('swin-tiny', 'swin-small', 'deit-small'):
        with torch.device('meta'):
            count = sum(p.numel() for p in RMT(name).parameters()) / 1e6
        assert re.search(rf'^\| `{name}` .*\| {count:.1f} M \|', PAGE, re.MULTILINE)
    for field in ARCHS['tiny']._field_defaults:
        assert f'{field}=' in PAGE
