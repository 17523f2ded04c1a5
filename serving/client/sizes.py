"""The sizes of a request, held to those that the model was proved for, before anything is sent."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from normfold.serving.client.metadata import ModelMetadata
from normfold.serving.wire.proved_sizes import ALLOWED, PROVED, ProvedSizes, parse

if TYPE_CHECKING:
    from normfold.protos import grpc_service as pb

__all__ = ["note", "proved_sizes", "refusal", "shapes_of"]


def proved_sizes(metadata: ModelMetadata) -> ProvedSizes | None:
    """The sizes that the export proved. None for a model of another exporter, or of a server of another version."""
    text = metadata.properties.get(PROVED)
    return None if text is None else _parsed(text)


def refusal(metadata: ModelMetadata | None, shapes: Mapping[str, Sequence[int]]) -> str:
    """The server's sentence about the first size in ``shapes`` that the model does not take; "" for no such size."""
    sizes = None if metadata is None or ALLOWED in metadata.properties else proved_sizes(metadata)
    return "" if sizes is None else sizes.refusal(shapes, batched=True)


def note(metadata: ModelMetadata, shapes: Mapping[str, Sequence[int]]) -> str:
    """A sentence about a size that the server answers although the proof did not run it; "" for no such size."""
    sizes = proved_sizes(metadata)
    return "" if sizes is None else sizes.refusal(shapes, batched=True) or sizes.beyond(shapes)


def shapes_of(request: pb.ModelInferRequest) -> dict[str, tuple[int, ...]]:
    """The shape of each input of a request by name."""
    return {tensor.name: tuple(tensor.shape) for tensor in request.inputs}


@functools.lru_cache(maxsize=64)
def _parsed(text: str) -> ProvedSizes | None:
    try:
        return parse(text)
    except ValueError:  # written by a server of another version: that server checks the request
        return None
