"""Constants that operators read as they read what is computed, such as a learned table of positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from normfold.export.fold.affine import Affine, Array
from normfold.export.fold.channels import AddedChannel, RemovedChannels
from normfold.export.fold.net import AddedChannels, Constants, Gauges, Op, Refused, RemovedFrom, Tensor
from normfold.export.fold.ops.linear import inverse
from normfold.export.fold.silencing import Silencing
from normfold.export.graphs.writing import Writing


@dataclass(eq=False)
class Table(Op):
    """A constant T that is cut or spread to lengths of the input: it takes any gauge g of its tensor,  T' = g⁻¹(T).

    It has no node of its own: ``node`` is the first that reads it. Those that read the constant in another way, as
    weights, keep the old one.
    """

    takes_affines: ClassVar[bool] = True
    emits_affines: ClassVar[bool] = True
    constant_by_itself: ClassVar[bool] = True

    params: Array

    def __str__(self) -> str:
        """Its name for a person."""
        return f"the constant '{self.name}'"

    def spread(self, gauges: Gauges) -> dict[Tensor, Affine]:
        """Any invertible gauge that does not lengthen the constant."""
        self.rewritten(gauges)
        return {}

    def rewritten(self, gauges: Gauges) -> Array:
        """Return the constant under the gauge of its tensor."""
        affine = inverse(gauges[self.outputs[0]], self)
        changed: Array = affine.scale * self.params + affine.shift
        if changed.shape != self.params.shape:
            raise Refused(f"{self} has one entry where the scale or shift differs")
        return changed

    def stored(self, params: Array) -> Sequence[Array]:
        """The constant."""
        return (params,)

    def silenced(self, tensor: Tensor, wanted: Affine, silencing: Silencing) -> Affine:
        """Its entries can hold any constant."""
        silencing.edits[self] = np.where(wanted.scale == 0, wanted.shift, silencing.edits.get(self, self.params))
        return wanted

    def add_channel(self, added: AddedChannels) -> dict[Tensor, AddedChannel]:
        """One more channel of any constant."""
        return {}

    def with_channel(self, added: AddedChannels) -> Array:
        """Return the constant with one more channel."""
        w = added[self.outputs[0]]
        return np.insert(self.params, [w.index] * w.count, w.value, axis=w.axis)

    def constants(self, known: Mapping[Tensor, Array]) -> list[Array | None]:
        """A channel whose entries are all equal is constant."""
        if self.params.ndim < 2 or not self.params.size:
            return [None]
        entries = self.params.swapaxes(0, 1).reshape(self.params.shape[1], -1)
        return [np.where((entries == entries[:, :1]).all(axis=1), entries[:, 0], np.nan)]

    def remove_channels(self, removed: RemovedFrom) -> dict[Tensor, RemovedChannels]:
        """It can lose any channel."""
        return {}

    def without_channels(self, removed: RemovedFrom, constants: Constants) -> Array:
        """Return the constant without the removed channels."""
        return removed[self.outputs[0]].cut(self.params)

    def write(self, graph: Writing) -> None:
        """Write a new constant for the operators that read it as a tensor."""
        (y,) = self.outputs
        old, new = y.value, graph.constant(self.params, f"{self.name}.folded")
        for reader in y.readers:
            for index, value in enumerate(reader.node.inputs):
                if value is old:
                    reader.node.replace_input_with(index, new)
        y.value = new
