"""A serialized message without the fields that its definition does not name.

Protobuf copies such fields, and holds Python's lock all the while: in an ONNX file they are the weights, and no call is
answered for a tenth of a second for each 100 MB. Here only places are read, and other threads have their turns.
"""

from __future__ import annotations

from typing import Any

from normfold.serving.wire.fields import KIND, fields
from normfold.serving.wire.varint import varint

#: A message of fewer bytes is taken as it is.
SMALL_BYTES = 1 << 16
#: Messages within messages that protobuf reads, too.
MOST_LEVELS = 100


def known_fields(data: bytes | memoryview, kind: Any, levels: int = MOST_LEVELS) -> bytes:
    """The message ``data``, and messages within it, without unknown fields where they have SMALL_BYTES or more.

    ``kind`` is the descriptor of the message. Raises ValueError for bytes that are no message, and for a message with
    more than ``levels`` others around one another.
    """
    if levels < 0:
        raise ValueError(f"messages within messages, more than {MOST_LEVELS} times")
    view = memoryview(data)
    if len(view) < SMALL_BYTES:
        return bytes(view)
    kept: list[bytes | memoryview] = []
    for number, tag, begin, end in fields(view):
        field = kind.fields_by_number.get(number)
        if field is None:
            continue
        if field.message_type is None or end - begin < SMALL_BYTES:
            kept.append(view[tag:end])
        else:
            within = known_fields(view[begin:end], field.message_type, levels - 1)
            kept += [varint(number << 3 | view[tag] & KIND), varint(len(within)), within]
    return b"".join(kept)
