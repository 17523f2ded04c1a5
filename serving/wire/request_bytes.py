"""A serialized ModelInferRequest, taken apart without protobuf.

    ModelInferRequest = model name, version, id, [parameters, inputs, outputs], raw contents

Both functions only look at the outermost fields. They understand the order in which protobuf writes them; whatever has
another form, or more than MOST_FIELDS of them, is left to protobuf.
"""

from __future__ import annotations

from typing import NamedTuple

from normfold.serving.wire.outer_fields import MOST_FIELDS

#: The first byte of each field of ModelInferRequest: number << 3 | 2. The 2 means that a length and the content follow.
_VERSION, _ID, _RAW = 2 << 3 | 2, 3 << 3 | 2, 7 << 3 | 2
_HEAD = frozenset(number << 3 | 2 for number in (1, 2, 4, 5, 6))

#: In a length, this bit of a byte says that another byte follows.
_MORE = 0x80


class Parts(NamedTuple):
    """Where the parts of a serialized request are."""

    #: Begin and end of the field of the id; equal where the request has no id.
    id: tuple[int, int]
    #: Begin and end of each of the raw contents.
    spans: list[tuple[int, int]]


def parts(data: bytes) -> Parts | None:
    """The parts of a serialized ModelInferRequest; None where its fields have not the usual form, order and number."""
    at, end, fields = 0, len(data), 0
    start_id = end_id = 0
    spans = []
    try:
        while at < end:
            fields += 1
            if fields > MOST_FIELDS:
                return None
            tag, size, begin = data[at], data[at + 1], at + 2
            if size & _MORE:
                shift = 7
                size &= 0x7F
                while (byte := data[begin]) & _MORE and shift < 28:
                    size |= (byte & 0x7F) << shift
                    shift, begin = shift + 7, begin + 1
                size |= byte << shift
                begin += 1
            if tag == _RAW:
                spans.append((begin, begin + size))
            elif spans:
                return None
            elif tag == _ID and not end_id:
                start_id, end_id = at, begin + size
            elif tag not in _HEAD:
                return None
            at = begin + size
    except IndexError:
        return None
    return Parts((start_id, end_id), spans) if at == end and spans else None


def find_id(data: bytes) -> tuple[int, int]:
    """Begin and end of the field of the id, found faster than by ``parts``; equal where there is none.

    Finds the id of a request whose fields are in the usual order, if name, version and id have fewer than 128 bytes
    each. For other bytes the two positions mean nothing, and may lie behind the last byte.
    """
    try:
        if (at := data[1] + 2) >= _MORE + 2:
            return 0, 0
        if data[at] == _VERSION:
            if (size := data[at + 1]) & _MORE:
                return 0, 0
            at += size + 2
        if data[at] == _ID and data[at + 1] < _MORE:
            return at, at + data[at + 1] + 2
    except IndexError:
        return 0, 0
    return at, at


def decisive_bytes(data: bytes) -> int:
    """How many of the first bytes say which model is asked, found as by ``find_id``; 0 where that is not so easy.

    The byte behind them counts, too: it says that no version follows.

    >>> decisive_bytes(b"\\x0a\\x01m\\x12\\x012\\x1a\\x02id"), decisive_bytes(b"")
    (7, 0)
    """
    start = find_id(data)[0]
    return start + 1 if 0 < start < len(data) and data[:1] == b"\n" else 0


def model_named(data: bytes) -> tuple[str, str] | None:
    """The name and version of the model at the usual place in ``data``; None where they are not there, or are long.

    >>> model_named(b"\\x0a\\x01m\\x12\\x012"), model_named(b"")
    (('m', '2'), None)
    """
    if data[:1] != b"\n" or len(data) < 2 or (end := data[1] + 2) >= _MORE + 2:
        return None
    name, version = data[2:end], b""
    if data[end : end + 1] == bytes([_VERSION]) and len(data) > end + 1 and data[end + 1] < _MORE:
        version = data[end + 2 : end + 2 + data[end + 1]]
    try:
        return name.decode(), version.decode()
    except UnicodeDecodeError:
        return None


def id_text(field: bytes) -> str:
    """The id that ``field`` holds, which is the whole field as it was sent; "" for an empty one.

    >>> id_text(b"\\x1a\\x05seven"), id_text(b"")
    ('seven', '')
    """
    at = 1
    while field[at : at + 1] >= b"\x80":
        at += 1
    return field[at + 1 :].decode()
