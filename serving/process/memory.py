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
import time
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
    """The memory of a process that is in RAM; 0 where the system does not say."""
    try:
        pages = Path(f"/proc/{process}/statm").read_text(encoding="ascii").split()[1]
    except (OSError, IndexError):
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


#: A collection of all objects should not take longer, in seconds of processor time: nobody is answered meanwhile.
COLLECTION_SECONDS = 0.01
#: New objects before a collection of the youngest, those collections before one of the middle generation, and these
#: before one of all objects. Python's 700, 10 and 10 let 70,000 new objects come together, which take 40 ms; since
#: Python 3.13 it is 2,000 in place of 700.
THRESHOLDS = 700, 10, 2
#: Excluded objects that may stay although nothing needs them; their memory is some megabytes.
FEW_LEFT = 10_000


class _Collections:
    """Keeps collections of all objects short, however many objects clients keep alive: 60,000 calls took 0.4 s.

    What a long one has left is excluded from the next ones, until ``collect`` is called. Calls that end are freed
    without any collection.
    """

    def __init__(self) -> None:
        self._begun = 0.0
        #: The objects that were excluded from the first, and whether there are others.
        self._settled, self._more = 0, False

    def settle(self) -> None:
        """Exclude all objects that exist now from later garbage collections: they stay, and visiting them takes 50 ms.

        From now on no collection takes long, whatever clients do.
        """
        gc.freeze()
        self._settled = gc.get_freeze_count()
        gc.set_threshold(*THRESHOLDS)
        if self.note not in gc.callbacks:
            gc.callbacks.append(self.note)

    def note(self, phase: str, info: dict[str, int]) -> None:
        """Called by Python before and after each collection."""
        if info["generation"] < 2:
            return
        if phase == "start":
            self._begun = time.thread_time()
        elif time.thread_time() - self._begun > COLLECTION_SECONDS:
            gc.freeze()
            self._more = True

    def collect(self) -> None:
        """Collect what collections have left out since ``settle``; for a server that is idle.

        That is done once there are not many more of these objects than at first. It takes a fifth of a second, and is
        left out where nearly all of them have been freed without it.
        """
        more = gc.get_freeze_count() - self._settled
        if self._more and more < FEW_LEFT:
            self._more = False
        if self._more and more < self._settled:
            gc.unfreeze()
            gc.collect()
            gc.freeze()
            self._more = False  # last: this collection is a long one itself


_COLLECTIONS = _Collections()
settle, collect = _COLLECTIONS.settle, _COLLECTIONS.collect
