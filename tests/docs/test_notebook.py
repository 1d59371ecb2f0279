"""demo/rmt_mm.ipynb runs, and is kept without outputs."""

import json
import re

import pytest

from support import ROOT

PATH = ROOT / 'demo/rmt_mm.ipynb'


def test_it_is_kept_without_outputs():
    cells = json.loads(PATH.read_text())['cells']
    code = [cell for cell in cells if cell['cell_type'] == 'code']
    assert len(code) >= 6
    for cell in code:
        assert cell['outputs'] == [] and cell['execution_count'] is None


@pytest.mark.slow
def test_it_runs(tmp_path, monkeypatch):
    pytest.importorskip('mmdet')
    nbformat = pytest.importorskip('nbformat')
    nbclient = pytest.importorskip('nbclient')
    pytest.importorskip('ipykernel')
    monkeypatch.setenv('PYTHONPATH', str(ROOT))
    monkeypatch.setenv('IPYTHONDIR', str(tmp_path / 'ipython'))
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    notebook = nbformat.read(PATH, 4)
    nbclient.NotebookClient(notebook, timeout=500, resources=dict(metadata=dict(path=str(tmp_path)))).execute()
    outputs = [output for cell in notebook.cells for output in cell.get('outputs', ())]
    said = ''.join(output.get('text', '') or output.get('data', {}).get('text/plain', '') for output in outputs)
    assert '[(1, 64, 56, 56), (1, 128, 28, 28), (1, 256, 14, 14), (1, 512, 7, 7)]' in said
    assert float(re.findall(r'([\d.]+)% of 450 other digits are right', said)[-1]) > 90
    assert sum('image/png' in output.get('data', {}) for output in outputs) == 2
    assert 'RMT loaded from digits.pth' in said and "'loss_cls': " in said
