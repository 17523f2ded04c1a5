"""Ranges: the two numbers between which the entries of a tensor usually lie."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from normfold.export.fold.affine import Array

#: The number of deviations from its mean that an entry usually reaches at most.
REACH = 3.0


@dataclass(frozen=True, eq=False)
class Range:
    """The usual lower and upper end of a tensor's entries; both have the tensor's rank and broadcast against it."""

    low: Array
    high: Array

    @classmethod
    def around(cls, center: Array, reach: Array) -> Range:
        """Return the range from ``center - reach`` to ``center + reach``."""
        return cls(center - reach, center + reach)

    @classmethod
    def between(cls, one: Array, other: Array) -> Range:
        """Return the range between two ends, of which either may be the larger."""
        return cls(np.minimum(one, other), np.maximum(one, other))

    @property
    def ends(self) -> tuple[Array, Array]:
        """Both ends, the lower one first."""
        return self.low, self.high
