"""Choose sizes for the named dimensions: one set to trace and time with, and the corners to prove the graph at.

What a network accepts is found by running it: a convolution of kernel 5 needs a length of 5, a U-Net a multiple of 16.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from normfold.export.errors import CaptureError, InputSpecError
from normfold.export.inputs import MAX_ELEMENTS, Dimension, InputSpec, dimensions
from normfold.export.user_code import line_of_error

__all__ = ["Sizes", "batch_dimension", "find_sizes"]

#: Sizes of a length tried until the network accepts one.
CANDIDATES = (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 65536, 16, 8, 4, 2)
#: A test case beyond the traced sizes holds at most this many input elements, so that a proof takes seconds.
CASE_ELEMENTS = 1 << 21
#: After a refusal that took longer than this, no larger size is tried: what is upsampled inside may not fit in memory.
SLOW_SECONDS = 2.0
#: Largest batch that is tried where no range says otherwise.
BATCH = 5

Assignment = dict[str, int]
Attempt = Callable[[Mapping[str, int]], None]


@dataclass(frozen=True)
class Sizes:
    """Sizes by dimension name."""

    #: What the network is traced and timed with: a batch of 2, a usual length.
    trace: Mapping[str, int]
    #: Every set of sizes the proof runs at, the traced one first.
    proof: tuple[Mapping[str, int], ...]
    #: The inputs with the smallest size of each dimension filled in where it was found by trying.
    specs: tuple[InputSpec, ...]
    #: What could not be tried, in words.
    notes: tuple[str, ...] = ()


def batch_dimension(specs: Sequence[InputSpec]) -> Dimension | None:
    """The dimension that every input has first, if there is one: the batch."""
    first = {s.dims[0] if s.dims else None for s in specs}
    only = first.pop() if len(first) == 1 else None
    return only if isinstance(only, Dimension) else None


def find_sizes(specs: Sequence[InputSpec], attempt: Attempt, samples: Iterable[Assignment] = ()) -> Sizes:
    """Try sizes with ``attempt`` (which runs the network, and raises where it refuses) and return those to use.

    samples are sizes that the user's own inputs have. Raises InputSpecError where no size works, or a declared bound
    does not.
    """
    search = _Search(specs, attempt)
    trace = search.trace(list(samples))
    low = {d.name: search.lowest(d, trace) for d in search.dims}
    high = {d.name: search.highest(d, trace) for d in search.dims}
    proof: list[Assignment] = [trace]
    for d in search.dims:
        proof += [{**trace, d.name: low[d.name]}, {**trace, d.name: high[d.name]}]
        if d != search.batch:
            proof += [{**trace, d.name: trace[d.name] + 1}, {**trace, d.name: trace[d.name] + 3}]
    proof += [dict(low), dict(high)]
    kept: list[Mapping[str, int]] = []
    for sizes in proof:
        if sizes not in kept and search.within(sizes) and (sizes == trace or search.accepts(sizes)):
            kept.append(sizes)
    return Sizes(trace, tuple(kept), _with_lowest(specs, low), tuple(search.notes))


class _Search:
    """The attempts of one search, each made once."""

    def __init__(self, specs: Sequence[InputSpec], attempt: Attempt):
        self.specs, self.attempt = specs, attempt
        self.dims = dimensions(specs)
        self.batch = batch_dimension(specs)
        self.notes: list[str] = []
        self.last: Exception | None = None
        self._known: dict[tuple[int, ...], bool] = {}

    def accepts(self, sizes: Mapping[str, int]) -> bool:
        key = tuple(sizes[d.name] for d in self.dims)
        if key not in self._known:
            try:
                self.attempt(sizes)
                self._known[key] = True
            except Exception as error:
                self.last = error
                self._known[key] = False
        return self._known[key]

    def elements(self, sizes: Mapping[str, int]) -> int:
        return max((prod(s.shape(sizes)) for s in self.specs), default=0)

    def within(self, sizes: Mapping[str, int], bound: int = CASE_ELEMENTS) -> bool:
        in_range = all((d.low or 1) <= sizes[d.name] <= (d.high or 1 << 62) for d in self.dims)
        return in_range and self.elements(sizes) <= bound

    def trace(self, samples: list[Assignment]) -> Assignment:
        """Find one set of sizes that the network takes: the samples' own, else the candidates in turn."""
        first: Exception | None = None
        tried: Assignment = {}
        largest = MAX_ELEMENTS
        for sizes in [*(self._traceable(s) for s in samples), *map(self._candidate, CANDIDATES), *self._bounds()]:
            if self.elements(sizes) > largest:
                continue
            began = time.perf_counter()
            if self.accepts(sizes):
                return sizes
            if time.perf_counter() - began > SLOW_SECONDS:
                largest = self.elements(sizes)
            first, tried = first or self.last, tried or sizes
        if first is None:
            raise InputSpecError(
                f"the inputs are too large to try: {', '.join(str(s) for s in self.specs)} holds more than "
                f"{MAX_ELEMENTS} elements"
            )
        if isinstance(first, CaptureError):
            raise first  # what it returns is at fault, not what it takes
        shapes = ", ".join(f"{s.name} {s.datatype.name}{list(s.shape(tried))}" for s in self.specs)
        line = line_of_error(first)
        lengths = [d.name for d in self.dims if d != self.batch]
        raise InputSpecError(
            f"the network does not take {shapes}{f' at {line}' if line else ''}: {type(first).__name__}: "
            f"{_head(first)}. "
            f"{'Other sizes of the named dimensions were tried too; check' if self.dims else 'Check'} --input against "
            "what forward() expects"
            + (f"; if {' and '.join(lengths)} depend on each other, give their sizes" if len(lengths) > 1 else "")
            + ("" if self.dims else "; a batch is a first dimension with a name, x=FP32[N,…]")
        )

    def _traceable(self, sample: Assignment) -> Assignment:
        """A sample's sizes with a batch of at least 2: torch takes a size of 1 for a constant."""
        return {d.name: self._clip(d, max(2, sample[d.name]) if d == self.batch else sample[d.name]) for d in self.dims}

    def _candidate(self, length: int) -> Assignment:
        return {d.name: self._clip(d, 2 if d == self.batch else length) for d in self.dims}

    def _bounds(self) -> list[Assignment]:
        """The declared lower bounds, for a range that holds none of the candidates."""
        return [{d.name: 2 if d == self.batch else (d.low or 3) for d in self.dims}]

    @staticmethod
    def _clip(d: Dimension, size: int) -> int:
        return max(d.low or 1, min(size, d.high or size))

    def lowest(self, d: Dimension, trace: Assignment) -> int:
        """The declared lower bound, which must run, or the smallest size that does (found by bisection)."""
        if d.low is not None:
            if not self.accepts({**trace, d.name: d.low}):
                raise InputSpecError(
                    f"dimension '{d}' is declared from {d.low}, but the network does not run at {d.name} = {d.low}: "
                    f"{_head(self.last)}. Declare what it takes, for example {d.name}:{self._smallest(d, trace)}.."
                )
            return d.low
        return self._smallest(d, trace)

    def _smallest(self, d: Dimension, trace: Assignment) -> int:
        refused, accepted = 0, trace[d.name]
        while accepted - refused > 1:
            middle = (accepted + refused) // 2
            if self.accepts({**trace, d.name: middle}):
                accepted = middle
            else:
                refused = middle
        return accepted

    def highest(self, d: Dimension, trace: Assignment) -> int:
        """The declared upper bound, or a size well above the traced one; cut to what a proof can hold."""
        if d.high is not None:
            size = d.high
            while not self.within({**trace, d.name: size}) and size > trace[d.name]:
                size = max(trace[d.name], size // 2)
            if size != d.high:
                self.notes.append(f"{d.name} was proved up to {size}, not to {d.high}: the inputs would be too large")
            elif not self.accepts({**trace, d.name: size}):
                raise InputSpecError(
                    f"dimension '{d}' is declared up to {size}, but the network does not run at {d.name} = {size}: "
                    f"{_head(self.last)}"
                )
            return size
        wishes = (BATCH,) if d == self.batch else (2 * trace[d.name] + 1, 2 * trace[d.name])
        for size in wishes:
            sizes = {**trace, d.name: size}
            if self.within(sizes) and self.accepts(sizes):
                return size
        return trace[d.name]


def _with_lowest(specs: Sequence[InputSpec], low: Mapping[str, int]) -> tuple[InputSpec, ...]:
    return tuple(
        InputSpec(
            s.name,
            s.datatype,
            tuple(d if isinstance(d, int) else Dimension(d.name, low[d.name], d.high) for d in s.dims),
            s.values,
        )
        for s in specs
    )


def _head(error: BaseException | None) -> str:
    text = str(error).strip()
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__
