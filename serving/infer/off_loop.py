"""Work on large requests and answers happens on another thread, so that everyone else is answered meanwhile.

The event loop serves all connections. Reading a message of 100 MB, cutting a million strings apart or writing a million
classes as text takes seconds; health would wait as long. A thread shares the interpreter in turns of 5 ms.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

from numpy.typing import NDArray

from normfold.serving.infer.outputs import BYTES, Wanted

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

#: Work on at most this many bytes stays on the event loop: it takes 5 ms at most, for the shortest strings.
LOOP_BYTES = 64 << 10
#: The same for numbers, which are copied as they are: 1 ms.
COPY_BYTES = 4 << 20

#: The work on one element that becomes a text, a string or a typed number, in bytes of numbers that are copied.
_ELEMENT_BYTES = 1024


async def off_loop(
    large: bool, function: Callable[Parameters, Result], *args: Parameters.args, **kwargs: Parameters.kwargs
) -> Result:
    """``function`` of the arguments; on another thread if the work is ``large``. Raises what the function raises."""
    return await asyncio.to_thread(function, *args, **kwargs) if large else function(*args, **kwargs)


def is_large_answer(wanted: Sequence[Wanted], arrays: Sequence[NDArray[Any]]) -> bool:
    """Whether it takes long to write ``arrays`` as ``wanted``."""
    work = 0
    for want, array in zip(wanted, arrays, strict=True):
        by_element = want.classes or want.typed or want.spec.datatype is BYTES
        work += array.size * _ELEMENT_BYTES if by_element else array.nbytes
    return work > COPY_BYTES
