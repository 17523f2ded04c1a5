"""Large contents, taken out of a serialized ModelInferRequest before protobuf reads the rest.

protobuf reads a hundred million numbers in one call of five seconds, and the interpreter waits as long, whatever thread
that is. Here they are read in pieces, as `turns` says, straight from the request. Raw contents are not even copied.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normfold.serving.errors import InvalidRequest
from normfold.serving.wire.fields import KIND, SIZED, fields, sized
from normfold.serving.wire.outer_fields import MOST_FIELDS

#: The elements of typed contents: an array of numbers, or ``bytes`` objects.
Elements = NDArray[Any] | Sequence[bytes]

#: Tensors of at most this many bytes together are left to protobuf, which reads them within a few milliseconds, and
#: makes up to eight times as much of them. Raw contents of at most this many bytes each are left to it, too.
SMALL_BYTES = 1 << 18
#: Copies of at most this many bytes are made by Python, which does not let other threads run meanwhile.
SMALL_COPY_BYTES = 1 << 16
#: The bytes of one piece.
_PIECE_BYTES = 1 << 16
#: The bytes of the longest varint.
_LONGEST = 10

#: The numbers of the fields in ModelInferRequest, and in its InferInputTensor.
_INPUTS, _RAW, _CONTENTS = 5, 7, 5
#: Fields of InferTensorContents: those of fixed-size numbers and those of varints, with their types, and the strings.
_FIXED: dict[int, np.dtype[Any]] = {6: np.dtype("<f4"), 7: np.dtype("<f8")}
_VARINTS: dict[int, np.dtype[Any]] = {
    1: np.dtype("?"),
    2: np.dtype("i4"),
    3: np.dtype("i8"),
    4: np.dtype("u4"),
    5: np.dtype("u8"),
}
_STRINGS = 8
#: One element in the place of those that were taken out, so that it still shows which field they were in.
_ONE = {number: bytes(size) for number, size in {**dict.fromkeys(_VARINTS, 1), 6: 4, 7: 8}.items()}


@dataclass(frozen=True)
class Packed:
    """Numbers in a packed field of varints: counted, and not read yet, for each takes up to eight times as much."""

    data: memoryview
    dtype: np.dtype[Any]
    count: int

    @property
    def nbytes(self) -> int:
        """The bytes of the numbers, once they are read."""
        return self.count * self.dtype.itemsize

    def numbers(self) -> NDArray[Any]:
        """The numbers."""
        return unpacked(self.data, self.dtype, self.count)


@dataclass(frozen=True)
class Strings:
    """Strings in typed contents: counted, and not read yet, for each takes far more than its own bytes."""

    data: memoryview
    count: int

    def __len__(self) -> int:
        return self.count

    def elements(self) -> list[bytes]:
        """The strings."""
        return [bytes(self.data[begin:end]) for _, _, begin, end in fields(self.data)]


@dataclass(frozen=True)
class Lifted:
    """Contents that were taken out of a request: typed ones by the number of their input, raw ones by their own."""

    typed: dict[int, Elements | Packed | Strings] = field(default_factory=dict)
    raw: dict[int, memoryview] = field(default_factory=dict)

    @property
    def unread_bytes(self) -> int:
        """The memory that the numbers will take which are not read yet."""
        return sum([one.nbytes for one in self.typed.values() if isinstance(one, Packed)])

    @property
    def unread_strings(self) -> tuple[int, int]:
        """How many strings in typed contents are not read yet, and their bytes, with tags and lengths."""
        found = [one for one in self.typed.values() if isinstance(one, Strings)]
        return sum([one.count for one in found]), sum([len(one.data) for one in found])


def lift(data: bytes) -> tuple[bytes, Lifted]:
    """``data`` without its large contents, and these. Typed contents leave one element, raw contents are empty.

    Raises InvalidRequest where they are written in a way that protobuf would accept but does not write, and ValueError
    for bytes that are no message. Whatever else is wrong with ``data`` is left in them.
    """
    view, kept, found = memoryview(data), list[bytes | memoryview](), Lifted()
    done = inputs = raw = 0
    left = SMALL_BYTES
    for number, first, begin, end in itertools.islice(fields(view), MOST_FIELDS):
        if number not in (_INPUTS, _RAW) or view[first] & KIND != SIZED:
            continue
        size = end - begin
        if number == _RAW:
            if size > SMALL_BYTES:
                kept += [view[done:first], bytes([_RAW << 3 | SIZED, 0])]
                done, found.raw[raw] = end, view[begin:end]
            raw += 1
            continue
        if size <= left:
            left -= size
        elif (lifted := _without_contents(view[begin:end])) is not None:
            tensor, found.typed[inputs] = lifted
            kept += [view[done:first], sized(_INPUTS, tensor)]
            done = end
        inputs += 1
    return (b"".join([*kept, view[done:]]) if done else data), found


def _without_contents(tensor: memoryview) -> tuple[bytes, Elements | Packed | Strings] | None:
    """A tensor with one element, and all its elements; None where it has no contents. Raises as ``lift``."""
    places = [(first, begin, end) for n, first, begin, end in _few(tensor) if n == _CONTENTS]
    if not any(end > begin for _, begin, end in places):
        return None
    if len(places) > 1:
        raise InvalidRequest("a tensor has more than one contents field")
    ((first, begin, end),) = places
    number, elements = _elements(tensor[begin:end])
    one = sized(_CONTENTS, bytes([number << 3 | SIZED, len(_ONE.get(number, b""))]) + _ONE.get(number, b""))
    return b"".join([tensor[:first], one, tensor[end:]]), elements


def _few(tensor: memoryview) -> list[tuple[int, int, int, int]]:
    found = list(itertools.islice(fields(tensor), MOST_FIELDS + 1))
    if len(found) > MOST_FIELDS:
        raise InvalidRequest(f"a tensor of a large message has at most {MOST_FIELDS} fields, this one has more")
    return found


def _elements(contents: memoryview) -> tuple[int, Elements | Packed | Strings]:
    """The number of the only field in ``contents``, and its elements. Raises InvalidRequest, or ValueError."""
    number = contents[0] >> 3
    if contents[0] & KIND != SIZED or number not in {*_FIXED, *_VARINTS, _STRINGS}:
        raise _unusual()
    if number == _STRINGS:
        return number, Strings(contents, _strings(contents))
    places = list(itertools.islice(fields(contents), 2))
    if len(places) > 1:
        raise _unusual()
    ((_, _, begin, end),) = places
    if number in _VARINTS:
        data = contents[begin:end]
        return number, Packed(data, _VARINTS[number], sum(last.size for _, last in _pieces(data)))
    return number, aligned(contents[begin:end], _FIXED[number])


def aligned(data: bytes | memoryview, dtype: np.dtype[Any]) -> NDArray[Any]:
    """The numbers in ``data``; a copy where they are not aligned, on which onnxruntime's kernels may rely.

    NumPy lets other threads run while it copies, and then the event loop waits for its turn: not for a few bytes.
    """
    values = np.frombuffer(data, dtype)
    if values.flags.aligned:
        return values
    if len(data) <= SMALL_COPY_BYTES:
        return np.frombuffer(bytes(data), dtype)
    return np.frombuffer(data, np.uint8).copy().view(dtype)


def _unusual() -> InvalidRequest:
    return InvalidRequest(
        f"contents beyond the first {SMALL_BYTES} bytes of a request have one field, whose numbers are packed; send "
        "raw_input_contents"
    )


def _strings(contents: memoryview) -> int:
    """How many strings there are. Raises InvalidRequest, or ValueError."""
    count = 0
    for _, first, _, _ in fields(contents):
        if contents[first] != _STRINGS << 3 | SIZED:
            raise _unusual()
        count += 1
    return count


def unpacked(data: memoryview, dtype: np.dtype[Any], count: int) -> NDArray[Any]:
    """The ``count`` numbers of type ``dtype`` in a packed field of varints, as protobuf reads them. Raises ValueError.

    >>> unpacked(memoryview(b"\\x05\\xac\\x02"), np.dtype("i4"), 2).tolist()
    [5, 300]
    """
    values, at = np.empty(count, dtype), 0
    for piece, last in _pieces(data):
        values[at : at + last.size] = _numbers(piece, last).astype(dtype, copy=False)
        at += last.size
    return values


def _pieces(data: memoryview) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.intp]]]:
    """The bytes of whole varints, piece by piece, and where in a piece each has its last byte. Raises ValueError."""
    at = 0
    while at < len(data):
        piece = np.frombuffer(data[at : at + _PIECE_BYTES], np.uint8)
        last = np.flatnonzero(piece < 0x80)
        if not last.size:
            raise ValueError("the bytes end within a number, or it has more than ten bytes")
        if last[0] >= _LONGEST or (1 < last.size <= last[-1] and np.diff(last).max() > _LONGEST):
            raise ValueError("a number of more than ten bytes")
        at += int(last[-1]) + 1
        yield piece[: last[-1] + 1], last


def _numbers(piece: NDArray[np.uint8], last: NDArray[np.intp]) -> NDArray[np.uint64]:
    """The numbers in ``piece``, whose last bytes are at ``last``."""
    if last.size == piece.size:
        return piece.astype(np.uint64)
    first = np.concatenate([[0], last[:-1] + 1])
    sizes = last - first + 1
    values = np.zeros(last.size, np.uint64)
    for byte in range(int(sizes.max())):
        those = np.flatnonzero(sizes > byte)
        values[those] |= (piece[first[those] + byte] & 0x7F).astype(np.uint64) << np.uint64(7 * byte)
    return values
