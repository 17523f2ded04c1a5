"""Host memory that a GPU reads and writes without a copy in between: page-locked by CUDA, where CUDA is loaded.

onnxruntime's Python API gives none: ``OrtValue`` knows the devices "cpu" and "cuda", and memory that both can reach
only for providers that were registered as plugins, which that of the GPU wheel is not. So CUDA's own runtime is asked,
the one that onnxruntime has loaded. Where there is none, or it refuses, memory is as any other.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
import re
import weakref
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
log = logging.getLogger(__name__)

MAPS = Path("/proc/self/maps")

#: cudaHostAllocPortable: page-locked for every GPU, not only for that of the thread which asks.
PORTABLE = 1


def memory(size: int) -> Array:
    """An array of ``size`` bytes, page-locked if it can be had; it is given back with the last array that views it."""
    library = cuda_runtime()
    if library is not None and size:
        place = ctypes.c_void_p()
        status = library.cudaHostAlloc(ctypes.byref(place), ctypes.c_size_t(size), ctypes.c_uint(PORTABLE))
        if status == 0 and place.value:
            held = (ctypes.c_uint8 * size).from_address(place.value)
            weakref.finalize(held, library.cudaFreeHost, ctypes.c_void_p(place.value)).atexit = False
            return np.ctypeslib.as_array(held)
        log.warning("%d bytes cannot be page-locked: CUDA says %d", size, status)
    return np.empty(size, np.uint8)


@functools.cache
def cuda_runtime() -> Any:
    """The libcudart in this process, as ctypes has it; None where there is none."""
    with contextlib.suppress(OSError):
        found = re.search(r"/\S*/libcudart\.so[.\d]*", MAPS.read_text(encoding="utf-8", errors="replace"))
        return ctypes.CDLL(found[0]) if found else None
    return None
