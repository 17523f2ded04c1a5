"""The rules that operators share: those that act on each entry alone, and those through which affines pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from normfold.export.fold.affine import Affine, Array
from normfold.export.fold.channels import RemovedChannels
from normfold.export.fold.net import Dim, Gauges, Op, Refused, RemovedFrom, Tensor
from normfold.export.fold.silencing import Silencing


@dataclass(eq=False)
class Entrywise(Op):
    """An operator of one input whose output has the input's shape, each entry computed from one entry."""

    keeps_channels: ClassVar[bool] = True

    def at(self, entries: Array) -> Array:
        """Return what it makes of entries: an array of the tensor's rank, broadcastable against it."""
        raise NotImplementedError

    def silenced(self, tensor: Tensor, wanted: Affine, silencing: Silencing) -> Affine:
        """A constant entry stays constant, on any axis."""
        held = silencing.of(self.inputs[0], wanted)
        return Affine.of(held.scale, np.where(held.scale == 0, self.at(held.shift), 0.0))

    def remove_channels(self, removed: RemovedFrom) -> dict[Tensor, RemovedChannels]:
        """Input and output lose the same channels."""
        return lost_by_both(self, removed)

    def lengths(self, shapes: Sequence[tuple[Dim, ...]], index: int) -> Sequence[Dim]:
        """The lengths of the input."""
        return shapes[0]


@dataclass(eq=False)
class Passing(Op):
    """An operator through which affines pass, so that a constant entry stays constant on its way."""

    def silenced(self, tensor: Tensor, wanted: Affine, silencing: Silencing) -> Affine:
        """What it holds when the entries are silenced in the inputs that ``spread`` says they come from."""
        before = self.spread(Gauges({tensor: wanted}))
        parts = {x: before[x] for x in self.inputs if x in before and not before[x].is_identity}
        if not parts:
            raise Refused(f"{self} computes these entries from none of its inputs")
        return self.spread(Gauges({x: silencing.of(x, part) for x, part in parts.items()}))[tensor]


def lost_by_both(op: Op, removed: RemovedFrom) -> dict[Tensor, RemovedChannels]:
    """Return the channels that the first input and the first output lose, given those of one of them."""
    both = (op.inputs[0], op.outputs[0])
    return dict.fromkeys(both, next(removed[t] for t in both if t in removed))
