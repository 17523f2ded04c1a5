"""Ratios of two servers' figures, each taken within a round: what else the machine did then slowed both."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from normfold.serving.load.rounds import Ratio


def ratio(row: dict[str, Any], base: dict[str, Any], figure: str) -> Ratio:
    """Return ``figure`` of one row of a scenario over that of another, round by round; 0 if no round has both."""
    pairs = zip(row["rounds"], base["rounds"], strict=True)
    found = [mine[figure] / other[figure] for mine, other in pairs if mine[figure] is not None and other[figure]]
    return Ratio(tuple(found) or (0.0,))


def row(rows: Iterable[dict[str, Any]], **wanted: object) -> dict[str, Any] | None:
    """Return the row with these values; None if there is none."""
    return next((each for each in rows if all(each.get(key) == value for key, value in wanted.items())), None)
