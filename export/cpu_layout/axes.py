"""The two orders of axes in which a value with one running axis has height 1, as onnxruntime's fast kernels need it.

    lifted   [N, C, L]    -> [N, C, 1, L]     a new axis of one entry
    turned   [N, C, H, W] -> [N, C, W, H]     the last two axes change places

Neither changes a number. Where the moved axis has one entry, the order of the numbers in memory does not change either.
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
    """Where each axis of a value of ``rank`` axes goes in the new order, which always has four axes."""

    name: str
    rank: int
    #: The place of each axis in the new order.
    places: tuple[int, ...]

    def axis(self, axis: int) -> int:
        """Return the place of an axis, counted from either end, in the new order."""
        return self.places[axis % self.rank]

    def entries(self, entries: Sequence[Entry], absent: Entry) -> list[Entry]:
        """Return ``entries``, one for each axis, in the new order; ``absent`` is the entry of an added axis."""
        row = [absent] * 4
        for place, entry in zip(self.places, entries, strict=True):
            row[place] = entry
        return row

    def spatial(self, entries: Sequence[Entry], absent: Entry) -> list[Entry]:
        """Return the same for entries of the axes behind N and C."""
        return self.entries([absent, absent, *entries], absent)[2:]

    def pads(self, pads: Sequence[int]) -> list[int]:
        """Return pads in the new order: all beginnings, then all ends, of all axes or of those behind N and C."""
        half = len(pads) // 2
        move = self.entries if half == self.rank else self.spatial
        return [*move(pads[:half], 0), *move(pads[half:], 0)]

    def array(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return a weight, or an array that is broadcast against such values, in the new order."""
        full = array.reshape((1,) * (self.rank - array.ndim) + array.shape)
        if self.rank == 3:
            full = np.expand_dims(full, 2)
        else:
            full = np.swapaxes(full, 2, 3)
        return np.ascontiguousarray(full)


LIFTED = AxisOrder("lifted", 3, (0, 1, 3))
TURNED = AxisOrder("turned", 4, (0, 1, 3, 2))
