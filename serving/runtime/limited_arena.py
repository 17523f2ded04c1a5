"""The memory of runs whose size nobody can foretell, because the numbers of a request decide it: an arena with a limit.

A few bytes may ask such a model for gigabytes, although its warm-up took little. So all sessions of such models in a
process take the memory of their runs from one arena of onnxruntime, and a run that needs more than is left ends.
"""

from __future__ import annotations

import threading

import onnxruntime as ort

from normfold.serving.process.memory import resident_bytes

#: What a session's options need so that the session uses the arena, and leaves its weights outside.
OPTIONS = {"session.use_env_allocators": "1", "session.use_device_allocator_for_initializers": "1"}

#: However much the process has already, this part of its limit is for the arena.
LEAST_PART = 8

_lock = threading.Lock()
_limit_bytes = 0


def make(limit_bytes: int) -> None:
    """Make the arena of a process that may have ``limit_bytes``, unless there is one for as many."""
    global _limit_bytes
    with _lock:
        if limit_bytes == _limit_bytes:
            return
        most = max(limit_bytes - resident_bytes(), limit_bytes // LEAST_PART)
        place = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
        ort.create_and_register_allocator(place, ort.OrtArenaCfg(most, -1, -1, -1))
        _limit_bytes = limit_bytes
