import pytest
import torch

from rmt_mm.ops import build


@pytest.fixture(scope='module')
def library():
    """Build the kernels in C++, and compute on one thread."""
    try:
        build.find_compiler()
    except build.BuildError as error:
        if build.find_library() is None:
            pytest.skip(str(error))
    build.build()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
