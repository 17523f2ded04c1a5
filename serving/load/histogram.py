"""A high dynamic range histogram: how often each latency was seen, to three digits whatever its size.

Values share a bucket when they agree in their 11 leading bits, so a percentile is at most 1/1024 of itself too high
and never too low; counts of several rounds add up. Tene's HdrHistogram is the original (hdrhistogram.org); its Python
package takes one value at a time, at more than the cost of a request's bookkeeping here, and brings no types.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

#: Leading bits that are kept, and the largest value told apart: 2^42 ns are 73 minutes.
_BITS = 11
_HALF = 1 << (_BITS - 1)
_LARGEST = (1 << 42) - 1
_BUCKETS = (42 - _BITS) * _HALF + 2 * _HALF


class Histogram:
    """Counts of whole numbers from 0, such as nanoseconds.

    >>> seen = Histogram([1_000, 2_000, 3_000])
    >>> seen.count, seen.percentile(50)
    (3, 2000)
    """

    def __init__(self, values: Iterable[int] = ()) -> None:
        self._counts: NDArray[np.int64] = np.zeros(_BUCKETS, np.int64)
        self.add(values)

    def add(self, values: Iterable[int]) -> None:
        """Count each of ``values``; one below 0 counts as 0, one above 2^42 as that."""
        array = np.clip(np.fromiter(values, np.int64), 0, _LARGEST)
        shift = np.maximum(np.frexp(array)[1].astype(np.int64) - _BITS, 0)  # frexp: the bit length, exact below 2^53
        self._counts += np.bincount(shift * _HALF + (array >> shift), minlength=_BUCKETS)

    def __iadd__(self, other: Histogram) -> Histogram:
        self._counts += other._counts
        return self

    @property
    def count(self) -> int:
        """How many values were counted."""
        return int(self._counts.sum())

    def percentile(self, percent: float) -> int:
        """The least value that ``percent`` of all do not exceed, 0 < percent <= 100; 0 where nothing was counted."""
        if not 0 < percent <= 100:
            raise ValueError(f"a percentile lies in (0, 100], got {percent}")
        below = np.cumsum(self._counts)
        rank = max(int(np.ceil(below[-1] * percent / 100 - 1e-9)), 1)
        return _highest(int(np.searchsorted(below, rank))) if below[-1] else 0

    def mean(self) -> float:
        """The mean, each value taken as the middle of its bucket; 0 where nothing was counted."""
        seen = np.flatnonzero(self._counts)
        if not len(seen):
            return 0.0
        middles = [(_lowest(int(index)) + _highest(int(index))) / 2 for index in seen]
        return float(np.average(middles, weights=self._counts[seen]))

    def buckets(self) -> list[tuple[int, int]]:
        """The largest value of each bucket in use, and its count."""
        return [(_highest(int(index)), int(self._counts[index])) for index in np.flatnonzero(self._counts)]


def _lowest(index: int) -> int:
    shift = max(index // _HALF - 1, 0)
    return (index - shift * _HALF) << shift


def _highest(index: int) -> int:
    return _lowest(index + 1) - 1
