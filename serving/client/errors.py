"""The exception of a failed call, and what would cure a request that the server refuses."""

from __future__ import annotations

import grpc

from normfold.protos import grpc_service as pb
from normfold.protos.datatypes import by_name
from normfold.serving.client.metadata import ModelMetadata, TensorMetadata

#: Servers begin a message about a request without an id with these words, which say nothing.
_NO_ID = "[request id: <id_unknown>] "

#: A server that answers so when it is asked for a model's metadata will do so again: it has no such procedure, or the
#: token does not allow it.
WITHOUT_METADATA = (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.PERMISSION_DENIED)

#: In what gRPC says of a connection that failed because of TLS.
_OF_TLS = ("handshake", "verification", "ssl_error", "certificate")


class ClientError(Exception):
    """A call that failed: its gRPC ``status``, and the ``details`` that the server or gRPC gave."""

    def __init__(self, status: grpc.StatusCode, details: str) -> None:
        details = details.removeprefix(_NO_ID)
        super().__init__(f"{status.name}: {details}")
        self.status, self.details = status, details

    def __reduce__(self) -> tuple[type[ClientError], tuple[grpc.StatusCode, str]]:
        return ClientError, (self.status, self.details)


def client_error(error: grpc.RpcError, address: str) -> ClientError:
    """The exception for a failed call."""
    status, details = error.code(), error.details() or ""
    if status is grpc.StatusCode.UNAVAILABLE:
        if any(word in details.lower() for word in _OF_TLS):
            details = (
                f"{address} and this client found no way to use TLS together ({details}); does the server have TLS, "
                "did ca sign its certificate, is the certificate for this name, and does it want one of the client?"
            )
        elif "connect" in details.lower() and "Socket closed" in details:
            details = f"no server answers at {address} in plain text ({details}); does it want TLS (tls=…, --tls-ca)?"
        elif "connect" in details.lower() or not details:
            details = f"no server answers at {address} ({details}); start one with: normfold serve --repository DIR"
        elif "resolving" in details or "lookup" in details:
            details = f"the host in {address} is not known here; is its name right? ({details})"
    elif status is grpc.StatusCode.UNAUTHENTICATED:
        details = f"{details}; give token=…, or to a command NORMFOLD_TOKEN or --token-file"
    return ClientError(status, details)


def advised(error: ClientError, request: pb.ModelInferRequest, metadata: ModelMetadata) -> ClientError:
    """``error``, a refusal of ``request``, with the cure where one input has another datatype or shape than the model.

    The note that Triton adds to every wrong shape, which is about config.pbtxt, is left out then.
    """
    for tensor in request.inputs:
        declared = next((one for one in metadata.inputs if one.name == tensor.name), None)
        cure = _cure(tensor, declared) if declared is not None else ""
        if cure:
            return ClientError(error.status, f"{error.details.partition(' NOTE: ')[0].rstrip('.')}; {cure}")
    return error


def _cure(tensor: pb.ModelInferRequest.InferInputTensor, declared: TensorMetadata) -> str:
    """What to do with an array so that it fits; "" where it fits, or where no simple change makes it fit."""
    shape, name = tuple(tensor.shape), tensor.name if tensor.name.isidentifier() else "x"
    if tensor.datatype != declared.datatype:
        return _cast(name, declared.datatype)
    if declared.fits(shape):
        return ""
    swapped = (*shape[:-2], *shape[:-3:-1])
    if len(shape) > 1 and declared.fits(swapped):
        return f"transposed? {name}.swapaxes(-1, -2) has the shape {list(swapped)}, which fits"
    for one, written in ((shape, name), (swapped, f"{name}.swapaxes(-1, -2)")):
        if declared.shape[:1] == (-1,) and declared.fits((1, *one)):
            return f"without the axis of the batch? {written}[None] has the shape {[1, *one]}, which fits"
    return ""


def _cast(name: str, datatype: str) -> str:
    if datatype == "BYTES":
        return "the model takes text: an array of str or bytes"
    dtype = "ml_dtypes.bfloat16" if datatype == "BF16" else repr(by_name(datatype).dtype.name)
    return f"use {name}.astype({dtype})"
