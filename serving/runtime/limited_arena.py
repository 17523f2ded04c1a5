"""The memory of runs whose size nobody can foretell: an arena with a limit.

Either the numbers of a request decide it, and a few bytes may ask for gigabytes; or nobody knows an input that the
model takes, so that its runs could not be measured. All sessions of such models in a process take the memory of their
runs from one arena of onnxruntime, and a run that needs more than is left ends.
"""

from __future__ import annotations

import threading

import numpy as np
import onnxruntime as ort

from normfold.serving.process.memory import resident_bytes
from normfold.serving.runtime.devices import CPU_PROVIDER

#: Options with which a session uses the arena for its runs, and keeps its weights outside.
OPTIONS = {"session.use_env_allocators": "1", "session.use_device_allocator_for_initializers": "1"}

#: y = -x for one number, as an ONNX file.
_SMALLEST = (
    b'\x08\x08:4\n\r\n\x01x\x12\x01y"\x03Neg:\x00\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01'
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\x11"
)

_ONE = {"x": np.zeros(1, np.float32)}

#: The arena has at least 1 / LEAST_PART of the process's limit, however much the process has already.
LEAST_PART = 8

_lock = threading.Lock()
_limit_bytes = 0
#: A session with ``_SMALLEST`` in the arena; None: there is no arena.
_smallest: ort.InferenceSession | None = None


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
        _take_first_piece()


def give_back() -> None:
    """Give back what small runs have left in the arena for the next ones, if there is an arena."""
    if _smallest is not None:
        options = ort.RunOptions()
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        _smallest.run(["y"], _ONE, options)


def _take_first_piece() -> None:
    """Let a run of one number be the first in the arena, which keeps the memory of its first run for good."""
    global _smallest
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1  # otherwise the session keeps a thread for each core
    for name, value in OPTIONS.items():
        options.add_session_config_entry(name, value)
    _smallest = ort.InferenceSession(_SMALLEST, options, providers=[CPU_PROVIDER])
    _smallest.run(["y"], _ONE)
