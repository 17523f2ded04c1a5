"""Areas: channels of several tensors that one number scales, because the operators between them pass a scale on.

An area begins at the output of a linear operator and ends at linear operators, which take any scale into their weights.
Which tensors are in it is asked of the operators, as a fold asks them: a gauge that scales every channel by another
number is spread from the output, and shows afterwards which channel each entry of each tensor belongs to.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from normfold.export.fold.affine import Affine, Array
from normfold.export.fold.engine.spreading import spread
from normfold.export.fold.engine.streams import Streams
from normfold.export.fold.net import Gauges, Net, Op, Refused, Tensor, TooDear
from normfold.export.fold.ops.linear import Linear, linears

__all__ = ["Area", "Slices", "areas_of"]


@dataclass(frozen=True, eq=False)
class Slices:
    """To which channel of an area each slice of a tensor along one axis belongs."""

    axis: int
    #: (length,): a channel of the area, or -1 for a slice that is outside of it.
    channel: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Area:
    """The tensors that are scaled together."""

    start: Tensor
    #: The axis of the channels in ``start``, and their number.
    axis: int
    size: int
    tensors: dict[Tensor, Slices]
    #: The operators that change, in the graph's order.
    ops: list[Op]

    @property
    def readers(self) -> list[tuple[Linear, Tensor]]:
        """The linear operators that read a tensor of the area along its channels, each with that tensor."""
        found = []
        for op in linears(self.ops):
            (x,) = op.inputs
            if x in self.tensors and self.tensors[x].axis == op.axis_in % x.rank:
                found.append((op, x))
        return found


def areas_of(net: Net, streams: Streams | None = None) -> Iterator[Area]:
    """Yield each area once, in the graph's order; tensors that no positive scale may change are in none."""
    streams = streams or Streams(net, math.inf)
    covered: dict[Tensor, NDArray[np.bool_]] = {}
    for op in linears(net.ops):
        (y,) = op.outputs
        if y in covered and covered[y].all():
            continue
        try:
            area = _area(op, y, streams)
        except Refused:
            continue
        for tensor, slices in area.tensors.items():
            inside = slices.channel >= 0
            covered[tensor] = covered.get(tensor, np.zeros_like(inside)) | inside
        yield area


def along(area: Area, scales: Array) -> Affine:
    """Return the gauge of the area's first tensor whose channels are scaled by ``scales``, (size,)."""
    return Affine.along(area.axis, area.start.rank, scales, np.zeros(1))


def _area(op: Linear, y: Tensor, streams: Streams) -> Area:
    axis, size = op.axis_out % y.rank, op.params.weight.shape[0] * op.params.weight.shape[1]
    marks = 2.0 + np.arange(size)
    gauges = Gauges()
    ops = spread(((y, Affine.along(axis, y.rank, marks, np.zeros(1))),), gauges, streams)
    for changed in ops:
        if not isinstance(changed, Linear):
            params = changed.rewritten(gauges)
            if changed.dearer(params) or changed.cost(params) > changed.cost(changed.params):
                raise TooDear(f"{changed} would take more nodes")
    return Area(y, axis, size, {tensor: _slices(tensor, gauge, marks) for tensor, gauge in gauges.items()}, ops)


def _slices(tensor: Tensor, gauge: Affine, marks: Array) -> Slices:
    varying = [axis for axis in range(gauge.rank) if gauge.varies(axis)]
    if gauge.shifts or len(varying) != 1:
        raise Refused(f"the channels of '{tensor.name}' are not along one axis")
    scale = gauge.scale.reshape(-1)
    channel = np.minimum(np.searchsorted(marks, scale), len(marks) - 1)
    if np.any((marks[channel] != scale) & (scale != 1)):
        raise Refused(f"the channels of '{tensor.name}' are scaled by products")
    return Slices(varying[0], np.where(scale == 1, -1, channel))
