"""Reuse the memory of feature maps on the CPU: how glibc's malloc treats large blocks that are freed."""

import ctypes
import os
import platform

# Parameters of mallopt(3), from glibc's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Make glibc's malloc reuse the memory of tensors of any size, in the whole process, and return whether it will.

    Malloc maps blocks above a threshold of at most 32 MiB anew and returns them to the system when they are freed. The
    kernel then fills them with zeros, page by page, before they are written: a tenth of a forward pass. Call this in
    programs that run models on the CPU; the tools that test and predict do.

    Does nothing on another C library, and if variables of the environment (MALLOC_*) set the allocator already.
    """
    if platform.libc_ver()[0] != 'glibc' or any(name.startswith('MALLOC_') for name in os.environ):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all([mallopt(M_MMAP_MAX, 0), mallopt(M_TRIM_THRESHOLD, 2**31 - 1), mallopt(M_TOP_PAD, 2**28)])
