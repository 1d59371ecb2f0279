"""What `import rmt_mm` pulls in. Who may import whom is stated in pyproject.toml, and checked by `make lint`."""

import subprocess
import sys

from support import ROOT


def test_import_pulls_in_no_command_line_and_no_library():
    code = (
        'import sys, mmengine, mmcv; before = set(sys.modules); import rmt_mm; rmt_mm.RMT; '
        "print(*sorted(name for name in set(sys.modules) - before if name.startswith('rmt_mm.tools') "
        "or name.split('.')[0] in ('argparse', 'mmdet', 'mmseg', 'mmpretrain', 'onnx', 'onnxruntime', 'openvino')))"
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ''
