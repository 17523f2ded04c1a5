"""The request of a load, made from the metadata of a model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normfold.protos.datatypes import by_name
from normfold.serving.client.calls import infer_request
from normfold.serving.client.metadata import ModelMetadata, TensorMetadata

Array = NDArray[Any]

#: The sizes that replace dimensions of any size: of the first dimension, which is mostly the batch, and of the others.
BATCH, LENGTH = 1, 32


def request_bytes(metadata: ModelMetadata, shapes: Mapping[str, tuple[int, ...]], given: Mapping[str, Array]) -> bytes:
    """A serialized ModelInferRequest with the arrays in ``given``, and with random arrays (seed 0) for other inputs.

    Random floats are normal, integers and booleans are 0 or 1, and texts are short. Raises ValueError for a name or
    shape that the model does not have.
    """
    names = [tensor.name for tensor in metadata.inputs]
    for name in (*shapes, *given):
        if name not in names:
            raise ValueError(f"model {metadata.name!r} has no input {name!r}; it has {', '.join(names)}")
    random = np.random.default_rng(0)
    arrays = {
        tensor.name: given[tensor.name] if tensor.name in given else draw(tensor, shapes.get(tensor.name), random)
        for tensor in metadata.inputs
    }
    return infer_request(metadata.name, arrays, None, "", "").SerializeToString()


def draw(tensor: TensorMetadata, shape: tuple[int, ...] | None, random: np.random.Generator) -> Array:
    """A random array for an input: of ``shape``, or of the input's own shape with open sizes replaced.

    Raises ValueError.
    """
    own = tuple(size if size >= 0 else (BATCH if axis == 0 else LENGTH) for axis, size in enumerate(tensor.shape))
    size = own if shape is None else shape
    if len(size) != len(own) or any(got != want for got, want in zip(size, tensor.shape, strict=True) if want >= 0):
        takes = ",".join(str(want) if want >= 0 else "any" for want in tensor.shape)
        raise ValueError(f"input {tensor.name!r}: shape {_dims(size)} does not fit {takes}, which the model takes")
    datatype = by_name(tensor.datatype)
    if tensor.datatype == "BYTES":
        texts = np.empty(math.prod(size), object)
        texts[:] = b"normfold"
        return texts.reshape(size)
    if tensor.datatype in ("FP16", "FP32", "FP64"):
        return random.standard_normal(size).astype(datatype.dtype)
    if tensor.datatype == "BF16":
        raise ValueError(f"input {tensor.name!r} is BF16: give an array with --input")
    return random.integers(0, 2, size).astype(datatype.dtype)


def _dims(shape: tuple[int, ...]) -> str:
    return ",".join(map(str, shape))
