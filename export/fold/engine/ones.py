"""The carrier of last resort: a Pad that puts a channel of ones before one convolution."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from normfold.export.fold.affine import Affine, Array, joined
from normfold.export.fold.channels import AddedChannel
from normfold.export.fold.net import AddedChannels, Gauges, Net, Op, Refused, Tensor
from normfold.export.fold.ops.costs import PUT_COST
from normfold.export.fold.ops.linear import Linear
from normfold.export.graphs.writing import Writing


@dataclass(eq=False)
class Ones(Op):
    """A Pad that puts one channel of ones behind a tensor's channels, for one reader."""

    def spread(self, gauges: Gauges) -> dict[Tensor, Affine]:
        """The gauge of the channels passes; the ones keep the identity."""
        (x,), (y,) = self.inputs, self.outputs
        size = x.size(1)
        if x in gauges and y not in gauges:
            return {y: joined([gauges[x], Affine.identity(x.rank)], [size, 1], 1)}
        gauge = gauges[y]
        if not gauge.take(1, np.array([size])).is_identity:
            raise Refused(f"{self} holds ones, which are not to be scaled")
        return {x: gauge.take(1, np.arange(size))}

    def cost(self, params: Any) -> float:
        """Return the cost of a Pad."""
        return PUT_COST

    def add_channel(self, added: AddedChannels) -> dict[Tensor, AddedChannel]:
        """One more channel passes before the ones."""
        (x,), (y,) = self.inputs, self.outputs
        if x not in added and added[y].index > x.size(1):
            raise Refused(f"{self} carries one more channel only before the ones")
        return {y: added[x]} if x in added else {x: added[y]}

    def constants(self, known: Mapping[Tensor, Array]) -> list[Array | None]:
        """The last channel holds 1."""
        x = self.inputs[0]
        return [np.append(known.get(x, np.full(x.size(1), np.nan)), 1.0)]

    def write(self, graph: Writing) -> None:
        """Write a Pad of one along the channel axis."""
        rank = self.inputs[0].rank
        pads = np.zeros(2 * rank)
        pads[rank + 1] = 1
        like = self.outputs[0].name
        (reader,) = self.outputs[0].readers
        x = self.inputs[0].value
        if graph.opset < 11:
            padded = graph.insert("Pad", [x], reader.node, like, pads=[int(p) for p in pads], value=1.0)
        else:
            ends = graph.constant(pads, f"{like}.pads", np.dtype(np.int64))
            one = graph.constant(np.ones(()), f"{like}.one")
            padded = graph.insert("Pad", [x, ends, one], reader.node, like)
        reader.node.replace_input_with(0, padded)


def check_ones_before(linear: Linear) -> None:
    """Refuse a reader before which a channel of ones would be of no use."""
    (x,) = linear.inputs
    if linear.params.groups > 1 or linear.axis_in != 1:
        raise Refused(f"{linear} is depthwise or grouped, so it cannot read a carrier")
    if linear.unpadded is not x:
        raise Refused(f"{linear} reads zeros that a Pad puts, and ones behind that Pad would not end where they begin")


def put_ones_before(net: Net, linear: Linear) -> Ones:
    """Put a channel of ones before one reader, which gets zero weights for it."""
    check_ones_before(linear)
    (x,) = linear.inputs
    assert x.shape is not None
    shape = (x.shape[0], x.size(1) + 1, *x.shape[2:])
    y = Tensor(ir.Value(name=f"{x.name}_carried"), shape)
    ones = Ones(linear.node, f"carrier of {linear.name}", [x], [y], changed=True, order=linear.order)
    linear.take(linear.with_channel({x: AddedChannel(axis=1, index=x.size(1))}))
    linear.inputs = [y]
    x.readers[x.readers.index(linear)] = ones
    y.producer, y.readers = ones, [linear]
    net.ops.insert(net.ops.index(linear), ones)
    return ones
