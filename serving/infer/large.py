"""Which answers are large: work on them happens off the event loop, see ``process/off_loop.py``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from normfold.serving.infer.outputs import Wanted
from normfold.serving.process.off_loop import COPY_BYTES, work_bytes


def is_large_answer(wanted: Sequence[Wanted], arrays: Sequence[NDArray[Any]]) -> bool:
    """Whether it takes long to write ``arrays`` as ``wanted``."""
    pairs = zip(wanted, arrays, strict=True)
    return sum([work_bytes(array, bool(want.classes or want.typed)) for want, array in pairs]) > COPY_BYTES
