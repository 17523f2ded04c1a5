"""Typed contents: tensor elements as repeated numbers of protobuf.

It is slow to read a repeated field element by element. Where elements have a fixed size, the serialized field contains
the array itself, so it is read from, and written as, one serialized field.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from normfold.protos.datatypes import Datatype, by_name
from normfold.serving.errors import InvalidRequest
from normfold.serving.wire.lifted import Elements, Packed, Strings
from normfold.serving.wire.turns import pieces
from normfold.serving.wire.varint import varint
from normfold.serving.wording import quoted

if TYPE_CHECKING:
    from normfold.protos import grpc_service as pb

#: Field -> the datatype by which Triton's messages name it.
FIELDS = {
    "bool_contents": "BOOL",
    "int_contents": "INT32",
    "int64_contents": "INT64",
    "uint_contents": "UINT32",
    "uint64_contents": "UINT64",
    "fp32_contents": "FP32",
    "fp64_contents": "FP64",
    "bytes_contents": "BYTES",
}

#: Fields whose packed elements have the same bytes on the wire and in memory.
_FIXED = {"bool_contents": np.dtype("?"), "fp32_contents": np.dtype("<f4"), "fp64_contents": np.dtype("<f8")}


@dataclass(frozen=True)
class Typed:
    """The elements of typed contents: numbers, or ``bytes`` for BYTES; large ones of BYTES are counted only."""

    values: Sequence[Any] | NDArray[Any] | Strings


def read_typed(
    contents: pb.InferTensorContents, datatype: str, tail: object, lifted: Elements | Packed | Strings | None = None
) -> Typed:
    """The elements in ``contents``, which the request says are of ``datatype``. ``tail`` names tensor and model.

    ``lifted``: the elements, where they were taken out of ``contents`` but for one.

    Raises InvalidRequest for a field of another datatype, for two fields, and for numbers that do not fit.
    """
    filled = [field.name for field, _ in contents.ListFields()]
    try:
        expected = by_name(datatype)
    except KeyError:
        return Typed(())  # a later check refuses the datatype and names the one that the model expects
    for field in filled:
        if field != expected.contents_field:
            raise InvalidRequest(
                f"unexpected explicit tensor data for input tensor {tail} of type '{FIELDS[field]}', "
                f"expected datatype '{datatype}'{'' if expected.contents_field else ', which only travels raw'}"
            )
    if not filled:
        return Typed(())
    if lifted is not None:
        if isinstance(lifted, Packed):
            lifted = lifted.numbers()
        if isinstance(lifted, np.ndarray) and lifted.dtype.kind in "iu":
            _check_range(lifted, expected, tail)
        return Typed(lifted)
    if filled[0] in _FIXED:
        return Typed(_packed(contents, _FIXED[filled[0]]))
    values = getattr(contents, filled[0])
    if expected.name == "BYTES":
        return Typed(values)
    wide = np.fromiter(values, np.int64 if filled[0] in ("int_contents", "int64_contents") else np.uint64, len(values))
    _check_range(wide, expected, tail)
    return Typed(wide)


def _check_range(values: NDArray[Any], datatype: Datatype, tail: object) -> None:
    bounds = np.iinfo(datatype.dtype)
    outside = (values < bounds.min) | (values > bounds.max)
    if outside.any():
        at = int(outside.argmax())
        raise InvalidRequest(
            f"explicit tensor data for input tensor {tail}: {int(values[at])} at element {at} does not fit "
            f"'{datatype.name}' ({bounds.min} to {bounds.max})"
        )


def _packed(contents: pb.InferTensorContents, dtype: np.dtype[Any]) -> NDArray[Any]:
    """The elements of the only field in ``contents``, from its serialized form: tag, length, elements."""
    clean = type(contents)()
    clean.CopyFrom(contents)
    clean.DiscardUnknownFields()  # type: ignore[attr-defined]
    wire = clean.SerializeToString()
    position = 1  # field numbers below 16 have a tag of one byte
    while wire[position] & 0x80:
        position += 1
    return np.frombuffer(wire, dtype, offset=position + 1)


def fill_typed(contents: pb.InferTensorContents, array: NDArray[Any], datatype: Datatype) -> None:
    """Write ``array`` into the field of its datatype. Raises InvalidRequest for FP16 and BF16, which have no field."""
    field = datatype.contents_field
    if not field:
        raise InvalidRequest(f"{quoted(datatype.name)} has no typed form; ask for this output as raw contents")
    if field in _FIXED:
        if array.size:
            packed = array.astype(_FIXED[field], copy=False).tobytes()
            number = contents.DESCRIPTOR.fields_by_name[field].number
            contents.MergeFromString(bytes([number << 3 | 2]) + varint(len(packed)) + packed)
    else:
        flat, elements = array.ravel(), getattr(contents, field)
        for piece in pieces(flat.size):
            elements.extend(flat[piece].tolist())
