"""Long work on arrays and messages happens on another thread, so that everyone else is answered meanwhile.

The event loop serves all connections. Reading a message of 100 MB, cutting a million strings apart or writing a million
classes as text takes seconds; health would wait as long. A thread shares the interpreter in turns of 5 ms.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from numpy.typing import NDArray

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

#: Numbers are copied as they are: this many bytes take 1 ms.
COPY_BYTES = 4 << 20

#: The work on one element that is, or becomes, an object of Python, in bytes of numbers that are copied.
_ELEMENT_BYTES = 1024
#: The elements whose lengths are added up; the work on more of them is long for that alone.
_FEW = COPY_BYTES // _ELEMENT_BYTES


async def off_loop(
    large: bool, function: Callable[Parameters, Result], *args: Parameters.args, **kwargs: Parameters.kwargs
) -> Result:
    """``function`` of the arguments; on another thread if the work is ``large``. Raises what the function raises."""
    return await asyncio.to_thread(function, *args, **kwargs) if large else function(*args, **kwargs)


def work_bytes(array: NDArray[Any], by_element: bool = False) -> int:
    """The work of reading ``array`` once, in bytes of numbers that are copied.

    With ``by_element`` each number becomes an object of Python. The elements of BYTES are such objects already, each
    with a length of its own.
    """
    if array.dtype == object:
        lengths = sum(map(len, array.ravel())) if array.size <= _FEW else 0
        return array.size * _ELEMENT_BYTES + lengths
    return array.size * _ELEMENT_BYTES if by_element else array.nbytes
