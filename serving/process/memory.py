"""Keep freed memory in the process, so that the next request need not ask the system for it again.

Every request allocates and frees its message, which may have megabytes. glibc gives blocks of this size back to the
system. The system hands them out again as pages of zeros, with a page fault for each 4 KB: for a message of 4 MB that
costs as much as copying it.
"""

from __future__ import annotations

import ctypes
import gc
import os

#: Their names in glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3

#: Blocks up to this size come from memory that the process already has; the largest value that glibc accepts.
BLOCK_BYTES = 32 << 20

#: Free memory up to this size stays with the process.
KEPT_BYTES = 64 << 20


def keep_freed() -> bool:
    """Keep freed memory if the C library is glibc and no environment variable sets this; whether it is kept."""
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, BLOCK_BYTES)) and bool(mallopt(M_TRIM_THRESHOLD, KEPT_BYTES))


def settle() -> None:
    """Exclude all objects that exist now from later garbage collections: they stay, and visiting them takes 50 ms."""
    gc.freeze()
