"""The memory of this process: how much it has, and what happens to freed memory.

Freed memory is kept, so that the next request need not ask the system for it again; a server without requests gives it
back.

Every request allocates and frees its message, which may have megabytes. glibc gives blocks of this size back to the
system. The system hands them out again as pages of zeros, with a page fault for each 4 KB: for a message of 4 MB that
costs as much as copying it.
"""

from __future__ import annotations

import ctypes
import gc
import os
from pathlib import Path

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


_MALLINFO = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")


class _Mallinfo(ctypes.Structure):
    """glibc's ``struct mallinfo2``."""

    _fields_ = [(name, ctypes.c_size_t) for name in _MALLINFO]


def allocated_bytes() -> int | None:
    """The bytes that the C library has handed out and not got back; None where it does not count (glibc does)."""
    mallinfo = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo is None:
        return None
    mallinfo.restype = _Mallinfo
    found = mallinfo()
    return int(found.uordblks + found.hblkhd)


def give_back() -> bool:
    """Give freed memory back to the system; whether there was any. It takes a millisecond for each 10 MB."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return bool(trim(0)) if trim is not None else False


def resident_bytes(process: str = "self") -> int:
    """The memory of a process that is in RAM; 0 where the system does not tell."""
    try:
        pages = Path(f"/proc/{process}/statm").read_text(encoding="ascii").split()[1]
    except (OSError, IndexError):
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def settle() -> None:
    """Exclude all objects that exist now from later garbage collections: they stay, and visiting them takes 50 ms."""
    gc.freeze()
