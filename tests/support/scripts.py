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
import select
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Optional

import mmengine.runner
import torch

HEAVY = (
    *('torch.distributed.optim', 'torchvision', 'mmcv.ops', 'matplotlib.pyplot', 'pandas'),
    *('scipy.optimize', 'sklearn.datasets', 'sklearn.gaussian_process', 'pycocotools.coco'),
)


def run_script(*command, cwd=None, env=None) -> subprocess.CompletedProcess:
    """Run a Python script as ``subprocess.run([sys.executable, *command], capture_output=True, text=True)`` would.

    ``env`` does not reach what is read at the import of the heavy packages.
    """
    return _server().run(command, cwd, env)


class ForkServer:
    """A process from which scripts fork, one at a time; it starts with the first of them and ends with this process.

    Where there is a GPU, scripts are started in the ordinary way: CUDA cannot be used after a fork from a process that
    imports mmengine.

    Args:
        modules (str): what it imports besides :data:`HEAVY`.
        own_session (bool): whether a script that takes too long can be killed; Ctrl-C then does not reach it.
    """

    def __init__(self, *modules: str, own_session: bool = False) -> None:
        self._modules, self._own_session = modules, own_session
        self._process: Optional[subprocess.Popen] = None

    def run(self, command, cwd=None, env=None, timeout=None) -> subprocess.CompletedProcess:
        """Run a script.

        Raises:
            subprocess.TimeoutExpired: it takes longer than ``timeout`` seconds; it is killed with all that it started.
        """
        command = list(map(str, command))
        if torch.cuda.is_available():
            ordinary = dict(capture_output=True, text=True, cwd=cwd, env=env, timeout=timeout, check=False)
            return subprocess.run([sys.executable, *command], **ordinary)
        if self._process is None:
            pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=self._own_session)
            self._process = subprocess.Popen([sys.executable, __file__, *self._modules], text=True, **pipes)
        with tempfile.TemporaryDirectory() as folder:
            outputs = [f'{folder}/stdout', f'{folder}/stderr']
            env = dict(os.environ if env is None else env)
            request = dict(command=command, cwd=str(cwd or os.getcwd()), env=env, outputs=outputs)
            print(json.dumps(request), file=self._process.stdin, flush=True)
            if timeout and not select.select([self._process.stdout], [], [], timeout)[0]:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process = None
                raise subprocess.TimeoutExpired(command, timeout)
            status = int(self._process.stdout.readline())
            return subprocess.CompletedProcess(command, status, *(Path(path).read_text() for path in outputs))


@functools.cache
def _server() -> ForkServer:
    return ForkServer()


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
    for name in (*HEAVY, *sys.argv[1:]):
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
