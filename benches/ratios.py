"""Ratios of times taken in the same round: what the machine did meanwhile it did to both."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Rounds:
    """The ratio in every round."""

    values: tuple[float, ...]

    @classmethod
    def of(cls, mine: Sequence[float], base: Sequence[float]) -> Rounds:
        """``mine`` over ``base``, round by round; ValueError where they have not the same rounds."""
        return cls(tuple(m / b for m, b in zip(mine, base, strict=True)))

    @property
    def median(self) -> float:
        """The ratio that is reported."""
        return statistics.median(self.values)

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles."""
        low, _, high = statistics.quantiles(self.values, n=4)
        return (high - low) / 2

    def __str__(self) -> str:
        return f"{self.median:.2f} ± {self.spread:.2f}"


def geometric_mean(ratios: Iterable[float]) -> float:
    """The mean that says the same of ratios and of their reciprocals; NaN of none."""
    logarithms = [math.log(ratio) for ratio in ratios]
    return math.exp(math.fsum(logarithms) / len(logarithms)) if logarithms else math.nan
