"""The exception of a failed call, and advice how to mend a request that the server refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from normfold.protos.datatypes import by_name
from normfold.serving.client.metadata import ModelMetadata, TensorMetadata
from normfold.serving.client.transport.answers import Reply
from normfold.serving.errors import Status

if TYPE_CHECKING:
    import grpc

    from normfold.protos import grpc_service as pb

#: How servers begin a message about a request without an id. It says nothing, so it is cut off.
_NO_ID = "[request id: <id_unknown>] "

#: After these answers to a question for a model's metadata it is useless to ask again: the server has no such
#: procedure, or the token does not allow it.
WITHOUT_METADATA = (Status.UNIMPLEMENTED, Status.PERMISSION_DENIED)


class ClientError(Exception):
    """A call that failed: its gRPC ``code`` and the ``details`` that the server or the client gives.

    ``code`` has gRPC's name and number (``error.code.name``, ``int(error.code)``). ``status`` is the same as one of
    ``grpc.StatusCode``; reading it imports grpcio.
    """

    def __init__(self, status: Status | grpc.StatusCode, details: str) -> None:
        details = details.removeprefix(_NO_ID)
        super().__init__(f"{status.name}: {details}")
        self.code: Status = status if isinstance(status, Status) else Status[status.name]
        self.details = details

    @property
    def status(self) -> grpc.StatusCode:
        """``code`` as grpcio has it."""
        import grpc

        return grpc.StatusCode[self.code.name]

    def __reduce__(self) -> tuple[type[ClientError], tuple[Status, str]]:
        return ClientError, (self.code, self.details)


def client_error(reply: Reply) -> ClientError:
    """The exception for a call that ended with ``reply``."""
    details = reply.details
    if reply.status is Status.UNAUTHENTICATED:
        details = f"{details}; give token=…, or to a command NORMFOLD_TOKEN or --token-file"
    return ClientError(reply.status, details)


#: Makes the message of the request that failed, when it is needed.
Made = Callable[[], "pb.ModelInferRequest"]


def advised(error: ClientError, request: pb.ModelInferRequest, metadata: ModelMetadata) -> ClientError:
    """``error``, a refusal of ``request``, with the cure where one input has another datatype or shape than the model.

    The note that Triton adds to every wrong shape, which is about config.pbtxt, is left out then.
    """
    for tensor in request.inputs:
        declared = next((one for one in metadata.inputs if one.name == tensor.name), None)
        cure = _cure(tensor, declared) if declared is not None else ""
        if cure:
            return ClientError(error.code, f"{error.details.partition(' NOTE: ')[0].rstrip('.')}; {cure}")
    return error


def _cure(tensor: pb.ModelInferRequest.InferInputTensor, declared: TensorMetadata) -> str:
    """Advice how to change an array so that it fits; "" where it fits, or where no simple change makes it fit."""
    shape, name = tuple(tensor.shape), tensor.name if tensor.name.isidentifier() else "x"
    if tensor.datatype != declared.datatype:
        if tensor.datatype == "BYTES":
            return "the input holds text, and the model takes numbers"
        if tensor.datatype == "BF16":  # an array of a file has no dtype that NumPy can cast
            name = f"{name}.view(ml_dtypes.bfloat16)"
        return _cast(name, declared.datatype)
    if declared.fits(shape):
        return ""
    swapped = (*shape[:-2], *shape[:-3:-1])
    if len(shape) > 1 and declared.fits(swapped):
        return f"transposed? {name}.swapaxes(-1, -2) has the shape {list(swapped)}, which fits"
    for one, written in ((shape, name), (swapped, f"{name}.swapaxes(-1, -2)")):
        if declared.shape[:1] == (-1,) and declared.fits((1, *one)):
            return f"without the axis of the batch? {written}[None] has the shape {[1, *one]}, which fits"
    if shape[:1] == (1,) and declared.fits(shape[1:]):
        return f"an axis too many? {name}[0] has the shape {list(shape[1:])}, which fits"
    return ""


def _cast(name: str, datatype: str) -> str:
    if datatype == "BYTES":
        return "the model takes text: an array of str or bytes"
    dtype = "ml_dtypes.bfloat16" if datatype == "BF16" else repr(by_name(datatype).dtype.name)
    return f"use {name}.astype({dtype})"
