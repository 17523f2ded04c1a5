"""A network and its inputs with each number moved by a unit in its last place: another rounding, and as right.

Each number of a floating-point type moves up by one unit in the last place, down by one, or, half of the time, not at
all: half a unit on average, which is the most that rounding it would do.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from normfold.export.proof.verify import Arrays

__all__ = ["moved_inputs", "moved_weights"]

#: Operators whose constants decide sizes: moved, they would make another network.
SIZING = frozenset({"Resize", "Upsample", "Range"})
FLOATS = frozenset({TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16})


def moved_inputs(inputs: Arrays, seed: int) -> Arrays:
    """Return the inputs with their floats moved."""
    rng = np.random.default_rng([2015, seed])
    return {name: _moved(array, rng) if array.dtype.kind == "f" else array for name, array in inputs.items()}


def moved_weights(content: bytes, seed: int) -> bytes:
    """Return the graph in ``content`` (ONNX bytes) with its floating-point initializers moved."""
    model, rng = onnx.load_model_from_string(content), np.random.default_rng([4, seed])
    sizing = {name for node in model.graph.node if node.op_type in SIZING for name in node.input}
    for tensor in model.graph.initializer:
        if tensor.data_type in FLOATS and tensor.name not in sizing:
            tensor.CopyFrom(numpy_helper.from_array(_moved(numpy_helper.to_array(tensor), rng), tensor.name))
    return bytes(model.SerializeToString())


def _moved(array: NDArray[np.floating], rng: np.random.Generator) -> NDArray[np.floating]:
    """Zeros and what is not finite stay: a padding, a mask or a missing bound is no rounded number."""
    steps = rng.choice(np.array([-1, 0, 0, 1], array.dtype), array.shape)
    stays = (array == 0) | ~np.isfinite(array)
    with np.errstate(all="ignore"):
        return np.where(stays, array, array + steps * np.spacing(array)).astype(array.dtype)
