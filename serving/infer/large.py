"""Which answers are large: work on them happens off the event loop, see ``process/off_loop.py``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from normfold.serving.infer.outputs import Wanted
from normfold.serving.process.off_loop import COPY_BYTES, work_bytes

#: The memory of one class as text: an object of Python and its place in an array, its bytes in the answer, and what
#: sorting takes. 8 million of 16 characters were measured.
CLASS_BYTES = 128


def is_large_answer(wanted: Sequence[Wanted], arrays: Sequence[NDArray[Any]]) -> bool:
    """Whether it takes long to write ``arrays`` as ``wanted``."""
    pairs = zip(wanted, arrays, strict=True)
    return sum([work_bytes(array, bool(want.classes or want.typed)) for want, array in pairs]) > COPY_BYTES


def class_bytes(wanted: Sequence[Wanted], arrays: Sequence[NDArray[Any]], batched: bool) -> int:
    """The memory of all classes as text that ``wanted`` asks for."""
    total = 0
    for want, array in zip(wanted, arrays, strict=True):
        rows = len(array) if batched and array.ndim else 1
        total += rows * min(want.classes, array.size // max(rows, 1)) * CLASS_BYTES
    return total
