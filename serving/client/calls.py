"""The part that both clients share: request messages from arrays, arrays from responses, exceptions from statuses."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
from numpy.typing import ArrayLike, NDArray

from normfold.protos import grpc_service as pb
from normfold.protos.datatypes import Datatype, by_dtype, by_name
from normfold.serving.wire.tensors import split_elements, to_raw

Array = NDArray[Any]

SERVICE = "/inference.GRPCInferenceService/"
DEFAULT_ADDRESS = "127.0.0.1:8001"

#: A call without an answer after this many seconds is an error, unless the caller gives another time.
DEFAULT_TIMEOUT_SECONDS = 60.0

#: Repeat a call at most twice if the server is starting or stopping (a call that a stopping server has not looked at
#: ends as CANCELLED). gRPC repeats no call that is larger than its retry buffer.
_RETRY = {
    "methodConfig": [
        {
            "name": [{"service": "inference.GRPCInferenceService", "method": "ModelStreamInfer"}]
        },  # multiplex.py repeats it
        {
            "name": [{"service": "inference.GRPCInferenceService"}],
            "retryPolicy": {
                "maxAttempts": 3,
                "initialBackoff": "0.1s",
                "maxBackoff": "1s",
                "backoffMultiplier": 3,
                "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
            },
        },
    ]
}
OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.per_rpc_retry_buffer_size", (1 << 31) - 1),
    ("grpc.service_config", json.dumps(_RETRY)),
)


class ClientError(Exception):
    """A call that failed: its gRPC ``status``, and the ``details`` that the server or gRPC gave."""

    def __init__(self, status: grpc.StatusCode, details: str) -> None:
        super().__init__(f"{status.name}: {details}")
        self.status, self.details = status, details


@dataclass(frozen=True)
class TensorMetadata:
    """The name, datatype and shape of an input or output; -1 is any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ModelMetadata:
    """The inputs, outputs and versions of a served model."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]


@dataclass(frozen=True)
class ServerMetadata:
    """The name and version of a server, and the extensions of the protocol that it has."""

    name: str
    version: str
    extensions: tuple[str, ...]


@dataclass(frozen=True)
class LabelledClass:
    """One class in the answer of a classification."""

    score: float
    index: int
    #: Empty if the model has no labels.
    label: str


def infer_request(
    model: str,
    inputs: Mapping[str, ArrayLike],
    outputs: Iterable[str] | None,
    version: str,
    request_id: str,
    top: int = 0,
) -> pb.ModelInferRequest:
    """The message that asks ``model`` for an answer to ``inputs``, which are arrays by input name.

    ``top``: ask for this many best classes of each output; 0: for the numbers. Arrays are sent little-endian whatever
    their byte order; ``str`` elements are sent as UTF-8. Raises ValueError for an array whose dtype has no name in the
    protocol.
    """
    request = pb.ModelInferRequest(model_name=model, model_version=version, id=request_id)
    for name, value in inputs.items():
        array, datatype = _array(name, value)
        request.inputs.add(name=name, datatype=datatype.name, shape=array.shape)
        request.raw_input_contents.append(to_raw(array, datatype))
    for name in outputs or ():
        output = request.outputs.add(name=name)
        if top:
            output.parameters["classification"].int64_param = top
    return request


def _array(name: str, value: ArrayLike) -> tuple[Array, Datatype]:
    array = np.asarray(value)
    try:
        datatype = by_dtype(array.dtype)
    except KeyError:
        raise ValueError(
            f"input {name!r} has dtype {array.dtype}, which the protocol has no name for; "
            "use bool, an integer, float16, float32, float64, bytes or str"
        ) from None
    if datatype.name == "BYTES":
        elements = np.empty(array.size, object)
        elements[:] = [e.encode() if isinstance(e, str) else bytes(e) for e in array.ravel().tolist()]
        return elements.reshape(array.shape), datatype
    if datatype.name == "BF16":
        return array.view(datatype.dtype), datatype
    return array, datatype


def arrays(response: pb.ModelInferResponse) -> dict[str, Array]:
    """The outputs of a response by name; BYTES as ``bytes`` objects, BF16 as its bits in uint16."""
    found = {}
    for index, output in enumerate(response.outputs):
        datatype = by_name(output.datatype)
        shape = tuple(output.shape)
        if index >= len(response.raw_output_contents):
            values = np.array(getattr(output.contents, datatype.contents_field), datatype.dtype)
        elif datatype.name == "BYTES":
            values = np.empty(int(np.prod(shape, dtype=np.int64)), object)
            values[:] = split_elements(response.raw_output_contents[index], values.size, f"output {output.name!r}")
        else:
            values = np.frombuffer(response.raw_output_contents[index], datatype.dtype)
        found[output.name] = values.reshape(shape)
    return found


def labelled(elements: Array) -> list[list[LabelledClass]]:
    """The classes in an answer of the classification extension: a list for each row, the best class first."""
    rows = elements.reshape(-1, elements.shape[-1]) if elements.ndim else elements.reshape(1, 1)
    return [[_labelled(element) for element in row] for row in rows]


def _labelled(element: bytes) -> LabelledClass:
    score, index, *label = element.decode(errors="replace").split(":", 2)
    return LabelledClass(float(score), int(index), label[0] if label else "")


def model_metadata(response: pb.ModelMetadataResponse) -> ModelMetadata:
    """The content of ``response`` as a value."""
    inputs, outputs = (
        tuple(TensorMetadata(t.name, t.datatype, tuple(t.shape)) for t in side)
        for side in (response.inputs, response.outputs)
    )
    return ModelMetadata(response.name, tuple(response.versions), response.platform, inputs, outputs)


def server_metadata(response: pb.ServerMetadataResponse) -> ServerMetadata:
    """The content of ``response`` as a value."""
    return ServerMetadata(response.name, response.version, tuple(response.extensions))


def client_error(error: grpc.RpcError, address: str) -> ClientError:
    """The exception for a failed call."""
    status, details = error.code(), error.details() or ""
    if status is grpc.StatusCode.UNAVAILABLE and ("connect" in details.lower() or not details):
        details = f"no server answers at {address} ({details}); start one with: normfold serve --repository DIR"
    return ClientError(status, details)
