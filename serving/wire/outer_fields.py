"""Some fields of a serialized message, found without reading the others: what is behind a length is passed over."""

from __future__ import annotations

import itertools
from collections.abc import Container

from normfold.serving.wire.fields import fields

#: The wire types of protobuf: how the value behind a tag is written.
_VARINT, _FIXED64, _SIZED, _FIXED32 = 0, 1, 2, 5
#: A tag has at most 32 bits, a length 31.
_MOST = 1 << 32
#: The fields that a message may have: two bytes can be one, and each takes time on the event loop.
MOST_FIELDS = 4096
#: A longer text is cut, in bytes.
TEXT_BYTES = 4096
#: The bytes of the longest varint.
_VARINT_BYTES = 10


def text_field(data: bytes, number: int) -> str:
    """The string field ``number`` of a message, cut; the last counts if it is there twice, as in protobuf.

    Raises ValueError for bytes that are no message, for a message of more than MOST_FIELDS fields, or one that is
    written in a way that protobuf never writes.
    """
    at, end, fields = 0, len(data), 0
    found: tuple[int, int] | None = None
    try:
        while at < end:
            fields += 1
            if fields > MOST_FIELDS:
                raise ValueError(f"more than {MOST_FIELDS} fields")
            tag, at = _varint(data, at)
            kind = tag & 7
            if kind == _SIZED:
                size, at = _varint(data, at)
                if tag >> 3 == number:
                    found = at, at + size
                at += size
            elif kind == _VARINT:
                begin = at
                while data[at] & 0x80:
                    at += 1
                    if at - begin == _VARINT_BYTES:
                        raise ValueError("a number of more than ten bytes")
                at += 1
            elif kind in (_FIXED64, _FIXED32):
                at += 8 if kind == _FIXED64 else 4
            else:
                raise ValueError("a group, which no message here has")
    except IndexError:
        raise ValueError("the bytes end within a field") from None
    if at != end:
        raise ValueError("the bytes end within a field")
    if found is None:
        return ""
    begin, end = found
    if end - begin > TEXT_BYTES:
        return data[begin : begin + TEXT_BYTES].decode(errors="ignore")
    return data[begin:end].decode()


def small_fields(data: bytes, numbers: Container[int], most_bytes: int) -> bytes:
    """A message with the fields ``numbers`` of the message ``data`` alone, in their order.

    It has those that are among the first MOST_FIELDS fields, and at most ``most_bytes``: a field that would make it
    longer is left out. Raises ValueError for bytes that are no message.
    """
    kept, size = [], 0
    for number, begin, _, end in itertools.islice(fields(data), MOST_FIELDS):
        if number in numbers and size + end - begin <= most_bytes:
            kept.append(data[begin:end])
            size += end - begin
    return b"".join(kept)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The tag or length at ``at``, and the place behind it."""
    byte = data[at]
    if byte < 0x80:
        return byte, at + 1
    value, shift = byte & 0x7F, 7
    while True:
        at += 1
        byte = data[at]
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            if value >= _MOST:
                raise ValueError("a tag or length of more than 32 bits")
            return value, at + 1
        if shift > 28:
            raise ValueError("a tag or length of more than five bytes")
