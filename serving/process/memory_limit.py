"""How much memory this process may have, and the shares of it that large runs reserve."""

from __future__ import annotations

import contextlib
import math
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from normfold.serving.process.cpus import CGROUP_ROOT, PROC_CGROUP, cgroup_folders
from normfold.serving.process.memory import resident_bytes

#: The part of the machine's or the cgroup's memory that a server takes where nobody sets its limit. The rest is for the
#: system and other processes; a container that exceeds its limit is killed.
PART = 0.8


def available_bytes(root: Path = CGROUP_ROOT, own: Path = PROC_CGROUP) -> int:
    """The memory of the machine or, if that is less, the limit of this process's cgroup (v2 and v1)."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for folder in cgroup_folders("memory", root, own):
        for name in ("memory.max", "memory.limit_in_bytes"):
            with contextlib.suppress(OSError, ValueError):
                limits.append(int((folder / name).read_text(encoding="ascii")))
    return min(limit for limit in limits if limit > 0)


def default_limit_bytes(processes: int = 1) -> int:
    """The memory that each of ``processes`` may have where nobody sets it."""
    return int(available_bytes() * PART) // processes


class MemoryBudget:
    """The memory for large runs: the limit of the process less what it has without them, its *base*."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._base, self._reserved = 0, 0.0
        #: The memory of the models when the base was taken.
        self._models = 0
        self._changed = threading.Condition()

    def settle(self, models_bytes: int, busy: bool) -> None:
        """Take the memory that the process has now for its base; its models have ``models_bytes`` of it.

        A ``busy`` process has memory of requests, too, which says nothing of the next ones. Its base is what it was
        before, and by how much the models have grown since.
        """
        with self._changed:
            base = resident_bytes()
            if self._base and (busy or self._reserved):
                base = min(base, max(0, self._base + models_bytes - self._models))
            self._base, self._models = base, models_bytes

    def fits(self, size: float) -> bool:
        """Whether a run of ``size`` bytes fits beside the base, if need be after a look at what the base is now."""
        if size > self.room_bytes:
            with self._changed:
                self._base = min(self._base, resident_bytes())
        return size <= self.room_bytes

    @property
    def room_bytes(self) -> int:
        """The memory for all large runs together."""
        return max(0, self.limit_bytes - self._base)

    @contextlib.contextmanager
    def reserved(self, size: float) -> Iterator[None]:
        """Hold ``size`` bytes of the room; waits until other runs have left so much. A run alone never waits."""
        with self._changed:
            self._changed.wait_for(lambda: not self._reserved or self._reserved + size <= self.room_bytes)
            self._reserved += size
        try:
            yield
        finally:
            with self._changed:
                self._reserved -= size
                if not math.isfinite(self._reserved) or self._reserved < 1:
                    self._reserved = 0.0
                self._changed.notify_all()
