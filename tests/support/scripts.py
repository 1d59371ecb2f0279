"""Run Python scripts as processes that fork from one that has imported torch, and so start in a second.

The import of torch and of what OpenMMLab needs takes ten. The libraries and rmt_mm are imported by the script itself,
so that nothing is registered that it does not register. Runners are sped up as in the tests: see quick.py.
"""

import functools
import gc
import importlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

import mmengine.runner
import torch

HEAVY = (
    *('torch.distributed.optim', 'torchvision', 'mmcv.ops', 'matplotlib.pyplot', 'pandas'),
    *('scipy.optimize', 'sklearn.datasets', 'sklearn.gaussian_process', 'pycocotools.coco'),
)


def run_script(*command, cwd=None, env=None) -> subprocess.CompletedProcess:
    """Run a Python script as ``subprocess.run([sys.executable, *command], capture_output=True, text=True)`` would.

    Where there is a GPU, that is what it does: CUDA cannot be used after a fork from a process that imports mmengine.
    ``env`` does not reach what is read at the import of the heavy packages.
    """
    command = list(map(str, command))
    if torch.cuda.is_available():
        command = [sys.executable, *command]
        return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env, check=False)
    with tempfile.TemporaryDirectory() as folder:
        outputs = [f'{folder}/stdout', f'{folder}/stderr']
        request = dict(
            command=command, cwd=str(cwd or os.getcwd()), env=dict(os.environ if env is None else env), outputs=outputs
        )
        server = _server()
        print(json.dumps(request), file=server.stdin, flush=True)
        status = int(server.stdout.readline())
        return subprocess.CompletedProcess(command, status, *(Path(path).read_text() for path in outputs))


@functools.cache
def _server() -> subprocess.Popen:
    """Start the process that scripts fork from; it ends with this one."""
    command = [sys.executable, __file__]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _serve() -> dict:
    """Fork a child for each request and print its exit status; return the request in the child."""
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            return json.loads(line)
        status = os.waitpid(child, 0)[1]
        print(os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status), flush=True)
    sys.exit()


def _become(request: dict) -> None:
    """Turn this process into one that runs the script; its end is the interpreter's own."""
    places = [(os.devnull, os.O_RDONLY), *((path, os.O_WRONLY | os.O_CREAT) for path in request['outputs'])]
    for descriptor, (path, flags) in enumerate(places):
        os.dup2(os.open(path, flags), descriptor)
    os.chdir(request['cwd'])
    os.environ.clear()
    os.environ.update(request['env'])
    script = request['command'][0]
    sys.argv, sys.path[0] = request['command'], os.path.dirname(os.path.abspath(script))
    runpy.run_path(script, run_name='__main__')


if __name__ == '__main__':
    for name in HEAVY:
        try:
            importlib.import_module(name)
        except ImportError:
            pass  # the stack lacks it
    from quick import speed_up_runners

    speed_up_runners()
    mmengine.runner.runner.collect_env()
    gc.collect()
    gc.freeze()  # a child need not look through these objects at its end, which takes seconds
    _become(_serve())
