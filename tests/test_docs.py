"""The files that README and docs name exist, and README's program and table are right."""

import re

import pytest
import yaml

from rmt_mm.arch import ARCHS

from support import ROOT

PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]
# Check only names in these folders: other paths in a page may be examples of the reader's own files.
FOLDERS = ('configs', 'docs', 'requirements', 'rmt_mm', 'tests', 'tools')


@pytest.mark.parametrize('page', PAGES, ids=lambda path: path.name)
def test_named_files_exist(page):
    text = page.read_text()
    named = set(re.findall(rf'(?<![\w/.-])((?:{"|".join(FOLDERS)})/[\w./-]+\.(?:py|sh|md|txt|npz))', text))
    links = {link.split('#')[0] for link in re.findall(r'\]\(([^)\s]+)\)', text) if not link.startswith('http')}
    missing = [name for name in named if not (ROOT / name).exists()]
    missing += [link for link in links if link and not (page.parent / link).exists()]
    assert not missing


def test_python_of_the_readme(capsys):
    text = (ROOT / 'README.md').read_text()
    (program,) = [block for block in re.findall(r'```python\n(.*?)```', text, re.DOTALL) if 'import torch' in block]
    exec(program, {})
    assert capsys.readouterr().out.strip() == program.split('# ')[-1].strip()


def test_models_of_the_readme():
    """Its table repeats published figures of the metafiles."""
    models = {}
    for path in yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']:
        for model in yaml.safe_load((ROOT / path).read_text())['Models']:
            metrics = [result['Metrics'] for result in model.get('Results', [])]
            models[model['Name']] = model['Metadata'], {k: v for each in reversed(metrics) for k, v in each.items()}
    rows = re.findall(r'^\| `(tiny|small|base|large)` \|(.*)\|$', (ROOT / 'README.md').read_text(), re.MULTILINE)
    assert [name for name, _ in rows] == ['tiny', 'small', 'base', 'large']
    for name, cells in rows:
        params, gflops, top1, masks, upernet, channels = (
            re.sub(r'\[(.*?)\]\(.*?\)', r'\1', cell).strip() for cell in cells.split('|')
        )
        data, metrics = models[f'rmt-{name}_8xb128_in1k']
        assert params == f'{data["Parameters"] / 1e6:.1f} M' and float(gflops) == data['FLOPs published (G)']
        assert float(top1) == metrics['Top 1 Accuracy']
        metrics = models[f'mask-rcnn_rmt-{name[0]}_fpn_amp-1x_coco'][1]
        assert masks == f'{metrics["box AP"]} / {metrics["mask AP"]}'
        if name != 'tiny':  # of which the authors report none
            assert float(upernet) == models[f'rmt-{name}_upernet_8xb2-amp-160k_ade20k-512x512'][1]['mIoU']
        assert tuple(map(int, channels.split(','))) == ARCHS[name].embed_dims
