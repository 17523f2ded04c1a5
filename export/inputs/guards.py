"""Conditions on sizes under which a network takes the path that was captured.

`if x.shape[-1] >= 1000:` sends a network another way from some size on. The capture goes one way, and notes the
condition for it. Sizes that break it are far from those that are tried otherwise: the condition says where to look.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product

__all__ = ["Guard"]


@dataclass(frozen=True)
class Guard:
    """One condition, which holds at the traced sizes."""

    #: The condition as text: "L < 1000".
    text: str
    #: The dimensions that it is about.
    names: tuple[str, ...]
    #: Whether it holds at these sizes.
    holds: Callable[[Mapping[str, int]], bool]
    #: The whole numbers in it: sizes near them and their products are looked at, too.
    numbers: tuple[int, ...] = ()

    def broken_above(self, trace: Mapping[str, int], name: str, most: int) -> int | None:
        """Return a size of one dimension, above the traced one and up to ``most``, that breaks it; None: none found.

        It is the smallest one where the condition is broken from some size on.
        """

        def holds(size: int) -> bool:
            return self.holds({**trace, name: size})

        good = trace[name]
        for size in self._probes(good, most):
            if holds(size):
                good = size
                continue
            bad = size
            while bad - good > 1:
                middle = (good + bad) // 2
                good, bad = (middle, bad) if holds(middle) else (good, middle)
            return bad
        return None

    def _probes(self, traced: int, most: int) -> Iterator[int]:
        """Yield sizes above the traced one in ascending order: doubled ones, and those near the guard's numbers."""
        near = {*self.numbers, *(a * b for a, b in product(self.numbers, repeat=2))}
        found = {number + offset for number in near for offset in (-1, 0, 1)}
        size = traced
        while size < most:
            size = min(2 * size, most)
            found.add(size)
        yield from sorted(probe for probe in found if traced < probe <= most)

    def broken_together(self, trace: Mapping[str, int], most: Mapping[str, int]) -> dict[str, int] | None:
        """Return sizes that break it where the dimensions of ``most`` grow together up to there; None: none found."""
        sizes = dict(trace)
        while any(sizes[name] < size for name, size in most.items()):
            sizes |= {name: min(2 * sizes[name], size) for name, size in most.items()}
            if not self.holds(sizes):
                return sizes
        return None
