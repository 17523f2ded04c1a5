"""What the process keeps of memory that was freed, so that the next request need not ask the system for it again.

A message of megabytes is allocated and freed with every request. glibc gives such blocks back to the system, and the
system hands them out again as pages of zeros, a fault for each 4 KB: at 4 MB that costs as much as copying them.
"""

from __future__ import annotations

import ctypes
import gc
import os

#: glibc's names in malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3

#: Blocks up to this are cut from memory that the process has; the most that glibc takes for it.
BLOCK_BYTES = 32 << 20

#: So much free memory stays with the process.
KEPT_BYTES = 64 << 20


def keep_freed() -> bool:
    """Keep freed memory, where the C library is glibc and the environment says nothing else; whether it is kept."""
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, BLOCK_BYTES)) and bool(mallopt(M_TRIM_THRESHOLD, KEPT_BYTES))


def settle() -> None:
    """Take what is loaded by now out of every later garbage collection: it stays, and to visit it takes 50 ms."""
    gc.freeze()
