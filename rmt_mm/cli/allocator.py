"""Keep freed memory in the process, for tools that compute on the CPU."""

import ctypes
import os
import platform

# Parameters of mallopt(3), from glibc's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Make glibc's malloc reuse the memory of large tensors, and return whether it will.

    By default it maps every block above 32 MiB anew and returns it when it is freed. Feature maps of large images are
    such blocks: each is then filled with zeros by the kernel, page by page, before it is written.

    Does nothing on another C library, and if variables of the environment (MALLOC_*) set the allocator already.
    """
    if platform.libc_ver()[0] != 'glibc' or any(name.startswith('MALLOC_') for name in os.environ):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all([mallopt(M_MMAP_MAX, 0), mallopt(M_TRIM_THRESHOLD, 2**31 - 1), mallopt(M_TOP_PAD, 2**28)])
