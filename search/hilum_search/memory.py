"""Memory that a training step frees is kept for the next step, instead of being given back and cleared again.

A step of a 3D network allocates and frees gigabytes. glibc maps every large block anew, and the kernel clears each page
of it; kept in the heap, in large pages, the same memory serves every step.
"""

from __future__ import annotations

import ctypes
import os
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Ask glibc and torch for it, for this whole process; whether they were asked. To be called before torch computes.

    For a process that does nothing but train: what it once used stays its own until it ends.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another libc
        return False
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch reads it when it first allocates
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, _NEVER))
