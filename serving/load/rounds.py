"""A fair comparison: servers are loaded in turns, in short slices, so other work of the machine disturbs all alike."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from normfold.serving.load.calls import Calls
from normfold.serving.load.generator import Load, Slice, merged, run


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
    """One server's figure over another's: the median over the rounds, with the least and the largest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, found: Sequence[float]) -> Ratio:
        """The ratio that the rounds in ``found`` give; at least one."""
        return cls(statistics.median(found), min(found), max(found))

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def measure(targets: Sequence[Target], loads: Sequence[Load], seconds: float, rounds: int) -> Iterator[str]:
    """Measure every load on every server, ``seconds`` each in all; yields the name of the next measurement.

    Each round begins with another server. Slices are kept as they come, so that an interruption loses one at most.
    """
    for number in range(rounds):
        for load in loads:
            for index in range(len(targets)):
                target = targets[(index + number) % len(targets)]
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
    return Ratio.of(found) if found else None
