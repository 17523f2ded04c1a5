"""Find which values an integer input takes, by running the network with the input filled with one number at a time.

tokens   an index into an embedding of 85 rows      0..84
lengths  positions to read at, at most L            1..L
sr       takes anything: nothing can be found       1..L or 0..1, and a note
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normfold.export.errors import StateError
from normfold.export.inputs.sizes import batch_dimension
from normfold.export.inputs.specs import UNLIMITED, Dimension, InputSpec, dimensions, random_inputs

__all__ = ["LARGEST", "find_values"]

Arrays = Mapping[str, NDArray[Any]]

#: A network that takes this index is assumed to take any.
LARGEST = 1 << 16
#: Numbers that integer inputs are filled with until the network runs: a length or an index that nearly all take first.
FILLS = (1, 0, 2)


def find_values(
    specs: Sequence[InputSpec],
    run: Callable[[Arrays], object],
    sizes: Iterable[Mapping[str, int]],
    largest: int = LARGEST,
) -> tuple[tuple[InputSpec, ...], tuple[str, ...]]:
    """Return the inputs with the values that ``run`` takes filled in, and notes on those that could not be found.

    run runs the network and raises where it refuses; sizes are tried in turn until it runs once. Where it never does,
    the inputs are returned as they are, for the search of sizes to give the reason.
    """
    if not any(_is_index(s) for s in specs):
        return tuple(specs), ()
    probe = next((p for p in (_Probe(specs, run, s, f) for s in sizes for f in FILLS) if p.runs({})), None)
    if probe is None:
        return tuple(specs), ()
    found, notes = [], []
    for spec in specs:
        new, note = _found(spec, probe, largest) if _is_index(spec) else (spec, "")
        found.append(new)
        notes += [note] if note else []
    return tuple(found), tuple(notes)


@dataclass(frozen=True)
class _Probe:
    """The network at one set of sizes, with every integer input filled with ``fill`` or the nearest declared value."""

    specs: Sequence[InputSpec]
    run: Callable[[Arrays], object]
    sizes: Mapping[str, int]
    fill: int

    def start(self, spec: InputSpec) -> int:
        low, high = spec.values or (self.fill, self.fill)
        return min(max(self.fill, low), high)

    def runs(self, values: Mapping[str, int], sizes: Mapping[str, int] | None = None) -> bool:
        """Whether the network runs with some inputs filled with these values."""
        arrays = random_inputs(self.specs, sizes or self.sizes, np.random.default_rng(0))
        for spec in self.specs:
            if _is_index(spec):
                arrays[spec.name][...] = values.get(spec.name, self.start(spec))
        try:
            self.run(arrays)
        except StateError:
            raise
        except Exception:
            return False
        return True

    def largest(self, spec: InputSpec, bound: int) -> int | None:
        """Return the largest value that the network takes; None where it takes ``bound``."""
        taken, refused = self.start(spec), bound
        if self.runs({spec.name: bound}):
            return None
        while refused - taken > 1:
            middle = min((taken + refused) // 2, 2 * taken + 1)
            taken, refused = (middle, refused) if self.runs({spec.name: middle}) else (taken, middle)
        return taken

    def limit(self, spec: InputSpec, largest: int) -> tuple[str, int] | None:
        """Return the dimension that gives the largest value, and how far below its size that value is."""
        most = np.iinfo(spec.datatype.dtype).max
        for d in dimensions(self.specs):
            below = self.sizes[d.name] - largest
            if below not in (0, 1):
                continue
            for size in (2 * self.sizes[d.name], 3 * self.sizes[d.name], self.sizes[d.name] + 1):
                other = {**self.sizes, d.name: size}
                if size < most and d.holds(size) and self.runs({}, other):
                    last = size - below
                    if self.runs({spec.name: last}, other) and not self.runs({spec.name: last + 1}, other):
                        return d.name, below
                    break
        return None


def _is_index(spec: InputSpec) -> bool:
    return spec.datatype.dtype.kind in "iu" and not spec.limit


def _found(spec: InputSpec, probe: _Probe, bound: int) -> tuple[InputSpec, str]:
    """Return one input with its values, and a note where they cannot be known."""
    whole, declared = np.iinfo(spec.datatype.dtype), spec.values
    ends = int(whole.min), int(whole.max)
    if declared is None and whole.bits < 32 and all(probe.runs({spec.name: end}) for end in ends):
        return replace(spec, values=ends), ""  # samples of a sound, pixels
    largest = probe.largest(spec, min(declared[1] if declared else bound, ends[1]))
    if declared is not None:
        limit = probe.limit(spec, largest) if largest is not None else None
        return (spec if limit is None else replace(spec, limit=limit[0], below=limit[1])), ""
    low = 0 if probe.runs({spec.name: 0}) else probe.start(spec)
    if largest is None:
        return _any_value(spec, probe)
    limit = probe.limit(spec, largest)
    if limit is None:
        return replace(spec, values=(low, largest)), ""
    low = max(low, 1) if limit[1] == 0 else low  # a length of 0 is no sequence
    return replace(spec, values=(low, UNLIMITED), limit=limit[0], below=limit[1]), ""


def _any_value(spec: InputSpec, probe: _Probe) -> tuple[InputSpec, str]:
    """Return an input that takes every value: one number for each example is taken to be a length."""
    batch = batch_dimension(probe.specs)
    lengths = [d for d in dimensions(probe.specs) if d != batch and d not in spec.dims]
    if len(spec.dims) < 2 and lengths:
        found, tried = (
            replace(spec, values=(1, UNLIMITED), limit=lengths[0].name),
            f"values from 1 to {lengths[0].name}",
        )
    else:
        found, tried = spec, "the values 0 and 1 only"
    bare = replace(spec, dims=tuple(Dimension(d.name) if isinstance(d, Dimension) else d for d in spec.dims))
    return found, f"{spec.name} was tried with {tried}; if it takes others, give them: --input '{bare}:low..high'"
