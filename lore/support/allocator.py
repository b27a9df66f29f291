"""The C library's allocator on a CPU: a step of training allocates and frees the same large blocks again and again."""

from __future__ import annotations

import ctypes
import os
import platform
from functools import cache

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Of mallopt in glibc's malloc.h."""
NEVER = -1
OWN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES")
"""Variables by which a user chooses the allocator or its settings: those stay."""


@cache
def keep_freed_memory() -> bool:
    """Keeps freed memory in the process, and returns whether it does. By default glibc gives every block above 32 MB back to the
    system, which fills it with zeros, page by page, at the next step. Does nothing outside of glibc."""
    if platform.libc_ver()[0] != "glibc" or any(os.environ.get(name) for name in OWN):
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(M_MMAP_MAX, 0) and libc.mallopt(M_TRIM_THRESHOLD, NEVER))


def give_back_freed_memory() -> None:
    """Gives freed memory back to the system, where keep_freed_memory has kept it: after a model that is no longer used."""
    if keep_freed_memory.cache_info().currsize and keep_freed_memory():
        ctypes.CDLL(None).malloc_trim(0)
