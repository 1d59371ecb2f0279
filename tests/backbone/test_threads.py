"""One model in many threads, its copies, and a fork after it was used: the outputs are those of one call at a time."""

import copy
import os
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from rmt_mm import RMT

from support.archs import SMALL_ARCH

SIZES = [(32, 32), (45, 33), (64, 96), (7, 130), (1, 1), (100, 20)]


@pytest.fixture(scope='module')
def model():
    torch.manual_seed(0)
    return RMT(SMALL_ARCH).eval()


def compute(model, number):
    size = SIZES[number % len(SIZES)]
    image = torch.rand(1 + number % 2, 3, *size, generator=torch.Generator().manual_seed(number))
    with torch.no_grad():
        return model(image)


@pytest.fixture(scope='module')
def expected(model):
    return [compute(model, number) for number in range(2 * len(SIZES))]


def same(outs, expected):
    return len(outs) == len(expected) and all(map(torch.equal, outs, expected))


def test_eight_threads_and_several_sizes(model, expected):
    fresh = copy.deepcopy(model)  # whose tables may have been built, but not by another thread of the test
    numbers = list(range(len(expected))) * 6
    with ThreadPoolExecutor(8) as pool:
        for number, outs in zip(numbers, pool.map(lambda number: compute(fresh, number), numbers)):
            assert same(outs, expected[number]), number


@pytest.mark.parametrize('make', [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_after_use(make, model, expected):
    compute(model, 0)
    made = make(model)
    assert all(same(compute(made, number), outs) for number, outs in enumerate(expected))
    with torch.no_grad():
        made.norm3.weight.fill_(7)
    assert same(compute(model, 0), expected[0]), 'a copy shares weights with the model'


@pytest.mark.skipif(torch.cuda.is_available(), reason='CUDA takes no fork')
def test_a_fork_after_use(model):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads of OpenMP do not survive a fork, and their number changes the order of sums
    try:
        expected = [compute(model, number) for number in range(len(SIZES))]
        child = os.fork()
        if child == 0:
            os._exit(0 if all(same(compute(model, number), outs) for number, outs in enumerate(expected)) else 3)
        assert os.waitpid(child, 0)[1] == 0
    finally:
        torch.set_num_threads(threads)
