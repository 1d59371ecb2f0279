"""Check every import in the package against the table of layers in CONTRIBUTING.md."""

import ast
import subprocess
import sys

import pytest

from support import ROOT

GROUND = {
    'errors',
    'version',
    'compat',
    'arch',
    'allocator',
    'config_path',
    'safe_load',
    'safe_types',
    'safe_unpickler',
}
# Module -> modules of the package that it may import. commands may import everything, and nothing but __main__ imports
# it; cli may import all but commands, and only commands imports it.
ALLOWED = {
    **{name: {'errors', 'version', 'arch', 'safe_types', 'safe_unpickler'} for name in GROUND},
    'checkpoints': GROUND,
    'training': GROUND,
    'classification': GROUND,
    'backbone': GROUND | {'checkpoints'},
    'conversion': GROUND | {'backbone', 'checkpoints'},
    'analysis': GROUND | {'backbone'},
    'deployment': GROUND | {'backbone'},
    'flops': GROUND | {'backbone'},
    'report': GROUND,
    'reference': GROUND,
    'golden': GROUND | {'backbone', 'checkpoints'},
    'webui': GROUND | {'analysis', 'backbone', 'cli', 'training'},
    '__main__': {'commands'},
    '__init__': GROUND | {'backbone', 'checkpoints', 'training'},
}
MODULES = sorted(ROOT.glob('rmt_mm/**/*.py'))


def imports(path):
    """Yield the modules of the package that a module imports when it runs, as dotted names below rmt_mm."""
    package = path.relative_to(ROOT / 'rmt_mm').parent.parts
    tree = ast.parse(path.read_text())
    for_types = [n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test) == 'TYPE_CHECKING']
    not_run = {id(inner) for node in for_types for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in not_run:
            continue
        if isinstance(node, ast.ImportFrom) and node.level:
            base = (*package[: len(package) - node.level + 1], *(node.module or '').split('.'))
            base = [part for part in base if part]
            yield from ['.'.join(base)] if node.module else ['.'.join((*base, alias.name)) for alias in node.names]
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]
            yield from (name[len('rmt_mm.') :] for name in names if name.startswith('rmt_mm.'))


@pytest.mark.parametrize('path', MODULES, ids=lambda path: str(path.relative_to(ROOT / 'rmt_mm')))
def test_direction(path):
    room = path.relative_to(ROOT / 'rmt_mm').parts[0].replace('.py', '')
    for name in imports(path):
        target = name.split('.')[0]
        if target == room or room == 'commands' or (room == 'cli' and target != 'commands'):
            continue
        assert target in ALLOWED[room], f'{room} may not import rmt_mm.{name}'
        if (room, target) == ('backbone', 'checkpoints'):
            assert name == 'checkpoints', 'the backbone imports the face of checkpoints only'


def test_every_room_is_listed():
    rooms = {path.relative_to(ROOT / 'rmt_mm').parts[0].replace('.py', '') for path in MODULES}
    assert rooms == {*ALLOWED, 'cli', 'commands'}


def test_import_pulls_in_no_command_line_and_no_library():
    code = (
        'import sys, mmengine, mmcv; before = set(sys.modules); import rmt_mm; rmt_mm.RMT; '
        "print(*sorted(name for name in set(sys.modules) - before if name.startswith('rmt_mm.tools.cli') "
        "or name.split('.')[0] in ('argparse', 'mmdet', 'mmseg', 'mmpretrain', 'onnx', 'onnxruntime', 'openvino')))"
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ''
