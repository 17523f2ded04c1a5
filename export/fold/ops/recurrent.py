"""Operators that are linear in constants, but not in all that they read: recurrent networks and embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from normfold.export.fold.affine import Affine, Array
from normfold.export.fold.channels import AddedChannel
from normfold.export.fold.net import AddedChannels, Gauges, Op, Refused, Tensor
from normfold.export.fold.ops.linear import inverse, stem_of
from normfold.export.fold.silencing import Silencing
from normfold.export.graphs.writing import Writing


@dataclass(frozen=True, eq=False)
class Gates:
    """Input weights (directions, gates x hidden, in) and bias (directions, gates x hidden) of a recurrent operator."""

    weight: Array
    bias: Array
    #: The bias of the recurrent half, of the same shape; it does not change.
    recurrent_bias: Array


@dataclass(eq=False)
class Recurrent(Op):
    """LSTM, GRU, RNN with constant input weights: linear in their input, whose last axis holds the channels.

    W (s x + t) + b = (W s) x + (b + W t)
    """

    takes_affines: ClassVar[bool] = True

    params: Gates

    def spread(self, gauges: Gauges) -> dict[Tensor, Affine]:
        """Any gauge of the input sequence; none of states and outputs."""
        for tensor in (*self.inputs[1:], *self.outputs):
            if tensor in gauges:
                raise Refused(f"{self} is recurrent: its state and output pass through sigmoid and tanh")
        if self.inputs[0] in gauges and gauges[self.inputs[0]].channels(-1, self.params.weight.shape[2]) is None:
            raise Refused(f"{self} weighs whole channels, and here the scale differs within one")
        return {}

    def rewritten(self, gauges: Gauges) -> Gates:
        """Return the input weights under the gauge of the input."""
        channels = gauges[self.inputs[0]].channels(-1, self.params.weight.shape[2])
        assert channels is not None
        scale, shift = channels
        return replace(
            self.params, weight=self.params.weight * scale, bias=self.params.bias + self.params.weight @ shift
        )

    def stored(self, params: Gates) -> Sequence[Array]:
        """Input weights and bias."""
        return params.weight, params.bias

    def add_channel(self, added: AddedChannels) -> dict[Tensor, AddedChannel]:
        """One more channel of the input is read with weight 0."""
        if any(t in added for t in (*self.inputs[1:], *self.outputs)) or added[self.inputs[0]].axis != 2:
            raise Refused(f"{self} cannot carry one more channel in its state")
        return {}

    def with_channel(self, added: AddedChannels) -> Gates:
        """Return the input weights with zeros for the input's new channel."""
        w = added[self.inputs[0]]
        return replace(self.params, weight=np.insert(self.params.weight, [w.index] * w.count, 0.0, axis=2))

    def write(self, graph: Writing) -> None:
        """Write W and B; the recurrent half of B stays as it is."""
        stem = stem_of(self.node.inputs[1].name if self.node.inputs[1] is not None else self.name)
        self.node.replace_input_with(1, graph.constant(self.params.weight, f"{stem}.weight"))
        self.node.resize_inputs(max(4, len(self.node.inputs)))
        both = np.concatenate([self.params.bias, self.params.recurrent_bias], axis=1)
        self.node.replace_input_with(3, graph.constant(both, f"{stem}.bias"))


@dataclass(eq=False)
class Embedding(Op):
    """Gather of rows of a constant table by computed indices: linear in the table.  s E[i] + t = (s E + t)[i]."""

    takes_affines: ClassVar[bool] = True
    emits_affines: ClassVar[bool] = True

    params: Array

    def spread(self, gauges: Gauges) -> dict[Tensor, Affine]:
        """Any gauge of the rows."""
        if self.outputs[0] in gauges:
            self.rewritten(gauges)
        return {}

    def rewritten(self, gauges: Gauges) -> Array:
        """Return the table under the gauge of its rows."""
        channels = inverse(gauges[self.outputs[0]], self).channels(-1, self.params.shape[1])
        if channels is None:
            raise Refused(f"{self} looks up whole rows, and here the scale differs from position to position")
        return self.params * channels[0] + channels[1]

    def silenced(self, tensor: Tensor, wanted: Affine, silencing: Silencing) -> Affine:
        """A column of the table that holds one number makes its channel constant."""
        channels = wanted.channels(-1, self.params.shape[1])
        if channels is None:
            raise Refused(f"{self} looks up whole rows, and here only some positions would be constant")
        scale, values = channels
        silencing.edits[self] = np.where(scale == 0, values, silencing.edits.get(self, self.params))
        return wanted

    def stored(self, params: Array) -> Sequence[Array]:
        """The table."""
        return (params,)

    def add_channel(self, added: AddedChannels) -> dict[Tensor, AddedChannel]:
        """One more column of the table."""
        if added[self.outputs[0]].axis != self.outputs[0].rank - 1:
            raise Refused(f"{self} has its channels on another axis")
        return {}

    def with_channel(self, added: AddedChannels) -> Array:
        """Return the table with a constant column."""
        w = added[self.outputs[0]]
        return np.insert(self.params, [w.index] * w.count, w.value, axis=1)

    def write(self, graph: Writing) -> None:
        """Write the table."""
        self.node.replace_input_with(0, graph.constant(self.params, f"{stem_of(self.name)}.table"))
