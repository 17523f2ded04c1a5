"""From raw contents to arrays, and back.

Raw contents are little-endian and row-major; a BYTES element is its length in 4 bytes, followed by the element. Sizes
are computed with Python's integers, which do not overflow.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normfold.protos.datatypes import Datatype
from normfold.serving.errors import InvalidRequest
from normfold.serving.wire.lifted import Strings, aligned
from normfold.serving.wire.turns import pieces
from normfold.serving.wire.typed import Typed
from normfold.serving.wording import dims

Array = NDArray[Any]
#: The bytes of the length in front of a BYTES element.
LENGTH_BYTES = 4
Contents = bytes | memoryview | Typed


def to_array(data: Contents, shape: tuple[int, ...], datatype: Datatype, place: object, prefix: object) -> Array:
    """The array of ``shape`` in ``data``.

    Raises InvalidRequest, whose message begins with ``prefix`` and names ``place``.
    """
    count = math.prod(shape)
    if isinstance(data, Typed):
        if datatype.name == "BYTES":
            if len(data.values) != count:
                raise _count_mismatch(len(data.values), count, f"input {place}", prefix)
            values = data.values
            elements = values.elements() if isinstance(values, Strings) else values
            return _shaped(_objects(elements), shape, place, prefix)
        got = len(data.values) * datatype.itemsize
        values = np.asarray(data.values, datatype.dtype)
    elif datatype.name == "BYTES":
        return _shaped(_objects(split_elements(data, count, f"input {place}", prefix)), shape, place, prefix)
    else:
        got = len(data)
        values = aligned(data, datatype.dtype) if got == count * datatype.itemsize else np.empty(0)
    if got != count * datatype.itemsize:
        raise InvalidRequest(
            f"{prefix}input byte size mismatch for input {place}. Expected {count * datatype.itemsize}, got {got}"
        )
    if datatype.name == "BOOL" and count and values.view(np.uint8).max() > 1:
        raise InvalidRequest(
            f"{prefix}BOOL elements are bytes of 0 or 1; input {place} has {values.view(np.uint8).max()}"
        )
    return _shaped(values, shape, place, prefix)


def _shaped(values: Array, shape: tuple[int, ...], place: object, prefix: object) -> Array:
    """``values``, as many as ``shape`` has. Raises InvalidRequest for sizes beside one of 0 that NumPy cannot count."""
    try:
        return values.reshape(shape)
    except ValueError:
        raise InvalidRequest(f"{prefix}no array has the sizes {dims(shape)} of input {place}") from None


def _objects(elements: Sequence[bytes] | Array) -> Array:
    array = np.empty(len(elements), object)
    for piece in pieces(len(elements)):
        array[piece] = elements[piece]
    return array


def split_elements(data: bytes | memoryview, count: int, where: str, prefix: object = "") -> list[bytes]:
    """The ``count`` BYTES elements in ``data``, each of which follows its length (4 bytes, little-endian).

    Raises InvalidRequest.
    """
    elements: list[bytes] = []
    position, end = 0, len(data)
    while position < end:
        if len(elements) == count:
            raise _count_mismatch(count + 1, count, where, prefix)
        if end - position < LENGTH_BYTES:
            raise InvalidRequest(
                f"{prefix}incomplete string length indicator for inference {where}, expecting 4 bytes but only "
                f"{end - position} bytes available. Please make sure the string length indicator is in one buffer."
            )
        (length,) = struct.unpack_from("<I", data, position)
        position += LENGTH_BYTES
        if length > end - position:
            raise InvalidRequest(
                f"{prefix}incomplete string data for inference {where}, expecting string of length {length} but only "
                f"{end - position} bytes available. Please make sure the string data is in one contiguous buffer."
            )
        elements.append(bytes(data[position : position + length]))
        position += length
    if len(elements) != count:
        raise _count_mismatch(len(elements), count, where, prefix)
    return elements


def _count_mismatch(got: int, count: int, where: str, prefix: object) -> InvalidRequest:
    if got > count:
        return InvalidRequest(
            f"{prefix}unexpected number of string elements {got} for inference {where}, expecting {count}"
        )
    return InvalidRequest(f"{prefix}expected {count} string elements for inference {where}, got {got}")


def to_raw(array: Array, datatype: Datatype) -> bytes:
    """The raw contents of ``array``: little-endian, row-major, BYTES elements with their lengths."""
    if datatype.name == "BYTES":
        flat = array.ravel()
        return b"".join(
            [
                b"".join([struct.pack("<I", len(element)) + element for element in flat[piece]])
                for piece in pieces(flat.size)
            ]
        )
    return array.astype(datatype.dtype, copy=False).tobytes()
