"""model-index.yml, the metafiles and the tables made from them give the published figures, for configs that exist."""

import shutil
import subprocess
import sys

import pytest
import yaml

import rmt_mm

from support import ROOT
from support.published import ROWS

INDEX = yaml.safe_load((ROOT / 'model-index.yml').read_text())
METAFILES = {path: yaml.safe_load((ROOT / path).read_text()) for path in INDEX['Import']}
MODELS = {model['Name']: model for metafile in METAFILES.values() for model in metafile['Models']}


def test_every_config_is_listed():
    folders = {path.split('/')[1] for path in INDEX['Import']}
    configs = {
        path.stem
        for folder in folders
        for path in (ROOT / 'configs' / folder).glob('*.py')
        if 'digits' not in path.stem
    }
    assert set(MODELS) == configs


@pytest.mark.parametrize('path', METAFILES)
def test_models_refer_to_what_exists(path):
    metafile = METAFILES[path]
    collections = {collection['Name'] for collection in metafile['Collections']}
    for model in metafile['Models']:
        assert model['In Collection'] in collections
        assert rmt_mm.get_config_path(model['Name']) == str(ROOT / model['Config'])
        assert 'Weights' not in model  # no weights are shipped
        for result in model.get('Results', []):
            assert result['Source'].startswith('published by')


@pytest.mark.parametrize('name', ROWS)
def test_results_are_the_published_ones(name):
    model, row = MODELS[name], ROWS[name]
    data = model['Metadata']
    own = [result for result in model.get('Results', []) if result['Source'].startswith('published by the authors')]
    assert {metric: value for result in own for metric, value in result['Metrics'].items()} == row.metrics
    assert data.get('Parameters published (M)') == row.params
    assert data.get('FLOPs published (G)') == row.gflops
    assert data['Image Size'] == '{}x{}'.format(*row.shape)
    assert data['Batch Size'] == row.batch
    assert data.get('Epochs', data.get('Iterations')) == row.length


def make_tables(root, *args):
    command = [sys.executable, ROOT / 'tools/make_model_table.py', '--root', root, *args]
    return subprocess.run(command, capture_output=True, text=True)


def test_tables_are_up_to_date():
    done = make_tables(ROOT, '--check')
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(name in (ROOT / 'docs/model_zoo.md').read_text() for name in MODELS)


def test_a_change_is_noticed_and_written(tmp_path):
    for path in ('model-index.yml', *METAFILES, 'docs/model_zoo.md'):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / path)
    page, metafile = tmp_path / 'docs/model_zoo.md', tmp_path / 'configs/detection/metafile.yml'
    metafile.write_text(metafile.read_text().replace('box AP: 47.1', 'box AP: 47.2'))
    before = page.read_text()
    done = make_tables(tmp_path, '--check')
    assert done.returncode == 1 and 'out of date' in done.stdout and page.read_text() == before
    assert make_tables(tmp_path).returncode == 0
    assert '| 47.2 |' in page.read_text()
    assert make_tables(tmp_path, '--check').returncode == 0

    page.write_text('<!-- models: tracking -->\n<!-- end of models -->\n')
    done = make_tables(tmp_path)
    assert done.returncode == 1 and 'tracking' in done.stderr and 'Traceback' not in done.stderr
