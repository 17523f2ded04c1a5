"""What a server says of itself and of its models, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from normfold.protos import grpc_service as pb


@dataclass(frozen=True)
class TensorMetadata:
    """The name, datatype and shape of an input or output; -1 is any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.datatype}[{','.join(map(str, self.shape))}]"

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a tensor of ``shape`` may be this input or output."""
        return len(shape) == len(self.shape) and all(d in (-1, s) for s, d in zip(shape, self.shape, strict=True))


@dataclass(frozen=True)
class ModelMetadata:
    """The inputs, outputs and versions of a served model."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]
    #: Further facts by name, such as the sizes that the export proved.
    properties: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ServerMetadata:
    """The name and version of a server, and the extensions of the protocol that it has."""

    name: str
    version: str
    extensions: tuple[str, ...]


def model_metadata(response: pb.ModelMetadataResponse) -> ModelMetadata:
    """The content of ``response`` as a value."""
    inputs, outputs = (
        tuple(TensorMetadata(t.name, t.datatype, tuple(t.shape)) for t in side)
        for side in (response.inputs, response.outputs)
    )
    return ModelMetadata(
        response.name, tuple(response.versions), response.platform, inputs, outputs, dict(response.properties)
    )


def server_metadata(response: pb.ServerMetadataResponse) -> ServerMetadata:
    """The content of ``response`` as a value."""
    return ServerMetadata(response.name, response.version, tuple(response.extensions))
