"""Channels that a tensor gets or loses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from normfold.export.fold.affine import Array


@dataclass(frozen=True)
class AddedChannel:
    """A channel that a tensor gets: ``count`` entries at ``index`` of ``axis``, all of which hold ``value``."""

    axis: int
    index: int
    count: int = 1
    value: float = 1.0


@dataclass(frozen=True)
class RemovedChannels:
    """``count`` entries of an axis that a tensor loses, from ``index`` on."""

    axis: int
    index: int
    count: int = 1

    @property
    def where(self) -> slice:
        """The entries of the axis."""
        return slice(self.index, self.index + self.count)

    def cut(self, part: Array) -> Array:
        """Return an array without these entries; itself where it has one entry for the whole axis."""
        return np.delete(part, self.where, axis=self.axis) if part.shape[self.axis] > 1 else part
