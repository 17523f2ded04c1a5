"""Ratios as the tables of the benches print them."""

from __future__ import annotations

import math
from collections.abc import Iterable

from normfold.serving.load.rounds import Ratio


def with_spread(ratio: Ratio) -> str:
    """Return the median ratio, and half the distance between the quartiles of its rounds: "1.25 ± 0.02"."""
    return f"{ratio.median:.2f} ± {ratio.spread:.2f}"


def geometric_mean(ratios: Iterable[float]) -> float:
    """Return the mean under which "twice as fast" and "half as fast" cancel out; NaN if there are no ratios."""
    logarithms = [math.log(ratio) for ratio in ratios]
    return math.exp(math.fsum(logarithms) / len(logarithms)) if logarithms else math.nan
