"""The two ways to see a value of one running axis as a picture of height 1, for which onnxruntime has its fast kernels.

    lifted   [N, C, L]    -> [N, C, 1, L]     a new axis of one entry
    turned   [N, C, H, W] -> [N, C, W, H]     the last two axes change places

Neither changes a number or, where the moved axis has one entry, the order of the numbers in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["LIFTED", "TURNED", "AxisOrder"]

Entry = TypeVar("Entry")


@dataclass(frozen=True)
class AxisOrder:
    """How the axes of a value of ``rank`` axes stand in its other form, which always has four."""

    name: str
    rank: int
    #: The place in the other form of each axis.
    places: tuple[int, ...]

    def axis(self, axis: int) -> int:
        """Return where an axis, counted from either end, stands in the other form."""
        return self.places[axis % self.rank]

    def entries(self, entries: Sequence[Entry], absent: Entry) -> list[Entry]:
        """Return one entry an axis in the order of the other form; ``absent`` for the axis that it adds."""
        row = [absent] * 4
        for place, entry in zip(self.places, entries, strict=True):
            row[place] = entry
        return row

    def spatial(self, entries: Sequence[Entry], absent: Entry) -> list[Entry]:
        """The same for one entry an axis behind N and C."""
        return self.entries([absent, absent, *entries], absent)[2:]

    def pads(self, pads: Sequence[int]) -> list[int]:
        """Return pads, all beginnings and then all ends, over as many axes as are given: all, or those behind N, C."""
        half = len(pads) // 2
        move = self.entries if half == self.rank else self.spatial
        return [*move(pads[:half], 0), *move(pads[half:], 0)]

    def array(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return a weight, or an array that is broadcast against such values, in the other form."""
        full = array.reshape((1,) * (self.rank - array.ndim) + array.shape)
        if self.rank == 3:
            full = np.expand_dims(full, 2)
        else:
            full = np.swapaxes(full, 2, 3)
        return np.ascontiguousarray(full)


LIFTED = AxisOrder("lifted", 3, (0, 1, 3))
TURNED = AxisOrder("turned", 4, (0, 1, 3, 2))
