"""Constants that a graph holds in float64 under the type that its file has them in: they are rounded when written."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

__all__ = ["FLOATS", "UNROUNDED", "Unrounded", "holding", "is_float", "is_unrounded"]

#: The floating types that arithmetic in float64 can stand in for.
FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
#: The key in a graph's ``meta`` that says that its constants are kept in float64.
UNROUNDED = "normfold.unrounded"


class Unrounded(ir.Tensor[NDArray[np.float64]]):
    """A tensor of type ``dtype`` for ONNX, and an array of float64 for whoever reads it."""

    __slots__ = ()

    def __init__(self, array: NDArray[Any], dtype: ir.DataType, name: str | None = None) -> None:
        super().__init__(np.asarray(array, np.float64, order="C"), name=name)
        self._dtype = dtype

    def tobytes(self) -> bytes:
        """Return the numbers as the file holds them, each rounded once."""
        with np.errstate(over="ignore"):
            rounded = self.numpy().astype(self._dtype.numpy())
        return rounded.astype(rounded.dtype.newbyteorder("<"), copy=False).tobytes()


def holding(array: NDArray[Any], like: ir.TensorProtocol, name: str | None) -> ir.TensorProtocol:
    """Return a tensor of the type of another that holds ``array``, unrounded where the other is."""
    if isinstance(like, Unrounded):
        return Unrounded(array, like.dtype, name)
    return ir.Tensor(np.asarray(array, like.dtype.numpy(), order="C"), name=name)


def is_unrounded(graph: ir.Graph) -> bool:
    """Whether the constants of a graph are kept in float64."""
    return UNROUNDED in graph.meta


def is_float(array: NDArray[Any]) -> bool:
    """Whether an array holds floats; bfloat16 is no kind of its own in NumPy."""
    return array.dtype.kind == "f" or array.dtype.name == "bfloat16"
