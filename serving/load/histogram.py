"""A high dynamic range histogram: how often each latency was seen, to three digits whatever its size.

Values share a bucket if their 11 leading bits are equal, so a percentile is at most 1/1024 of itself too high and
never too low; histograms of several rounds can be added. Tene's HdrHistogram is the original (hdrhistogram.org). Its
Python package takes one value at a time, which is slower than all our other work for a request, and has no types.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

#: The number of leading bits that are kept, and the largest value that has a bucket: 2^42 ns are 73 minutes.
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
        """Count each of ``values``; a value below 0 counts as 0, a value from 2^42 up as 2^42 - 1."""
        array = np.clip(np.fromiter(values, np.int64), 0, _LARGEST)
        # frexp gives the bit length, exactly below 2^53.
        shift = np.maximum(np.frexp(array)[1].astype(np.int64) - _BITS, 0)
        self._counts += np.bincount(shift * _HALF + (array >> shift), minlength=_BUCKETS)

    def __iadd__(self, other: Histogram) -> Histogram:
        self._counts += other._counts
        return self

    @property
    def count(self) -> int:
        """The number of values that were counted."""
        return int(self._counts.sum())

    def percentile(self, percent: float) -> int:
        """The least value that ``percent`` of all values do not exceed, 0 < percent <= 100; 0 without values."""
        if not 0 < percent <= 100:
            raise ValueError(f"a percentile lies in (0, 100], got {percent}")
        below = np.cumsum(self._counts)
        rank = max(int(np.ceil(below[-1] * percent / 100 - 1e-9)), 1)
        return _highest(int(np.searchsorted(below, rank))) if below[-1] else 0

    def mean(self) -> float:
        """The mean, in which each value counts as the middle of its bucket; 0 without values."""
        seen = np.flatnonzero(self._counts)
        if not len(seen):
            return 0.0
        middles = [(_lowest(int(index)) + _highest(int(index))) / 2 for index in seen]
        return float(np.average(middles, weights=self._counts[seen]))

    def buckets(self) -> list[tuple[int, int]]:
        """The largest value and the count of each bucket that has values."""
        return [(_highest(int(index)), int(self._counts[index])) for index in np.flatnonzero(self._counts)]


def _lowest(index: int) -> int:
    shift = max(index // _HALF - 1, 0)
    return (index - shift * _HALF) << shift


def _highest(index: int) -> int:
    return _lowest(index + 1) - 1
