"""Choose sizes for the named dimensions: one set to trace and time with, and more sets to prove the graph at.

The sizes that a network accepts are found by running it: a convolution of kernel 5 needs a length of at least 5, a
U-Net a multiple of 16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from types import MappingProxyType

from normfold.export.errors import CaptureError, InputSpecError, StateError
from normfold.export.inputs.fixed_length import lengths_that_run, one_length
from normfold.export.inputs.refusals import head, hints, out_of_memory
from normfold.export.inputs.size_steps import find_step, first_sizes, found_steps, in_turn, last_accepted
from normfold.export.inputs.specs import MAX_ELEMENTS, Dimension, InputSpec, dimensions
from normfold.export.user_code import line_of_error

__all__ = ["Sizes", "batch_dimension", "find_sizes", "usual_sizes"]

#: Lengths that are tried until the network accepts one: powers of two, then multiples of other small numbers.
CANDIDATES = (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 65536, 16, 8, 4, 2, 240, 2520, 1000, 3000, 16000)
#: Largest number of input elements in a test case of other than the traced sizes, so that a proof takes seconds.
CASE_ELEMENTS = 1 << 21
#: Largest batch that is tried where no range is given.
BATCH = 5

Assignment = dict[str, int]
Attempt = Callable[[Mapping[str, int]], None]


@dataclass(frozen=True)
class Sizes:
    """Sizes by dimension name."""

    #: The sizes to trace and time with: a batch of 2, a usual length.
    trace: Mapping[str, int]
    #: Every set of sizes that the proof runs at; the traced one is first.
    proof: tuple[Mapping[str, int], ...]
    #: The inputs with the sizes of each dimension filled in that were found by trying.
    specs: tuple[InputSpec, ...]
    #: Sentences on sizes that could not be tried.
    notes: tuple[str, ...] = ()


def batch_dimension(specs: Sequence[InputSpec]) -> Dimension | None:
    """Return the dimension that is the first of every input but scalars, if there is one: the batch."""
    first = {s.dims[0] for s in specs if s.dims}
    only = first.pop() if len(first) == 1 else None
    return only if isinstance(only, Dimension) else None


def find_sizes(
    specs: Sequence[InputSpec],
    attempt: Attempt,
    samples: Iterable[Assignment] = (),
    captured: Mapping[str, int] = MappingProxyType({}),
) -> Sizes:
    """Try sizes with ``attempt`` (which runs the network, and raises where it refuses) and return those to use.

    samples are the sizes of the user's own inputs; captured, if any, are tried where no usual ones fit. Raises
    InputSpecError where no size works, or where the network refuses a declared bound.
    """
    search = _Search(specs, attempt)
    trace = search.trace(list(samples), dict(captured))
    steps = {d.name: search.step(d, trace) for d in search.dims}
    low = {d.name: search.lowest(d, trace) for d in search.dims}
    high = {d.name: search.highest(d, trace) for d in search.dims}
    proof: list[Assignment] = [trace]
    for d in search.dims:
        proof += [{**trace, d.name: low[d.name]}, {**trace, d.name: high[d.name]}]
        if d != search.batch:
            proof += [{**trace, d.name: trace[d.name] + n * steps[d.name]} for n in (1, 3)]
    proof += [dict(low), dict(high)]
    kept: list[Mapping[str, int]] = []
    for sizes in proof:
        if sizes not in kept and search.within(sizes) and (sizes == trace or search.accepts(sizes)):
            kept.append(sizes)
    search.notes += [found_steps(d, low[d.name], steps[d.name]) for d in search.dims if d.step is None]
    return Sizes(trace, tuple(kept), search.found(low), tuple(filter(None, search.notes)))


def usual_sizes(specs: Sequence[InputSpec], samples: Iterable[Assignment] = ()) -> Iterator[Assignment]:
    """Yield the sizes at which a network is first tried, those of samples first; none too large for a test case."""
    search = _Search(specs, lambda sizes: None)
    usual = [s for s in search.candidates() if search.elements(s) <= CASE_ELEMENTS]
    yield from in_turn([*samples, *usual], search.elements, MAX_ELEMENTS)


class _Search:
    """One search; each set of sizes is tried once."""

    def __init__(self, specs: Sequence[InputSpec], attempt: Attempt):
        self.specs, self.attempt = specs, attempt
        self.dims = dimensions(specs)
        self.batch = batch_dimension(specs)
        self.notes: list[str] = []
        self.steps: dict[str, int] = {}
        #: Largest sizes of dimensions without a declared end, where the network was seen to refuse a larger one.
        self.bounds: dict[str, int] = {}
        self.last: Exception | None = None
        self._known: dict[tuple[int, ...], Exception | None] = {}

    def accepts(self, sizes: Mapping[str, int]) -> bool:
        key = tuple(sizes[d.name] for d in self.dims)
        if key not in self._known:
            try:
                self.attempt(sizes)
                self._known[key] = None
            except StateError:
                raise  # true at every size
            except Exception as error:
                self._known[key] = error
        self.last = self._known[key] or self.last
        return self._known[key] is None

    def elements(self, sizes: Mapping[str, int]) -> int:
        return max((prod(s.shape(sizes)) for s in self.specs), default=0)

    def within(self, sizes: Mapping[str, int], bound: int = CASE_ELEMENTS) -> bool:
        return all(d.holds(sizes[d.name]) for d in self.dims) and self.elements(sizes) <= bound

    def trace(self, samples: list[Assignment], captured: Assignment) -> Assignment:
        """Return the first set of sizes that the network takes: of a sample, else of the candidates in turn."""
        first: Exception | None = None
        tried: Assignment = {}
        refused: list[tuple[Assignment, str]] = []
        last = [captured] if captured else []
        candidates = [*map(self._traceable, samples), *self.candidates(), *map(self._traceable, last)]
        for sizes in in_turn(candidates, self.elements, MAX_ELEMENTS):
            if self.accepts(sizes):
                return sizes
            refused.append((sizes, str(self.last)))
            first, tried = first or self.last, tried or sizes
        if first is None:
            raise InputSpecError(
                f"the inputs are too large to try: {', '.join(str(s) for s in self.specs)} holds more than "
                f"{MAX_ELEMENTS} elements"
            )
        if isinstance(first, (CaptureError, InputSpecError)):
            raise first  # the fault is in what the network returns, or in what was asked of it, not in the sizes
        if fixed := self._fixed_length(refused):
            raise InputSpecError(fixed)
        shapes = ", ".join(f"{s.name} {s.datatype.name}{list(s.shape(tried))}" for s in self.specs)
        line = line_of_error(first)
        lengths = [d.name for d in self.dims if d != self.batch]
        raise InputSpecError(
            f"the network does not take {shapes}{f' at {line}' if line else ''}: {type(first).__name__}: "
            f"{head(first)}. "
            f"{'Other sizes of the named dimensions were tried too; check' if self.dims else 'Check'} --input against "
            "what forward() expects"
            + (f"; if {' and '.join(lengths)} depend on each other, give their sizes" if len(lengths) > 1 else "")
            + hints(self.specs, first)
        )

    def _fixed_length(self, refused: list[tuple[Assignment, str]]) -> str:
        """Return the message for a network that takes one length, which its errors at other lengths show."""
        lengths = [d for d in self.dims if d != self.batch]
        if len(lengths) != 1 or len({text for _, text in refused}) < 2:
            return ""
        (d,) = lengths
        sizes = refused[0][0]
        running = lengths_that_run(
            [(s[d.name], text) for s, text in refused],
            lambda n: self.within({**sizes, d.name: n}) and self.accepts({**sizes, d.name: n}),
        )
        return one_length(next(s for s in self.specs if d in s.dims), d, running) if running else ""

    def _traceable(self, sample: Assignment) -> Assignment:
        """Return a sample's sizes with a batch of at least 2, because torch treats a size of 1 as a constant."""
        return {d.name: self._clip(d, max(2, sample[d.name]) if d == self.batch else sample[d.name]) for d in self.dims}

    def _candidate(self, length: int) -> Assignment:
        return {d.name: self._clip(d, 2 if d == self.batch else length) for d in self.dims}

    def candidates(self) -> list[Assignment]:
        """Return the usual sizes, and the declared lower bounds for a range that contains none of them."""
        bounds = {d.name: 2 if d == self.batch else (d.low or 3) for d in self.dims}
        return [*map(self._candidate, CANDIDATES), bounds]

    @staticmethod
    def _clip(d: Dimension, size: int) -> int:
        low, step = d.low or 1, d.step or 1
        size = max(low, min(size, d.high or size))
        return size - (size - low) % step

    def step(self, d: Dimension, trace: Assignment) -> int:
        """Return the declared step, else the smallest that the network takes: 1 for most."""

        def fits(size: int) -> bool:
            return self.elements({**trace, d.name: size}) <= CASE_ELEMENTS

        def accepts(size: int) -> bool:
            return fits(size) and self.accepts({**trace, d.name: size})

        size = trace[d.name]
        found = d.step
        if found is None:
            found = 1 if d == self.batch else find_step(size, accepts, d.low, d.high, fits)
        elif d.holds(size + found) and not accepts(size + found):
            raise InputSpecError(
                f"dimension '{d}' is declared in steps of {found}, but the network does not run at "
                f"{d.name} = {size + found}: {head(self.last)}. It takes steps of "
                f"{find_step(size, accepts, d.low, d.high, fits)}"
            )
        self.steps[d.name] = found
        return found

    def lowest(self, d: Dimension, trace: Assignment) -> int:
        """Return the declared lower bound, which must run, or the smallest size that runs (found by bisection)."""
        if d.low is not None:
            if not self.accepts({**trace, d.name: d.low}):
                raise InputSpecError(
                    f"dimension '{d}' is declared from {d.low}, but the network does not run at {d.name} = {d.low}: "
                    f"{head(self.last)}. Declare what it takes, for example {self._takes(d, trace)}"
                )
            return d.low
        return self._last_before(0, d, trace)

    def _last_before(self, refused: int, d: Dimension, trace: Assignment) -> int:
        """Return the last size that the network takes on the way from the traced one to ``refused``."""
        sizes = range(trace[d.name], refused, self.steps[d.name] if refused > trace[d.name] else -self.steps[d.name])
        return last_accepted(sizes, lambda size: self.accepts({**trace, d.name: size}))

    def _takes(self, d: Dimension, trace: Assignment) -> str:
        """Return what to declare instead of ``d``, with its first sizes."""
        high = d.high if d.high is None else self._aligned(d, trace, d.high)
        takes = Dimension(d.name, self._last_before(0, d, trace), high, self.steps[d.name])
        return f"{takes}{first_sizes(takes)}"

    def _aligned(self, d: Dimension, trace: Assignment, size: int) -> int:
        """Return the largest size up to ``size`` that is a whole number of steps from the traced size."""
        return size - (size - trace[d.name]) % self.steps[d.name]

    def highest(self, d: Dimension, trace: Assignment) -> int:
        """Return the declared upper bound, or a size well above the traced one; lowered to what a proof can run."""
        if d.high is not None:
            size = last = self._aligned(d, trace, d.high) if d.step else d.high
            while self.elements({**trace, d.name: size}) > CASE_ELEMENTS and size > trace[d.name]:
                size = max(trace[d.name], self._aligned(d, trace, size // 2))
            if size != last:
                self.notes.append(f"{d.name} was proved up to {size}, not to {d.high}: the inputs would be too large")
            elif not self.accepts({**trace, d.name: size}):
                raise InputSpecError(
                    f"dimension '{d}' is declared up to {size}, but the network does not run at {d.name} = {size}: "
                    f"{head(self.last)}"
                    + (f". Declare what it takes: {self._takes(d, trace)}" if self.steps[d.name] > 1 else "")
                )
            return size
        double = 2 * trace[d.name]
        wishes = (BATCH,) if d == self.batch else (double + self.steps[d.name], double)
        for size in (self._aligned(d, trace, wish) for wish in wishes):
            if self.within(sizes := {**trace, d.name: size}):
                if self.accepts(sizes):
                    return size
                return trace[d.name] if size < trace[d.name] else self._bounded(d, trace, size)
        return trace[d.name]

    def _bounded(self, d: Dimension, trace: Assignment, refused: int) -> int:
        """Return the largest size below ``refused`` that the network takes: from now on the bound of ``d``.

        There is no bound where the network takes more of all lengths together: then one length depends on another; and
        none where it ran out of memory, which another machine has.
        """
        if out_of_memory(self.last):
            self.notes.append(f"{d.name} was proved up to {trace[d.name]}: {refused} takes more memory than there is")
            return trace[d.name]
        double = {e.name: trace[e.name] * (1 if e == self.batch else 2) for e in self.dims}
        others = d != self.batch and double != {**trace, d.name: double[d.name]}
        if others and self.within(double) and self.accepts(double):
            return trace[d.name]
        size = self.bounds[d.name] = self._last_before(refused, d, trace)
        beyond = size + self.steps[d.name]
        self.notes.append(f"{d.name} is up to {size}: the network does not run at {d.name} = {beyond}")
        return size

    def found(self, low: Mapping[str, int]) -> tuple[InputSpec, ...]:
        """Return the specs with the sizes and the steps that were found filled in."""

        def found(d: int | Dimension) -> int | Dimension:
            if isinstance(d, int):
                return d
            return Dimension(d.name, low[d.name], self.bounds.get(d.name, d.high), self.steps[d.name])

        return tuple(replace(s, dims=tuple(map(found, s.dims))) for s in self.specs)
