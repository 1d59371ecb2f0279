"""Reuse the memory of feature maps on the CPU: how glibc's malloc treats large blocks that are freed."""

import ctypes
import os
import platform

# Parameters of mallopt(3), from glibc's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
# The largest value that malloc itself gives its threshold of mapped blocks (DEFAULT_MMAP_THRESHOLD_MAX), less the
# block's own header and alignment.
MAX_DYNAMIC_THRESHOLD = 2**25 - 2**16


def raise_dynamic_threshold() -> None:
    """Have glibc's malloc reuse blocks of up to 32 MiB, by freeing one of that size.

    Malloc maps blocks above a threshold anew and returns them to the system when they are freed. The kernel then fills
    them with zeros, page by page, before they are written. The threshold is the size of the largest mapped block freed
    so far, up to 32 MiB, and malloc keeps free memory of twice the threshold. So what the process has freed before
    decides whether feature maps are reused. After this call they are, as long as no more than 64 MiB are free at once.

    Has no effect where variables of the environment (MALLOC_*) fix the threshold, and on another C library.
    """
    bytearray(MAX_DYNAMIC_THRESHOLD)  # freed at once


def keep_freed_memory() -> bool:
    """Make glibc's malloc reuse the memory of tensors of any size, for tools, and return whether it will.

    Does nothing on another C library, and if variables of the environment (MALLOC_*) set the allocator already.
    """
    if platform.libc_ver()[0] != 'glibc' or any(name.startswith('MALLOC_') for name in os.environ):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all([mallopt(M_MMAP_MAX, 0), mallopt(M_TRIM_THRESHOLD, 2**31 - 1), mallopt(M_TOP_PAD, 2**28)])
