"""The metadata of a server and of its models, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from normfold.serving.wire.fields import fields, numbers, sized

if TYPE_CHECKING:
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


def named(name: str, version: str) -> bytes:
    """A serialized request that names a model (1) and a version (2), such as ModelMetadataRequest."""
    return sized(1, name.encode()) + sized(2, version.encode())


def model_metadata(data: bytes) -> ModelMetadata:
    """The content of a serialized ModelMetadataResponse as a value. Raises ValueError."""
    texts = {1: "", 3: ""}
    versions: list[str] = []
    sides: dict[int, list[TensorMetadata]] = {4: [], 5: []}
    properties: dict[str, str] = {}
    for number, _, begin, end in fields(data):
        part = data[begin:end]
        if number in texts:
            texts[number] = part.decode()
        elif number == 2:
            versions.append(part.decode())
        elif number in sides:
            sides[number].append(_tensor(part))
        elif number == 6:
            entry = {key: part[first:last].decode() for key, _, first, last in fields(part)}
            properties[entry.get(1, "")] = entry.get(2, "")
    return ModelMetadata(texts[1], tuple(versions), texts[3], tuple(sides[4]), tuple(sides[5]), properties)


def _tensor(data: bytes) -> TensorMetadata:
    return described(data)[0]


def described(data: bytes) -> tuple[TensorMetadata, set[int]]:
    """The tensor of a TensorMetadata or an InferOutputTensor, and the numbers of the fields that say other things.

    In both, name = 1, datatype = 2, shape = 3. Raises ValueError for what is none of them.
    """
    texts, shape, others = {1: "", 2: ""}, [], set()
    for number, _, begin, end in fields(data):
        if number in texts:
            texts[number] = data[begin:end].decode()
        elif number == 3:
            shape += numbers(data, begin, end)
        else:
            others.add(number)
    return TensorMetadata(texts[1], texts[2], tuple(shape)), others


def server_metadata(response: pb.ServerMetadataResponse) -> ServerMetadata:
    """The content of ``response`` as a value."""
    return ServerMetadata(response.name, response.version, tuple(response.extensions))
