"""The rules that operators share which act on each entry alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from normfold.export.fold.affine import Array
from normfold.export.fold.channels import RemovedChannels
from normfold.export.fold.net import Dim, Index, Op, Refused, RemovedFrom, Silencing, Tensor


@dataclass(eq=False)
class Entrywise(Op):
    """An operator of one input whose output has the input's shape, each entry computed from one entry."""

    keeps_channels: ClassVar[bool] = True

    def silenced(self, tensor: Tensor, axis: int, index: Index, values: Array, silencing: Silencing) -> Array:
        """A constant channel stays constant."""
        if axis != 1:
            raise Refused(f"{self} keeps constants of axis 1 only")
        return silenced_through(self, tensor, index, values, silencing)

    def remove_channels(self, removed: RemovedFrom) -> dict[Tensor, RemovedChannels]:
        """Input and output lose the same channels."""
        return lost_by_both(self, removed)

    def lengths(self, shapes: Sequence[tuple[Dim, ...]], index: int) -> Sequence[Dim]:
        """The lengths of the input."""
        return shapes[0]


def silenced_through(op: Op, tensor: Tensor, index: Index, values: Array, silencing: Silencing) -> Array:
    """Return what an operator makes of channels that are silenced before it; refused where they would vary."""
    (x,) = op.inputs
    whole = np.full(tensor.size(1), np.nan)
    whole[index] = silencing.of(x, 1, index, values)
    found = op.constants({x: whole})[0]
    if found is None or np.any(np.isnan(found[index])):
        raise Refused(f"{op} does not keep the channel constant")
    return found[index]


def lost_by_both(op: Op, removed: RemovedFrom) -> dict[Tensor, RemovedChannels]:
    """Return the channels that the first input and the first output lose, given those of one of them."""
    both = (op.inputs[0], op.outputs[0])
    return dict.fromkeys(both, next(removed[t] for t in both if t in removed))
