"""The shell scripts pass on their arguments; a stand-in prints the command that torchrun or srun would get."""

import os
import socket
import subprocess
import sys

import pytest


def call(root, tmp_path, script, *args, **variables):
    for name in ('python', 'srun'):
        stand_in = tmp_path / name
        stand_in.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
        stand_in.chmod(0o755)
    env = dict(os.environ, PATH=f'{tmp_path}:{os.environ["PATH"]}', **variables)
    for name in ('PYTHON', 'SRUN_ARGS', 'PORT', 'NNODES', 'NODE_RANK', 'MASTER_ADDR'):
        if name not in variables:
            env.pop(name, None)
    return subprocess.run(['bash', root / 'tools' / script, *args], capture_output=True, text=True, env=env)


@pytest.mark.parametrize(
    'script, few',
    [('dist_train.sh', ['config.py']), ('dist_test.sh', ['config.py', 'a.pth']), ('slurm_train.sh', ['gpu', 'rmt'])],
)
def test_usage(root, tmp_path, script, few):
    done = call(root, tmp_path, script, *few)
    assert done.returncode == 2 and done.stderr.startswith('usage:') and script in done.stderr


def test_dist_train(root, tmp_path):
    done = call(
        root,
        tmp_path,
        'dist_train.sh',
        'my config.py',
        '8',
        '--cfg-options',
        'a="x y"',
        NNODES='2',
        NODE_RANK='1',
        MASTER_ADDR='10.0.0.1',
        PORT='29511',
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        '-m',
        'torch.distributed.run',
        '--nnodes=2',
        '--node-rank=1',
        '--master-addr=10.0.0.1',
        '--master-port=29511',
        '--nproc-per-node=8',
        str(root / 'tools/train.py'),
        'my config.py',
        '--launcher',
        'pytorch',
        '--cfg-options',
        'a="x y"',
    ]


def test_one_machine_takes_a_free_port(root, tmp_path):
    done = call(root, tmp_path, 'dist_train.sh', 'config.py', '2')
    assert done.stdout.splitlines()[:5] == [
        '-m',
        'torch.distributed.run',
        '--standalone',
        '--local-addr=127.0.0.1',
        '--nproc-per-node=2',
    ]


def test_several_machines_meet_at_29500(root, tmp_path):
    done = call(root, tmp_path, 'dist_train.sh', 'config.py', '2', NNODES='2', NODE_RANK='1', MASTER_ADDR='10.0.0.1')
    assert '--master-port=29500' in done.stdout.splitlines() and '--standalone' not in done.stdout


@pytest.mark.parametrize('script, args', [('dist_train.sh', ['a.py', '2']), ('dist_test.sh', ['a.py', 'a.pth', '2'])])
def test_a_port_that_is_taken(root, tmp_path, script, args):
    with socket.create_server(('', 0)) as server:
        port = str(server.getsockname()[1])
        done = call(root, tmp_path, script, *args, PORT=port, PYTHON=sys.executable)
        assert done.returncode == 1 and done.stderr.startswith(f'error: port {port} of this machine is taken')
        # PORT is a port of the machine of rank 0, so that it may be taken on this one.
        assert call(root, tmp_path, script, *args, PORT=port, NNODES='2', NODE_RANK='1').returncode == 0


def test_a_python_without_torch(root, tmp_path):
    for name in ('dist_train.sh', 'launch.sh'):
        (tmp_path / 'repository/tools').mkdir(parents=True, exist_ok=True)
        (tmp_path / 'repository/tools' / name).write_text((root / 'tools' / name).read_text())
    made = tmp_path / 'repository/.venv/bin/python'
    lacks_torch = tmp_path / 'python'
    lacks_torch.write_text('#!/bin/sh\nexit 1\n')
    lacks_torch.chmod(0o755)
    env = {key: value for key, value in os.environ.items() if key not in ('PYTHON', 'PORT', 'NNODES')}
    command = ['bash', tmp_path / 'repository/tools/dist_train.sh', 'a.py', '2']

    def run():
        return subprocess.run(command, capture_output=True, text=True, env=dict(env, PATH=f'{tmp_path}:{env["PATH"]}'))

    done = run()
    assert done.returncode == 1 and done.stderr.startswith('error: the active python has no torch')
    made.parent.mkdir(parents=True)
    made.write_text('#!/bin/sh\necho the one of make setup\n')
    made.chmod(0o755)
    assert run().stdout == 'the one of make setup\n'


def test_dist_test(root, tmp_path):
    done = call(root, tmp_path, 'dist_test.sh', 'config.py', 'a.pth', '2', '--tta')
    assert done.stdout.splitlines()[-7:] == [
        '--nproc-per-node=2',
        str(root / 'tools/test.py'),
        'config.py',
        'a.pth',
        '--launcher',
        'pytorch',
        '--tta',
    ]


def test_slurm_train(root, tmp_path):
    done = call(
        root,
        tmp_path,
        'slurm_train.sh',
        'gpu',
        'rmt',
        'config.py',
        '--resume',
        GPUS='16',
        GPUS_PER_NODE='8',
        SRUN_ARGS='--time=10:00 --qos=low',
    )
    assert done.stdout.splitlines() == [
        '--partition=gpu',
        '--job-name=rmt',
        '--gres=gpu:8',
        '--ntasks=16',
        '--ntasks-per-node=8',
        '--cpus-per-task=5',
        '--kill-on-bad-exit=1',
        '--time=10:00',
        '--qos=low',
        'python',
        '-u',
        str(root / 'tools/train.py'),
        'config.py',
        '--launcher',
        'slurm',
        '--resume',
    ]
