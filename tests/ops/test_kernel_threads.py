"""The operators in C++ compute in torch's threads."""

import pytest

from support.kernels import run_cases

CALLS = {
    'masa': 'masa.attend_lines(*qkv, (-0.1,) * 4, 2)',
    'dwconv': 'depthwise.dwconv(x, weight, bias)',
}


@pytest.mark.usefixtures('library')
@pytest.mark.parametrize('call', CALLS)
def test_other_threads_compute_too(call):
    """Compare processor time of the process and of the calling thread.

    With at::parallel_for and a compiler that is not told of OpenMP, every call is serial, and all results are right.
    """
    code = f"""
import time, torch
from rmt_mm.ops import depthwise, masa

qkv, x = torch.randn(3, 1, 64, 64, 4, 16), torch.randn(1, 64, 64, 64)
weight, bias = torch.randn(64, 1, 3, 3), torch.randn(64)
ratios = []
for threads in (1, 2):
    torch.set_num_threads(threads)
    own, all_threads = time.thread_time(), time.process_time()
    for _ in range(20):
        {CALLS[call]}
    ratios.append((time.process_time() - all_threads) / (time.thread_time() - own))
assert ratios[0] < 1.1 < 1.4 < ratios[1], ratios
"""
    run_cases(code, OMP_WAIT_POLICY='passive')  # a thread that waits must not count as one that computes
