"""How far apart the sizes lie that a network takes: a U-Net of three levels takes multiples of 8 only."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["STEPS", "find_step"]

#: Steps that are tried, the smallest first: small ones, and those of deep encoders, frames and hops.
STEPS: tuple[int, ...] = (
    *range(1, 33),
    40,
    48,
    50,
    60,
    64,
    80,
    96,
    100,
    120,
    128,
    160,
    192,
    200,
    240,
    256,
    320,
    400,
    480,
    512,
    1024,
)


def find_step(start: int, accepts: Callable[[int], bool], low: int | None = None, high: int | None = None) -> int:
    """Return the smallest step at which the sizes around ``start`` are accepted; 1 where none is, or none fits a range.

    A step is taken for one where ``start`` plus once and twice it is accepted (minus it, where ``high`` leaves no room
    above and ``low`` says that there is some below).
    """
    for step in STEPS:
        above = [size for size in (start + step, start + 2 * step) if high is None or size <= high]
        below = [start - step] if low is not None and start - step >= low else []
        tried = above or below
        if not tried:
            return 1
        if all(map(accepts, tried)):
            return step
    return 1
