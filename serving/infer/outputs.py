"""The outputs that a request asks for, and the response that is written from the arrays of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from normfold.protos import grpc_service as pb
from normfold.protos.datatypes import Datatype, by_name
from normfold.serving.catalog.contract import Contract, TensorSpec
from normfold.serving.errors import InvalidRequest
from normfold.serving.infer.inputs import region_of
from normfold.serving.rpc.pieces import Answer, Pieces
from normfold.serving.wire.classification import classify
from normfold.serving.wire.tensors import to_raw
from normfold.serving.wire.typed import fill_typed
from normfold.serving.wire.varint import varint
from normfold.serving.wording import near, quoted

Array = NDArray[Any]
BYTES = by_name("BYTES")

#: From this size on (in bytes) the numbers of a response are sent from the arrays of the run, without a copy.
PIECES_BYTES = 1 << 20

#: The first byte of the field raw_output_contents of ModelInferResponse.
RESPONSE_RAW = bytes([6 << 3 | 2])


class WritableRegions(Protocol):
    """Shared memory that outputs may be written into."""

    def write(self, region: str, offset: int, size: int, data: bytes | memoryview) -> None:
        """Write ``data`` at ``offset`` of a registered region. It may take at most ``size`` bytes."""
        ...


@dataclass(frozen=True)
class Wanted:
    """One output, in the form that the request asks for."""

    spec: TensorSpec
    #: Answer with this many of the best classes instead of the numbers; 0: with the numbers.
    classes: int = 0
    #: Answer in typed contents instead of raw contents.
    typed: bool = False
    #: Write the answer into shared memory: region, offset, size.
    region: tuple[str, int, int] | None = None


def wanted_outputs(request: pb.ModelInferRequest, name: str, contract: Contract, typed: bool) -> list[Wanted]:
    """The outputs that the request names, or all, in the model's order. Raises InvalidRequest."""
    if not request.outputs:
        return [Wanted(spec, typed=typed) for spec in contract.outputs.values()]
    found: dict[str, Wanted] = {}
    for output in request.outputs:
        spec = contract.outputs.get(output.name)
        if spec is None:
            raise InvalidRequest(
                f"unexpected inference output {quoted(output.name)} for model {quoted(name)}"
                f"{near(output.name, contract.outputs)}; the model gives "
                f"{', '.join(str(spec) for spec in contract.outputs.values())}"
            )
        if output.name not in found:
            found[output.name] = (
                _wanted(spec, output.parameters, name, typed) if output.parameters else Wanted(spec, 0, typed)
            )
    return [found[output] for output in contract.outputs if output in found]


def _wanted(spec: TensorSpec, parameters: Mapping[str, pb.InferParameter], name: str, typed: bool) -> Wanted:
    classes = 0
    if "classification" in parameters:
        if parameters["classification"].WhichOneof("parameter_choice") != "int64_param":
            raise InvalidRequest("invalid value type for 'classification' parameter, expected int64_param")
        classes = parameters["classification"].int64_param
        if classes <= 0:
            raise InvalidRequest("invalid value for 'classification' parameter, expected >= 0: at least one class")
        if spec.datatype is BYTES:
            raise InvalidRequest(
                f"output {quoted(spec.name)} for model {quoted(name)} is BYTES and cannot be classified"
            )
    if "binary_data" in parameters:
        if parameters["binary_data"].WhichOneof("parameter_choice") != "bool_param":
            raise InvalidRequest("invalid value type for 'binary_data' parameter, expected bool_param")
        typed = not parameters["binary_data"].bool_param
    return Wanted(spec, classes, typed, region_of(parameters, spec.name))


def write_outputs(
    response: pb.ModelInferResponse,
    wanted: Sequence[Wanted],
    arrays: Sequence[Array],
    batched: bool,
    regions: WritableRegions,
) -> Answer:
    """``response`` with ``arrays``, one for each wanted output, as the model gave it; serialized, large ones in pieces.

    A copy of 100 MB keeps the interpreter for 50 ms or more, and protobuf makes three.
    """
    raw: list[bytes | memoryview] = []
    for want, array in zip(wanted, arrays, strict=True):
        spec, datatype = want.spec, want.spec.datatype
        if spec.reshape is not None:
            array = array.reshape(spec.seen(array.shape))
        if want.classes:
            if batched and not array.shape:
                raise InvalidRequest(f"output {quoted(spec.name)} has no rows for this input and cannot be classified")
            array, datatype = classify(array, want.classes, spec.labels, batched, spec.datatype.name), BYTES
        output = response.outputs.add(name=spec.name, datatype=datatype.name, shape=array.shape)
        data: bytes | memoryview = b""
        if want.region is not None:
            region, offset, size = want.region
            data = _raw(array, datatype)
            regions.write(region, offset, size, data)
            output.parameters["shared_memory_region"].string_param = region
            output.parameters["shared_memory_offset"].int64_param = offset
            output.parameters["shared_memory_byte_size"].int64_param = len(data)
            data = b""
        elif want.typed:
            fill_typed(output.contents, array, datatype)
        else:
            data = _raw(array, datatype)
        raw.append(data)
    # Clients count entries, so every output has one, an empty one too; but there are none where all outputs are typed.
    if wanted and all(want.typed and want.region is None for want in wanted):
        return response.SerializeToString()
    if sum(map(len, raw)) < PIECES_BYTES:
        response.raw_output_contents.extend(map(bytes, raw))
        return response.SerializeToString()
    parts: list[bytes | memoryview] = [response.SerializeToString()]
    for data in raw:
        parts += [RESPONSE_RAW + varint(len(data)), memoryview(data)]
    return Pieces(parts)


def is_part(array: Array) -> bool:
    """Whether ``array`` is a part of a larger one, which would stay in memory with it."""
    return bool(getattr(array.base, "nbytes", array.nbytes) > array.nbytes)


def _raw(array: Array, datatype: Datatype) -> bytes | memoryview:
    """The raw contents of ``array``; those of many numbers are its own memory."""
    if datatype is BYTES or array.nbytes < PIECES_BYTES:
        return to_raw(array, datatype)
    whole = np.ascontiguousarray(array, datatype.dtype)
    whole = whole.copy() if is_part(whole) else whole
    return whole.reshape(-1).view(np.uint8).data
