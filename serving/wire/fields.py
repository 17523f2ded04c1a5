"""The fields of a serialized message, read and written without protobuf: importing that takes as long as a call or ten.

    message = field, field, …      field = tag (number << 3 | kind), value

Only the kinds that protobuf writes today are known: a number (0), 64 bits (1), a length and bytes (2), 32 bits (5).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from normfold.serving.wire.varint import varint

#: How a value is written, and the bits of a tag that say it.
NUMBER, FIXED64, SIZED, FIXED32 = 0, 1, 2, 5
KIND = 7
#: The bits of a tag, and of a length; a number has 64.
_TAG_BITS = 32


def sized(number: int, content: bytes) -> bytes:
    """Field ``number`` with ``content`` behind its length; nothing for an empty one, as protobuf does for text.

    >>> sized(1, b"m"), sized(2, b"")
    (b'\\n\\x01m', b'')
    """
    return varint(number << 3 | SIZED) + varint(len(content)) + content if content else b""


def packed(number: int, values: Sequence[int]) -> bytes:
    """Field ``number`` with whole numbers from 0 in one piece."""
    return sized(number, b"".join(map(varint, values)))


def fields(data: bytes | memoryview) -> Iterator[tuple[int, int, int, int]]:
    """For each field: its number, the place of its tag, and begin and end of its value.

    Raises ValueError for bytes that are no message.
    """
    at, end = 0, len(data)
    try:
        while at < end:
            first = at
            tag, at = number_at(data, at, _TAG_BITS)
            kind = tag & KIND
            if kind == SIZED:
                size, at = number_at(data, at, _TAG_BITS)
            elif kind == NUMBER:
                size = number_at(data, at)[1] - at
            elif kind in (FIXED32, FIXED64):
                size = 4 if kind == FIXED32 else 8
            else:
                raise ValueError("a group, which no message here has")
            if at + size > end:
                raise ValueError("the bytes end within a field")
            yield tag >> 3, first, at, at + size
            at += size
    except IndexError:
        raise ValueError("the bytes end within a field") from None


def numbers(data: bytes, begin: int, end: int) -> list[int]:
    """The signed numbers in ``data[begin:end]``, a packed field, or one number. Raises ValueError."""
    found, at = [], begin
    try:
        while at < end:
            value, at = number_at(data, at)
            found.append(value - (1 << 64) if value >> 63 else value)
    except IndexError:
        raise ValueError("the bytes end within a number") from None
    return found


def number_at(data: bytes | memoryview, at: int, bits: int = 64) -> tuple[int, int]:
    """The number of at most ``bits`` bits at ``at``, and the place behind it. Raises IndexError, or ValueError."""
    byte = data[at]
    if byte < 0x80:
        return byte, at + 1
    value, shift = byte & 0x7F, 7
    while byte & 0x80:
        if shift >= bits:
            raise ValueError(f"a number of more than {bits} bits")
        at += 1
        byte = data[at]
        value |= (byte & 0x7F) << shift
        shift += 7
    if value >> bits:
        raise ValueError(f"a number of more than {bits} bits")
    return value, at + 1
