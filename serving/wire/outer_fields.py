"""Some fields of a serialized message, found without reading the others: what is behind a length is passed over."""

from __future__ import annotations

import itertools
from collections.abc import Container

from normfold.serving.wire.fields import KIND, SIZED, fields

#: The fields that a message may have: two bytes can be one, and each takes time on the event loop.
MOST_FIELDS = 4096
#: A longer text is cut, in bytes.
TEXT_BYTES = 4096


def text_field(data: bytes, number: int) -> str:
    """The string field ``number`` of a message, cut; the last counts if it is there twice, as in protobuf.

    Raises ValueError for bytes that are no message, for a message of more than MOST_FIELDS fields, or one that is
    written in a way that protobuf never writes.
    """
    found: tuple[int, int] | None = None
    for count, (each, tag, begin, end) in enumerate(fields(data)):
        if count == MOST_FIELDS:
            raise ValueError(f"more than {MOST_FIELDS} fields")
        if each == number and data[tag] & KIND == SIZED:
            found = begin, end
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
