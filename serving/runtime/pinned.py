"""Page-locked host memory, which a GPU reads and writes without another copy; from CUDA, where CUDA is loaded.

onnxruntime's Python API has no such memory: ``OrtValue`` knows the devices "cpu" and "cuda", and memory that both reach
only for providers that are registered as plugins, which the provider of the GPU wheel is not. So this module asks the
CUDA runtime that onnxruntime has loaded. Without one, or if it refuses, the memory is ordinary.
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

#: cudaHostAllocPortable: page-locked for every GPU, not only for the GPU of the calling thread.
PORTABLE = 1


def memory(size: int) -> Array:
    """An array of ``size`` bytes, page-locked if possible; it is freed with the last array that views it."""
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
    """The libcudart that this process has loaded, as a ctypes library; None without one."""
    with contextlib.suppress(OSError):
        found = re.search(r"/\S*/libcudart\.so[.\d]*", MAPS.read_text(encoding="utf-8", errors="replace"))
        return ctypes.CDLL(found[0]) if found else None
    return None
