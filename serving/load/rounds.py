"""A fair comparison: servers are loaded in turns, in short slices, so other work of the machine disturbs all alike."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from normfold.serving.load.calls import Calls
from normfold.serving.load.generator import Load, Slice, merged, run

T = TypeVar("T")


@dataclass
class Target:
    """A server under load, and its measurements."""

    name: str
    calls: Calls
    #: Reads the CPU time of the server's processes so far; None where they are not known.
    cpu: Callable[[], float | None] = lambda: None
    #: For each load, a slice of each round.
    slices: dict[Load, list[Slice]] = field(default_factory=dict)

    def total(self, load: Load) -> Slice:
        """All rounds of a load as one."""
        return merged(self.slices.get(load, []))


@dataclass(frozen=True)
class Ratio:
    """One figure over another, taken within each round: what else the machine did then, it did to both."""

    #: The ratio in each round, of at least one.
    rounds: tuple[float, ...]

    @classmethod
    def of(cls, mine: Iterable[float], base: Iterable[float]) -> Ratio:
        """``mine`` over ``base``, round by round. Raises ValueError where they have different numbers of rounds."""
        return cls(tuple(above / below for above, below in zip(mine, base, strict=True)))

    @property
    def median(self) -> float:
        """The ratio that is reported."""
        return statistics.median(self.rounds)

    @property
    def low(self) -> float:
        """The least ratio of a round."""
        return min(self.rounds)

    @property
    def high(self) -> float:
        """The largest ratio of a round."""
        return max(self.rounds)

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles; needs two rounds."""
        low, _, high = statistics.quantiles(self.rounds, n=4)
        return (high - low) / 2

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def turns(items: Sequence[T], round_number: int) -> Sequence[T]:
    """The order of ``items`` in a round: each round begins with another."""
    first = round_number % len(items)
    return [*items[first:], *items[:first]]


def measure(targets: Sequence[Target], loads: Sequence[Load], seconds: float, rounds: int) -> Iterator[str]:
    """Measure every load on every server, ``seconds`` each in all; yields the name of the next measurement.

    Each round begins with another server. Slices are kept as they come, so that an interruption loses one at most.
    """
    for number in range(rounds):
        for load in loads:
            for target in turns(targets, number):
                yield f"{target.name}, {load}, round {number + 1} of {rounds}"
                target.slices.setdefault(load, []).append(run(target.calls, load, seconds / rounds, target.cpu))


def ratio(target: Target, base: Target, load: Load, figure: Callable[[Slice], float | None]) -> Ratio | None:
    """``figure`` of ``target`` over that of ``base``, round by round; None where a round has none."""
    pairs = zip(target.slices.get(load, []), base.slices.get(load, []), strict=False)
    found = []
    for mine, other in pairs:
        above, below = figure(mine), figure(other)
        if above is None or not below:
            return None
        found.append(above / below)
    return Ratio(tuple(found)) if found else None
