"""The network that folding works on: tensors, and operators that know how a change of their tensors' scale passes.

A *gauge* of a tensor is the affine ``g`` with ``old = g(new)``: what the tensor held before, written with what it holds
after. Folding is a choice of gauges. A BatchNorm ``y = B(u)`` may go when ``g_y = B ∘ g_u``; linear operators take any
gauge into their weights; every other operator says which gauges of its inputs and outputs belong together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from normfold.export.fold.affine import Affine, Array
from normfold.export.graphs.writing import Writing

Dim: TypeAlias = int | str | None


FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})


class Refused(Exception):
    """A change that some operator cannot take; the message says which and why, in a PyTorch user's words."""


@dataclass(eq=False)
class Tensor:
    """A value of the graph that is computed, not constant."""

    value: ir.Value
    #: A length, the name of a dynamic length, or None where nothing is known, for each dimension; None: unknown rank.
    shape: tuple[Dim, ...] | None
    producer: Op | None = None
    #: The operators that read it, once for each time they do.
    readers: list[Op] = field(default_factory=list)
    #: Why its numbers may not change ("is an output of the network"), or "".
    pinned: str = ""

    @property
    def name(self) -> str:
        """Its name in the graph."""
        return self.value.name or "?"

    @property
    def rank(self) -> int:
        """Its number of dimensions; refused where that is unknown."""
        if self.shape is None:
            raise Refused(f"the rank of '{self.name}' is not known")
        return len(self.shape)

    def size(self, axis: int) -> int:
        """Its length along an axis; refused where that is dynamic."""
        self.rank  # noqa: B018 - refuses an unknown rank
        assert self.shape is not None
        size = self.shape[axis]
        if not isinstance(size, int):
            raise Refused(f"the length of axis {axis} of '{self.name}' is dynamic")
        return size

    def resize(self, axis: int, by: int) -> None:
        """Lengthen an axis, of the graph's value too."""
        size = self.size(axis) + by
        assert self.shape is not None
        self.shape = (*self.shape[:axis], size, *self.shape[axis + 1 :])
        if self.value.shape is not None:
            self.value.shape = ir.Shape([size if a == axis else d for a, d in enumerate(self.value.shape)])

    def gauge(self, gauges: Mapping[Tensor, Affine]) -> Affine:
        """Return its gauge, the identity where none was set."""
        return gauges[self] if self in gauges else Affine.identity(self.rank)


class Gauges(dict[Tensor, Affine]):
    """The gauges settled so far; a tensor that is not in it keeps the numbers that it has."""

    #: Whether a clamp is to hold the channels that come scaled by 0 at their constant, by two equal bounds, rather than
    #: pass the scale of 0 on: it costs a node, and then no shift has to be carried behind the clamp.
    holds_zeros: bool = False


@dataclass(frozen=True)
class Widening:
    """One channel more in a tensor, at ``index`` of ``axis``, of ``count`` entries that all hold ``value``."""

    axis: int
    index: int
    count: int = 1
    value: float = 1.0


Widenings: TypeAlias = Mapping[Tensor, Widening]


@dataclass(eq=False)
class Op:
    """An operator and the rule of its kind.

    ``params`` holds what a fold may change; the methods that compute new params are pure, and only ``Net`` sets them.
    """

    node: ir.Node
    name: str
    inputs: list[Tensor]
    outputs: list[Tensor]
    params: Any = None
    changed: bool = False
    order: int = 0

    @property
    def ends_in_zeros(self) -> bool:
        """Whether it adds zeros before or behind positions."""
        return False

    def spread(self, gauges: Gauges) -> dict[Tensor, Affine]:
        """Return the gauges that its other tensors must have, given those known; raise Refused where none fit."""
        raise Refused(f"{self} is not linear, and no per-channel scale or shift passes through it")

    def rewritten(self, gauges: Gauges) -> Any:
        """Return the params under the given gauges."""
        return self.params

    def cost(self, params: Any) -> float:
        """Return the run time with these params, in passes over its output not shared with a convolution."""
        return 0.0

    def widen(self, widenings: Widenings) -> dict[Tensor, Widening]:
        """Return the widenings that its other tensors must have, given those known; raise Refused where none fit."""
        raise Refused(f"{self} cannot carry one more channel")

    def widened(self, widenings: Widenings) -> Any:
        """Return the params under the given widenings."""
        return self.params

    def constants(self, known: Mapping[Tensor, Array]) -> list[Array | None]:
        """Return for each output the constant each channel (axis 1) always holds, NaN where it is not constant."""
        return [None] * len(self.outputs)

    def write(self, graph: Writing) -> None:
        """Write the params into the graph's node; called only where they changed."""

    def __str__(self) -> str:
        """Its name for a person."""
        return f"'{self.name}' ({self.node.op_type})"


@dataclass(eq=False)
class Net:
    """The operators of one graph in topological order, and how tensors join them."""

    ops: list[Op]
    #: The type of the first floating-point tensor, for where nothing else is known.
    dtype: np.dtype[Any]

    def dtype_of(self, op: Op) -> np.dtype[Any]:
        """Return the type that an operator computes in: its output's or its weights', else the graph's."""
        for value in (*(y.value for y in op.outputs), *op.node.inputs):
            if value is not None and value.dtype in FLOATS:
                return value.dtype.numpy()
        return self.dtype

    def remove(self, op: Op) -> None:
        """Take out an operator of one input and one output: its readers read its input instead."""
        (source,), (result,) = op.inputs, op.outputs
        self.ops.remove(op)
        source.readers.remove(op)
        for reader in result.readers:
            reader.inputs[reader.inputs.index(result)] = source
            source.readers.append(reader)
        source.pinned = source.pinned or result.pinned
        result.readers = []
