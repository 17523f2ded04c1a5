"""Many elements are handled in pieces, so that other threads have their turns.

One call of NumPy or protobuf on a million objects of Python keeps the interpreter until it is through. The event loop
waits as long, even where the call is on another thread.
"""

from __future__ import annotations

from collections.abc import Iterable

#: The elements of one piece; a millisecond or a few.
ELEMENTS = 1 << 14


#: All of a few elements.
_WHOLE = (slice(None),)


def pieces(count: int) -> Iterable[slice]:
    """Slices that together are ``count`` elements.

    >>> list(pieces(3)), list(pieces(20_000))
    ([slice(None, None, None)], [slice(0, 16384, None), slice(16384, 32768, None)])
    """
    return _WHOLE if count <= ELEMENTS else (slice(at, at + ELEMENTS) for at in range(0, count, ELEMENTS))
