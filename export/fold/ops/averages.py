"""Weighted averages over positions, as in attention pooling, and the Softmax that gives the weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from normfold.export.fold.affine import Affine, Array
from normfold.export.fold.net import Dim, Gauges, Op, Refused, Tensor
from normfold.export.fold.ops.entrywise import Passing


@dataclass(eq=False)
class SoftmaxWeights(Op):
    """Softmax: nothing passes it. Its output has the lengths of its input, and adds up to 1 along an axis."""

    def lengths(self, shapes: Sequence[tuple[Dim, ...]], index: int) -> Sequence[Dim]:
        """The lengths of the input."""
        return shapes[0]


@dataclass(eq=False)
class WeightedMean(Passing):
    """y = Σ w[l] x[l] over one axis l of x, where the weights w are computed and Σ w[l] = 1: any affine passes.

        Σ w[l] (s x[l] + t) = s Σ w[l] x[l] + t Σ w[l] = s y + t

    It is a MatMul, or a Mul and a ReduceSum. The weights come from a Softmax over exactly the axis that is summed, and
    x is not broadcast along it. The inputs are x and the weights; the weights may not be scaled.
    """

    #: The axis of x that is summed. In the output of a MatMul it is the axis of the averages.
    axis: int = 0
    #: Whether the output lacks the axis.
    drops_axis: bool = False
    #: The ReduceSum behind the Mul, which this operator computes too.
    sum: ir.Node | None = None

    def spread(self, gauges: Gauges) -> dict[Tensor, Affine]:
        """x and the average have the same gauge, which must not differ along the summed axis."""
        x, weights = self.inputs
        (y,) = self.outputs
        if weights in gauges and not gauges[weights].is_identity:
            raise Refused(f"the weights of {self} add up to 1, and would not after a scale or shift")
        if x in gauges:
            self._check(gauges[x])
            return {y: _changed(gauges[x], np.squeeze, self.axis) if self.drops_axis else gauges[x]}
        if y not in gauges:
            return {}
        gauge = _changed(gauges[y], np.expand_dims, self.axis) if self.drops_axis else gauges[y]
        self._check(gauge)
        return {x: gauge}

    def _check(self, gauge: Affine) -> None:
        x = self.inputs[0]
        if gauge.varies(self.axis):
            raise Refused(f"{self} averages over positions, and here the scale differs from position to position")
        for axis in range(gauge.rank):
            if gauge.varies(axis) and x.size(axis) != self._length(axis):
                raise Refused(f"{self} broadcasts one of its inputs")

    def _length(self, axis: int) -> int:
        """Return the length of the output along an axis of x."""
        return self.outputs[0].size(axis - (self.drops_axis and axis > self.axis))

    def constants(self, known: Mapping[Tensor, Array]) -> list[Array | None]:
        """A constant channel stays constant where a later axis is summed."""
        x, (y,) = self.inputs[0], self.outputs
        return [known.get(x) if self.axis > 1 and x.channels == y.channels else None]


def _changed(gauge: Affine, change: Callable[..., Array], axis: int) -> Affine:
    return Affine.of(change(gauge.scale, axis=axis), change(gauge.shift, axis=axis))
