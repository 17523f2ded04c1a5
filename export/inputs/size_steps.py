"""Try sizes in turn, and find the distance between those that a network takes.

A U-Net of three levels takes multiples of 8 only.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain

from normfold.export.inputs.specs import Dimension

__all__ = ["STEPS", "find_step", "first_sizes", "found_steps", "in_turn", "last_accepted"]

#: After sizes that took longer than this, none larger are tried: a tensor upsampled inside may exceed the memory.
SLOW_SECONDS = 2.0
#: Steps that are tried, smallest first: small numbers, and usual strides of encoders and lengths of frames and hops.
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

#: How many of these steps further a step is tried that was accepted once and twice.
FURTHER = (3, 5, 7)


def in_turn(
    candidates: Iterable[dict[str, int]], elements: Callable[[Mapping[str, int]], int], largest: int
) -> Iterator[dict[str, int]]:
    """Yield each set of sizes once, none with more elements than ``largest``.

    After one that took the caller longer than SLOW_SECONDS, no larger one.
    """
    seen: list[dict[str, int]] = []
    for sizes in candidates:
        if sizes not in seen and elements(sizes) <= largest:
            seen.append(sizes)
            began = time.perf_counter()
            yield sizes
            if time.perf_counter() - began > SLOW_SECONDS:
                largest = elements(sizes)


def find_step(
    start: int,
    accepts: Callable[[int], bool],
    low: int | None = None,
    high: int | None = None,
    fits: Callable[[int], bool] = lambda size: True,
) -> int:
    """Return the smallest step at which sizes near ``start`` are accepted; 1 where none is or fits the range.

    A step counts if ``start`` plus one step and ``start`` plus two steps are accepted; where ``high`` leaves no room
    for these, if ``start`` minus one step, not below ``low``, is accepted. Of the steps above 1, one at which each of
    FURTHER steps is accepted goes first: PhaseNet takes 24 lengths of each 64, and so a few steps of 60. Where a size
    does not fit (it is too large to try), the step may be right all the same.
    """
    counting = (step for step in STEPS if _counts(step, start, accepts, low, high))
    first = next(counting, 1)
    if first == 1:
        return 1

    def further(step: int) -> bool:
        sizes = [start + n * step for n in FURTHER if high is None or start + n * step <= high]
        return all(map(accepts, filter(fits, sizes)))

    return next(filter(further, chain([first], counting)), first)


def _counts(step: int, start: int, accepts: Callable[[int], bool], low: int | None, high: int | None) -> bool:
    above = [size for size in (start + step, start + 2 * step) if high is None or size <= high]
    below = [start - step] if low is not None and start - step >= low else []
    tried = above or below
    return bool(tried) and all(map(accepts, tried))


def last_accepted(sizes: Sequence[int], accepts: Callable[[int], bool]) -> int:
    """Return the last of ``sizes`` that is accepted, found by bisection; the first one is known to be."""
    return sizes[bisect_left(sizes, True, lo=1, key=lambda size: not accepts(size)) - 1]


def found_steps(d: Dimension, low: int, step: int) -> str:
    """Return a note on a step that was found; "" where every size works.

    The network may take sizes between the steps, too: only some of them were tried.
    """
    found = Dimension(d.name, low, d.high, step)
    return (
        ""
        if step == 1
        else f"the network was seen to take {d.name} in steps of {step}{first_sizes(found)}; it may take other sizes, "
        f"too. In --input these steps are {found}"
    )


def first_sizes(d: Dimension) -> str:
    """Return the first sizes of a dimension with steps as text: ": 8, 16, 24, …"."""
    if not d.step or d.step == 1 or d.low is None:
        return ""
    return f": {', '.join(str(d.low + n * d.step) for n in range(3))}, …"
