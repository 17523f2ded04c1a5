"""Find the length that a network needs, from the numbers in its errors at other lengths: a Linear behind a Flatten."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from normfold.export.inputs.specs import Dimension, InputSpec

__all__ = ["lengths_that_run", "one_length"]

#: The size that a layer was given, and the size that it needs.
_SIZES = (
    re.compile(r"mat1 and mat2 shapes cannot be multiplied \(\d+x(\d+) and (\d+)x\d+\)"),
    re.compile(r"The size of tensor a \((\d+)\) must match the size of tensor b \((\d+)\)"),
)
#: How far from the computed length others are tried: strides make several lengths give one size.
NEAR = 64


def lengths_that_run(refused: Iterable[tuple[int, str]], accepts: Callable[[int], bool]) -> list[int]:
    """Return lengths that run, next to each other; none where the errors do not show one.

    refused are pairs of a length and the text of its error. The size that the layer is given grows evenly with the
    length, so two errors give the length at which it is the size that the layer needs.
    """
    points: dict[int, tuple[int, int]] = {}
    for length, text in refused:
        match = next((m for m in (pattern.search(text) for pattern in _SIZES) if m), None)
        if match:
            points[length] = int(match[1]), int(match[2])
    if len(points) < 2:
        return []
    (short, (few, needed)), (long, (many, _)) = min(points.items()), max(points.items())
    if few == many:
        return []
    near = round(short + (needed - few) * (long - short) / (many - few))
    tried = sorted(range(max(1, near - NEAR), near + NEAR), key=lambda n: abs(n - near))
    first = next((n for n in tried if accepts(n)), None)
    if first is None:
        return []
    low = high = first
    while low > 1 and accepts(low - 1) and high - low < NEAR:
        low -= 1
    while accepts(high + 1) and high - low < NEAR:
        high += 1
    return list(range(low, high + 1))


def one_length(spec: InputSpec, d: Dimension, running: list[int]) -> str:
    """Return the message for a network that runs at these sizes of ``d`` only."""
    best = _roundest(running)
    fixed = ",".join(str(best) if e == d else str(e) for e in spec.dims)
    some = f"{running[0]}" if len(running) == 1 else f"{running[0]} to {running[-1]}"
    return (
        f"the network takes one length only, as a Linear behind a Flatten does: it runs at {d.name} = {some}. "
        f"Write that size: --input '{spec.name}={spec.datatype.name}[{fixed}]'"
    )


def _roundest(lengths: list[int]) -> int:
    """Return the length that a person would have chosen: 250 of 248 to 251, 64 of 63 to 65."""
    return max(lengths, key=lambda n: (next(d for d in (1000, 100, 64, 50, 16, 10, 8, 5, 4, 2, 1) if n % d == 0), -n))
