"""The request of a load, made from the metadata of a model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normfold.protos.datatypes import by_name
from normfold.serving.client.calls import infer_request
from normfold.serving.client.inputs import SAVED_BFLOAT16
from normfold.serving.client.metadata import ModelMetadata, TensorMetadata
from normfold.serving.client.sizes import proved_sizes, refusal

Array = NDArray[Any]

#: The sizes that replace dimensions of any size: of the first dimension, which is mostly the batch, and of the others.
#: A dimension that the proof names has one size in all inputs: BATCH where it is always the first. A size that the
#: model was not proved for gives way to the nearest size that the proof ran.
BATCH, LENGTH = 1, 32


def request_bytes(metadata: ModelMetadata, shapes: Mapping[str, tuple[int, ...]], given: Mapping[str, Array]) -> bytes:
    """A serialized ModelInferRequest with the arrays in ``given``, and with random arrays (seed 0) for other inputs.

    Random floats are normal, integers and booleans are 0 or 1, and texts are short. Open sizes are those that the model
    was proved for; inputs that share a dimension share its size. Raises ValueError for a name or shape that the model
    does not have, or that it was not proved for.
    """
    names = [tensor.name for tensor in metadata.inputs]
    for name in (*shapes, *given):
        if name not in names:
            raise ValueError(f"model {metadata.name!r} has no input {name!r}; it has {', '.join(names)}")
    random = np.random.default_rng(0)
    settled = {**{name: array.shape for name, array in given.items()}, **shapes}
    arrays = {
        tensor.name: given[tensor.name]
        if tensor.name in given
        else draw(tensor, shapes.get(tensor.name), random, _open_sizes(tensor, metadata, settled))
        for tensor in metadata.inputs
    }
    if said := refusal(metadata, {name: array.shape for name, array in arrays.items()}):
        raise ValueError(f"{said}; give another --shape or --input")
    return infer_request(metadata.name, arrays, None, "", "").SerializeToString()


def _open_sizes(
    tensor: TensorMetadata, metadata: ModelMetadata, settled: Mapping[str, tuple[int, ...]]
) -> tuple[int, ...]:
    """A size for each axis of an input that the model leaves open: that of ``settled`` shapes, or one that was proved.

    ``settled`` has the shapes of other inputs by name.
    """
    usual = [BATCH if axis == 0 else LENGTH for axis in range(len(tensor.shape))]
    proved = proved_sizes(metadata)
    dims = proved.inputs.get(tensor.name, ()) if proved is not None else ()
    if proved is None or len(dims) != len(usual):
        return tuple(usual)
    known = {
        name: size
        for other, shape in settled.items()
        for name, size in zip(proved.inputs.get(other, ()), shape, strict=False)
    }
    lengths = {name for each in proved.inputs.values() for name in each[1:]}
    for axis, name in enumerate(dims):
        dimension = proved.dimensions.get(name) if isinstance(name, str) else None
        if name in known:
            usual[axis] = known[name]
        elif dimension is not None:
            size = LENGTH if name in lengths else BATCH
            fits = dimension.holds(size) and size <= dimension.tried[-1]
            usual[axis] = size if fits else _nearest(size, dimension.tried)
    return tuple(usual)


def _nearest(size: int, sizes: Sequence[int]) -> int:
    """The one of ``sizes`` that differs least from ``size``."""
    return min(sizes, key=lambda other: abs(other - size))


def draw(
    tensor: TensorMetadata, shape: tuple[int, ...] | None, random: np.random.Generator, sizes: tuple[int, ...]
) -> Array:
    """A random array for an input: of ``shape``, or of the input's own shape with open sizes taken from ``sizes``.

    Raises ValueError.
    """
    own = tuple(size if size >= 0 else other for size, other in zip(tensor.shape, sizes, strict=True))
    size = own if shape is None else shape
    if len(size) != len(own) or any(got != want for got, want in zip(size, tensor.shape, strict=True) if want >= 0):
        takes = ",".join(str(want) if want >= 0 else "any" for want in tensor.shape)
        raise ValueError(f"input {tensor.name!r}: shape {_dims(size)} does not fit {takes}, which the model takes")
    try:
        datatype = by_name(tensor.datatype)
    except KeyError:
        raise ValueError(f"input {tensor.name!r} has the datatype {tensor.datatype!r}, not of the protocol") from None
    if tensor.datatype == "BYTES":
        texts = np.empty(math.prod(size), object)
        texts[:] = b"normfold"
        return texts.reshape(size)
    if tensor.datatype in ("FP16", "FP32", "FP64"):
        return random.standard_normal(size).astype(datatype.dtype)
    if tensor.datatype == "BF16":  # the upper half of a float32
        numbers = np.asarray(random.standard_normal(size), "<f4").view("<u4") >> 16
        return numbers.astype("<u2").view(SAVED_BFLOAT16)
    return random.integers(0, 2, size).astype(datatype.dtype)


def _dims(shape: tuple[int, ...]) -> str:
    return ",".join(map(str, shape))
