"""Large messages: what makes them large must be tensors and files.

Names, ids, settings and shapes are read as a whole, some of them on the event loop, and one of 200 MB takes longer than
anybody may wait. So before a large message is parsed its fields are counted, and its texts are measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from normfold.serving.errors import InvalidRequest
from normfold.serving.wire.fields import fields
from normfold.serving.wire.outer_fields import MOST_FIELDS

#: The longest text, or packed list of numbers that is no tensor, in bytes.
MOST_BYTES = 1 << 20

#: The fields of a whole message with all that are in it, and the bytes of its texts and lists together.
MOST_FIELDS_IN_ALL, MOST_BYTES_IN_ALL = 1 << 16, 4 << 20

#: The messages that hold tensors.
_TENSORS = ("inference.InferTensorContents",)


def check_fields(data: bytes | memoryview, kind: Any) -> None:
    """Raise InvalidRequest where ``data``, or a message within them, has too many fields, or one that is too long.

    ``kind`` is the descriptor of the message. Fields of type bytes, and tensors, may have any size. Raises ValueError
    for bytes that are no message.
    """
    _check(memoryview(data), kind, _Counts())


@dataclass
class _Counts:
    """The fields and bytes that were counted so far in a whole message."""

    fields: int = 0
    bytes: int = 0


def _check(view: memoryview, kind: Any, counts: _Counts) -> None:
    for count, (number, _, begin, end) in enumerate(fields(view)):
        if count == MOST_FIELDS:
            raise InvalidRequest(f"a large message has at most {MOST_FIELDS} fields, this {kind.name} has more")
        counts.fields += 1
        if counts.fields > MOST_FIELDS_IN_ALL:
            raise InvalidRequest(f"a large message has at most {MOST_FIELDS_IN_ALL} fields in all, this one has more")
        field = kind.fields_by_number.get(number)
        if field is None or field.type == FieldDescriptor.TYPE_BYTES:
            continue
        if field.message_type is None:
            if end - begin > MOST_BYTES:
                raise InvalidRequest(f"{field.name} has at most {MOST_BYTES} bytes, this one has {end - begin}")
            counts.bytes += end - begin
            if counts.bytes > MOST_BYTES_IN_ALL:
                raise InvalidRequest(
                    f"the names, settings and shapes of a message have at most {MOST_BYTES_IN_ALL} bytes together, "
                    "those of this one have more"
                )
        elif field.message_type.full_name not in _TENSORS:
            _check(view[begin:end], field.message_type, counts)
