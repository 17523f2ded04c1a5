"""Blocks that a network cuts a dynamic dimension into, and the sizes at which such a network must be proved.

``x.split(100, -1)`` gives one tensor up to a length of 100, two up to 200, and so on. A graph that was traced at one
length is proved on both sides of these borders, with a last block that is whole and with one that is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod

from normfold.export.errors import CaptureError
from normfold.export.inputs.specs import Dimension, InputSpec, dimensions

__all__ = ["Blocks", "refusing", "sizes_around_blocks", "sizes_with_blocks"]

Assignment = dict[str, int]


@dataclass(frozen=True)
class Blocks:
    """One cut of a dynamic size into blocks of ``each``, and a rest."""

    each: int
    #: The user's line, or "".
    line: str
    #: The dimensions of the inputs that the size depends on.
    names: tuple[str, ...]
    #: The size that is cut, from the sizes of the inputs' dimensions.
    size: Callable[[Mapping[str, int]], int]

    def __str__(self) -> str:
        """Return what cannot be written, and what to write instead."""
        where = f" at {self.line}" if self.line else ""
        return (
            f"the network splits a dynamic dimension into blocks of {self.each}{where}: how many there are depends on "
            "its size, and a graph has a fixed number. Blocks that are each computed alone, in the same way, and then "
            "joined by torch.cat, torch.stack or sum can be exported. Write it so, give the size of that dimension "
            "with --input, or work on the whole of it at once"
        )

    def only_one(self, specs: Sequence[InputSpec]) -> bool:
        """Whether the declared sizes leave room for one block only."""
        highest = {d.name: d.high for d in dimensions(specs) if d.name in self.names}
        largest = {name: high for name, high in highest.items() if high is not None}
        return len(largest) == len(highest) and self.size(largest) <= self.each


def sizes_with_blocks(blocks: Blocks, specs: Sequence[InputSpec], sizes: Mapping[str, int]) -> Assignment | None:
    """Return sizes with two whole blocks and a rest of at least two entries, where there is room for it; None if none.

    torch takes a size of 0 or 1 in a trace for a constant, so there must be more of both.
    """
    each = blocks.each
    targets = (3 * each - each // 3, 2 * each + min(2, each))
    return next((found for target in targets for found in _reaching(blocks, specs, sizes, target)), None)


def sizes_around_blocks(
    blocks: Blocks, specs: Sequence[InputSpec], sizes: Mapping[str, int], largest: int
) -> list[Assignment]:
    """Return sizes at which the number of blocks changes, from one block to four, of at most ``largest`` elements."""
    each = blocks.each
    found: list[Assignment] = []
    for target in (each, each + 1, 2 * each, 2 * each + 1, 3 * each + each // 2 + 1):
        for around in _reaching(blocks, specs, sizes, target):
            if around not in found and max(prod(s.shape(around)) for s in specs) <= largest:
                found.append(around)
    return found


@contextmanager
def refusing(splits: Sequence[Blocks]) -> Iterator[None]:
    """Raise CaptureError with the sentence on the first of ``splits`` where a graph with blocks is not the network."""
    try:
        yield
    except CaptureError as error:
        if splits:
            raise CaptureError(f"{splits[0]} ({error})") from error
        raise


def _reaching(
    blocks: Blocks, specs: Sequence[InputSpec], sizes: Mapping[str, int], target: int
) -> Iterator[Assignment]:
    """Yield, for each dimension alone, the first of its sizes for which at least ``target`` entries are cut."""
    for d in dimensions(specs):
        if d.name in blocks.names:

            def reached(size: int, name: str = d.name) -> bool:
                return blocks.size({**sizes, name: size}) >= target

            first = _first(d, reached)
            if first is not None:
                yield {**sizes, d.name: first}


def _first(d: Dimension, reached: Callable[[int], bool]) -> int | None:
    """Return the first size of ``d`` for which ``reached``, which holds for all larger ones; None if there is none."""
    step, start = d.step or 1, d.low or 1
    refused, steps = -1, 1
    while not reached(start + steps * step):
        refused, steps = steps, 2 * steps
        if start + steps * step > (d.high or 1 << 24):
            if d.high is None:
                return None
            steps = (d.high - start) // step
            if steps <= refused or not reached(start + steps * step):
                return None
            break
    while steps - refused > 1:
        middle = (steps + refused) // 2
        refused, steps = (refused, middle) if reached(start + middle * step) else (middle, steps)
    size = start + steps * step
    return size if d.holds(size) or d.high is None else None
