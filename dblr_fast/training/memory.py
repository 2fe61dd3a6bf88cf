"""What a training step frees, kept for the next one."""

from __future__ import annotations

import ctypes

# glibc's malloc.h
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Has glibc keep memory that is freed, for the rest of this process; returns whether it will.

    As it comes, it gives large blocks back to the system, which clears every page again when the next step asks
    for them. Other C libraries are left as they are.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, 2**31 - 1))
