"""The bytes of an answer as what they mean; bytes that mean nothing are a ClientError."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from normfold.serving.client.errors import ClientError
from normfold.serving.client.metadata import ModelMetadata, model_metadata
from normfold.serving.errors import Status
from normfold.serving.wire.fields import fields

if TYPE_CHECKING:
    from google.protobuf.message import Message

Response = TypeVar("Response", bound="Message")


def parsed(response: type[Response], data: bytes) -> Response:
    """The message in ``data``. Raises ClientError for bytes that are none."""
    from google.protobuf.message import DecodeError

    try:
        return response.FromString(data)
    except DecodeError:
        raise ClientError(Status.INTERNAL, f"the server's answer is not a {response.DESCRIPTOR.name}") from None


def says_yes(data: bytes) -> bool:
    """Whether a serialized answer whose only field is one boolean, such as ServerReadyResponse, says true."""
    try:
        return any(number == 1 and data[begin:end] != b"\0" for number, _, begin, end in fields(data))
    except ValueError:
        raise ClientError(Status.INTERNAL, "the server's answer is not a message of the protocol") from None


def read_metadata(data: bytes) -> ModelMetadata:
    """The content of a serialized ModelMetadataResponse. Raises ClientError for bytes that are none."""
    try:
        return model_metadata(data)
    except ValueError:
        raise ClientError(Status.INTERNAL, "the server's answer is not a ModelMetadataResponse") from None
