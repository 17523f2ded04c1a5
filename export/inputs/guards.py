"""Conditions on sizes under which a network takes the path that was captured.

`if x.shape[-1] >= 1000:` sends a network another way from some size on, `if x.shape[-1] % 30:` at every 30th size. The
capture goes one way, and notes the condition for it. The sizes that break it may be far from those that are tried
otherwise. The condition says where to look: it is evaluated at thousands of sizes, without running the network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import lcm

from normfold.export.inputs.specs import Dimension

__all__ = ["Guard", "nearby"]

#: All sizes up to this many steps from the traced one are looked at; further away only some, see ``Guard._probes``.
NEAR = 4096
#: No product of a condition's numbers above this is tried as a step between sizes.
MOST_STEPS = 1024
#: Sizes of several dimensions are looked at together up to this many steps above the traced ones.
TOGETHER = 8


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

    def breaks(self, trace: Mapping[str, int], name: str, end: int, step: int = 1) -> Iterator[int]:
        """Yield sizes of one dimension that break it, from the traced size up or down to ``end``, in steps.

        Of a stretch of such sizes that were seen, only the one next to the traced size is yielded. So a bound gives one
        size, and a remainder gives many.
        """
        way = step if end > trace[name] else -step

        def holds(steps: int) -> bool:
            return self.holds({**trace, name: trace[name] + steps * way})

        last, held = 0, True
        for steps in self._probes(trace[name], way, (end - trace[name]) // way):
            now = holds(steps)
            if held and not now:
                good, bad = last, steps
                while bad - good > 1:
                    middle = (good + bad) // 2
                    good, bad = (middle, bad) if holds(middle) else (good, middle)
                yield trace[name] + bad * way
            last, held = steps, now

    def _probes(self, traced: int, way: int, most: int) -> list[int]:
        """Return the steps of ``way`` to look at, up to ``most``.

        They are all up to NEAR, the powers of two, ``most``, and those near the guard's numbers.
        """
        found = {*range(1, min(most, NEAR) + 1), most}
        near = {*self.numbers, *(a * b for a, b in product(self.numbers, repeat=2))}
        found |= {(number - traced) // way + offset for number in near for offset in (-1, 0, 1, 2)}
        steps = 1
        while steps < most:
            found.add(steps)
            steps *= 2
        return sorted(steps for steps in found if 0 < steps <= most)

    def and_(self, other: Guard) -> Guard:
        """Return the condition that both hold."""
        numbers = tuple(sorted({*self.numbers, *other.numbers}))
        names = tuple(dict.fromkeys([*self.names, *other.names]))
        return Guard(
            f"{self.text} and {other.text}", names, lambda sizes: self.holds(sizes) and other.holds(sizes), numbers
        )

    def in_steps(self, trace: Mapping[str, int], d: Dimension) -> Dimension | None:
        """Return ``d`` in longer steps, at which the condition holds; None: none found.

        They are steps by the guard's numbers and their products: where it asks for the remainder of a division by 30,
        steps of 30; where four pools each ask for an even length, steps of 16.
        """
        traced = trace[d.name]
        for step in self._steps(d.step or 1):
            takes = _in_steps_of(step, d, traced)
            last = traced + NEAR * step if takes.high is None else takes.high
            ends = [end for end in (takes.low or 1, last) if end != traced]
            if ends and not any(next(self.breaks(trace, d.name, end, step), 0) for end in ends):
                return takes
        return None

    def in_steps_together(self, trace: Mapping[str, int], dims: Sequence[Dimension]) -> tuple[Dimension, ...]:
        """Return one of ``dims`` in longer steps, else all of them, at which the condition holds nearby; (): none.

        There are none either where the condition holds nearby without them: what breaks it further away is no
        remainder.
        """
        if all(self.holds({**trace, **sizes}) for sizes in nearby(trace, dims)):
            return ()
        for chosen in (*((d,) for d in dims), tuple(dims)):
            for times in sorted({*range(2, 33), *self._steps(1)}):
                takes = {d.name: _in_steps_of((d.step or 1) * times, d, trace[d.name]) for d in chosen}
                tried = list(nearby(trace, [takes.get(d.name, d) for d in dims]))
                several = all(len({sizes[name] for sizes in tried}) > 1 for name in takes)
                if several and all(self.holds({**trace, **sizes}) for sizes in tried):
                    return tuple(takes.values())
        return ()

    def _steps(self, step: int) -> list[int]:
        """Return multiples of ``step``, the smallest first: by the guard's numbers, and by their products."""
        found = last = {number for number in self.numbers if number > 1}
        while last:
            last = {a * b for a, b in product(last, self.numbers) if 0 < a * b <= MOST_STEPS} - found
            found |= last
        return sorted({lcm(step, number) for number in found})

    def broken_together(self, trace: Mapping[str, int], dims: Sequence[Dimension], most: int) -> dict[str, int] | None:
        """Return sizes that break it where these dimensions grow together, each up to ``most``; None: none found."""
        largest = {d.name: _last(d, trace[d.name], d.high or most) for d in dims}
        sizes = dict(trace)
        while any(sizes[name] < size for name, size in largest.items()):
            for d in dims:
                beyond = 2 * sizes[d.name] + (d.step or 1) - 1
                sizes[d.name] = min(_last(d, trace[d.name], beyond), largest[d.name])
            if not self.holds(sizes):
                return sizes
        return None


def _last(d: Dimension, traced: int, end: int) -> int:
    """Return the last size of ``d`` up to ``end``."""
    return end - (end - traced) % (d.step or 1)


def _in_steps_of(step: int, d: Dimension, traced: int) -> Dimension:
    """Return ``d`` in these steps, counted from the traced size up and down."""
    low = d.low or 1
    high = None if d.high is None else d.high - (d.high - traced) % step
    return Dimension(d.name, low + (traced - low) % step, high, step)


def nearby(trace: Mapping[str, int], dims: Sequence[Dimension]) -> Iterator[dict[str, int]]:
    """Yield sizes of several dimensions from the traced ones up, in all combinations."""
    each = [[size for n in range(TOGETHER + 1) if d.holds(size := trace[d.name] + n * (d.step or 1))] for d in dims]
    return (dict(zip((d.name for d in dims), sizes, strict=True)) for sizes in product(*each))
