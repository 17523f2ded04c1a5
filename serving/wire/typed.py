"""Typed contents: tensor elements as protobuf numbers.

Reading a repeated field element by element is slow. A packed field's wire form is the array itself where elements have
a fixed size, so those are taken from (and written as) one serialized field.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normfold.protos import grpc_service as pb
from normfold.protos.datatypes import Datatype, by_name
from normfold.serving.errors import InvalidRequest
from normfold.serving.wire.varint import varint
from normfold.serving.wording import quoted

#: Field -> the datatype whose name Triton's messages give it.
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

#: Fields whose packed elements lie on the wire as they lie in memory.
_FIXED = {"bool_contents": np.dtype("?"), "fp32_contents": np.dtype("<f4"), "fp64_contents": np.dtype("<f8")}


@dataclass(frozen=True)
class Typed:
    """Elements that came as typed contents: numbers, or ``bytes`` for BYTES."""

    values: Sequence[Any] | NDArray[Any]


def read_typed(contents: pb.InferTensorContents, datatype: str, tail: object) -> Typed:
    """The elements in ``contents`` for the datatype that the request names. ``tail`` names tensor and model.

    Raises InvalidRequest for a field of another datatype, for two fields, and for numbers that do not fit.
    """
    filled = [field.name for field, _ in contents.ListFields()]
    try:
        expected = by_name(datatype)
    except KeyError:
        return Typed(())  # the datatype itself is refused with the model's expectation
    for field in filled:
        if field != expected.contents_field:
            raise InvalidRequest(
                f"unexpected explicit tensor data for input tensor {tail} of type '{FIELDS[field]}', "
                f"expected datatype '{datatype}'{'' if expected.contents_field else ', which only travels raw'}"
            )
    if not filled:
        return Typed(())
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
    """The only filled field of ``contents``, taken from its wire form: tag, length, elements."""
    clean = pb.InferTensorContents()
    clean.CopyFrom(contents)
    clean.DiscardUnknownFields()  # type: ignore[attr-defined]
    wire = clean.SerializeToString()
    position = 1  # field numbers below 16 have a tag of one byte
    while wire[position] & 0x80:
        position += 1
    return np.frombuffer(wire, dtype, offset=position + 1)


def fill_typed(contents: pb.InferTensorContents, array: NDArray[Any], datatype: Datatype) -> None:
    """Put ``array`` into the field of its datatype. Raises InvalidRequest for FP16 and BF16, which have none."""
    field = datatype.contents_field
    if not field:
        raise InvalidRequest(f"{quoted(datatype.name)} has no typed form; ask for this output as raw contents")
    if field in _FIXED:
        if array.size:
            packed = array.astype(_FIXED[field], copy=False).tobytes()
            number = contents.DESCRIPTOR.fields_by_name[field].number
            contents.MergeFromString(bytes([number << 3 | 2]) + varint(len(packed)) + packed)
    else:
        getattr(contents, field).extend(array.ravel().tolist())
