"""Two processes of one thread each, which train a backbone on the halves of a batch.

    python tests/two_processes.py FOLDER SETTINGS    compare their gradients with the mean of the halves
    python tests/two_processes.py FOLDER death       the second process is killed

Exit status 0 if both ended as they should. It forks, which a process that has computed gradients cannot.
"""

import os
import signal
import sys
import traceback

import torch
import torch.distributed as dist
from torch import nn

from rmt_mm import RMT
from rmt_mm.training.faults import explaining_faults

from support.archs import LEAST_ARCH

SETTINGS = dict(
    plain={},
    frozen=dict(frozen_stages=2),
    recomputed=dict(with_cp=True, drop_path_rate=0.3),
    unused=dict(out_indices=(0, 3)),
)


def gradients(model, backbone, rank):
    """Train a step on a half of the batch; an image of one rank is empty. Return the backbone's gradients."""
    torch.manual_seed(rank)
    image = torch.zeros(2, 3, 40, 56) if rank else torch.rand(2, 3, 40, 56)
    model(image)[-1].square().mean().backward()
    return {name: parameter.grad for name, parameter in backbone.named_parameters()}


def build(settings):
    torch.manual_seed(7)
    return RMT(LEAST_ARCH, **settings).train()


def in_two_processes(work):
    """Call ``work(rank)`` in two forks of one thread each; return their exit statuses, -N for a signal."""
    children = []
    for rank in range(2):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                torch.set_num_threads(1)
                work(rank)
                status = 0
            finally:  # os._exit: threads of gloo can abort an interpreter that ends
                if status:
                    traceback.print_exc()
                sys.stderr.flush()
                os._exit(status)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def join(rank, folder):
    dist.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2)


def compare(folder, settings):
    def work(rank):
        join(rank, folder)
        backbone = build(SETTINGS[settings])
        got = gradients(nn.parallel.DistributedDataParallel(backbone), backbone, rank)
        halves = []
        for half in range(2):
            alone = build(SETTINGS[settings])
            halves.append(gradients(alone, alone, half))
        assert any(gradient is not None and gradient.any() for gradient in got.values())
        for name, gradient in got.items():
            first, second = (half[name] for half in halves)
            if gradient is None or first is None:
                assert gradient is None and first is None, name
            else:
                torch.testing.assert_close(gradient, (first + second) / 2, rtol=1e-6, atol=1e-8, msg=name)
        dist.barrier()

    return in_two_processes(work) == [0, 0]


def kill_one(folder):
    def work(rank):
        join(rank, folder)
        model = nn.parallel.DistributedDataParallel(build({}))
        if rank:
            os.kill(os.getpid(), signal.SIGKILL)
        with explaining_faults('WORK'):
            model(torch.rand(2, 3, 40, 56))[-1].mean().backward()

    return in_two_processes(work) == [1, -signal.SIGKILL]


if __name__ == '__main__':
    place, what = sys.argv[1:]
    sys.exit(not (kill_one(place) if what == 'death' else compare(place, what)))
