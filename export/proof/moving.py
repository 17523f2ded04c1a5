"""A network and its inputs with each number moved by a unit in its last place: another rounding, and as right.

Each number of a floating-point type moves up by one unit in the last place, down by one, or, half of the time, not at
all: half a unit on average, which is the most that rounding it would do.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from normfold.export.proof.verify import Arrays, Run

__all__ = ["moved_run", "moved_weights"]

#: Operators whose constants decide sizes: moved, they would make another network.
SIZING = frozenset({"Resize", "Upsample", "Range"})
#: Operators that make numbers of another kind from sizes.
FILLING = frozenset({"Range", "ConstantOfShape", "Expand"})
#: Operators behind which a number is a whole one, or decides.
DECIDING = frozenset({"Cast", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"})
FLOATS = frozenset({TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16})


def moved_run(run: Run, seed: int) -> Run:
    """Return the same function of its inputs with their floats moved."""

    def moved(inputs: Arrays) -> Arrays:
        rng = np.random.default_rng([2015, seed])
        return run({name: _moved(a, rng) if a.dtype.kind == "f" else a for name, a in inputs.items()})

    return moved


def moved_weights(content: bytes, seed: int) -> bytes:
    """Return the graph in ``content`` (ONNX bytes) with its floating-point initializers moved."""
    model, rng = onnx.load_model_from_string(content), np.random.default_rng([4, seed])
    sizing = {name for node in model.graph.node if node.op_type in SIZING for name in node.input}
    sizing |= _calculating_sizes(model.graph)
    exponents = {node.input[1] for node in model.graph.node if node.op_type == "Pow"}
    for tensor in model.graph.initializer:
        if tensor.data_type in FLOATS and tensor.name not in sizing:
            array = numpy_helper.to_array(tensor)
            if tensor.name in exponents and (array == np.trunc(array)).all():
                continue  # the square of a negative number would be NaN if its exponent were not exactly 2
            tensor.CopyFrom(numpy_helper.from_array(_moved(array, rng), tensor.name))
    return bytes(model.SerializeToString())


def _calculating_sizes(graph: onnx.GraphProto) -> set[str]:
    """Return the names of all that goes into sizes calculated from nothing but sizes and constants.

    The 1 of ``ceil(length / 2 + 1)``, moved by a unit, would make one position more. A table of which as many rows are
    taken as the input has positions goes into no size.
    """
    constants = {tensor.name for tensor in graph.initializer}
    sizes: set[str] = set()
    calculating: list[onnx.NodeProto] = []
    for node in graph.node:  # each behind those that it reads
        computed = {name for name in node.input if name} - constants
        if node.op_type in ("Shape", "Size"):
            sizes.update(node.output)
        elif computed and computed <= sizes and node.op_type not in FILLING:
            sizes.update(node.output)
            calculating.append(node)
    names: set[str] = set()
    for node in reversed(calculating):
        if _decides(node) or not names.isdisjoint(node.output):
            names.update(node.input)
    return names


def _decides(node: onnx.NodeProto) -> bool:
    """Whether its result is no float: floats become sizes, or choose a branch, by such an operator alone."""
    return node.op_type in DECIDING and not any(a.name == "to" and a.i in FLOATS for a in node.attribute)


def _moved(array: NDArray[np.floating], rng: np.random.Generator) -> NDArray[np.floating]:
    """Zeros and what is not finite stay: a padding, a mask or a missing bound is no rounded number."""
    steps = rng.choice(np.array([-1, 0, 0, 1], array.dtype), array.shape)
    stays = (array == 0) | ~np.isfinite(array)
    with np.errstate(all="ignore"):
        return np.where(stays, array, array + steps * np.spacing(array)).astype(array.dtype)
