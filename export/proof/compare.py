"""Do two networks compute the same, each as code, as a file or as a served model? Asked by ``normfold verify``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from normfold.counting import counted
from normfold.export.errors import InputSpecError
from normfold.export.graphs.exact import narrow_types
from normfold.export.graphs.runtime import Runtime
from normfold.export.inputs.specs import Dimension, InputSpec, with_ranges
from normfold.export.proof import rounding
from normfold.export.proof.accepted_sizes import sizes_of
from normfold.export.proof.moving import moved_run
from normfold.export.proof.numbers import drawn_for, require_numbers
from normfold.export.proof.proof import cases_of
from normfold.export.proof.verify import Arrays, Case, Run, Verification, largest_errors, remembered, verify
from normfold.export.sources.named import BOTH_SERVED
from normfold.export.sources.origin import Origin

__all__ = ["Side", "compare"]


@dataclass(frozen=True)
class Side:
    """One of the two: where it can be run, and its origin where it is a module or a file (None: a served model)."""

    name: str
    run: Run
    origin: Origin | None = None


def compare(a: Side, b: Side, samples: Sequence[Case] = ()) -> Verification:
    """Compare the second with the first computed in float64, in units of the first's own rounding error.

    That error is the largest of the first in its own precision and with its inputs moved by a unit in the last place. A
    file that computes in float16 or bfloat16 rounds more: then the error is at least what each such file moves by where
    its weights and inputs move by a unit of these types (:func:`normfold.export.proof.rounding.moved_runs`), and the
    floor of the bound is that of the type.

    Outputs are matched by name where both have the same names, else by order. Raises InputSpecError where neither side
    says what its inputs are, where they differ in number or in a size, or where an output is never a number.
    """
    if a.origin is None:
        a, b = b, a
    if a.origin is None:
        raise InputSpecError(BOTH_SERVED)
    _require_one_shape(a, b)
    origin = a.origin
    if b.origin is not None:
        origin = replace(origin, specs=_ranged(origin.specs, b.origin.specs))
    known = origin.notes
    origin = drawn_for(origin, samples)
    sizes = sizes_of(origin, samples)
    cases = [*cases_of(sizes.specs, sizes, origin.raw), *samples]
    run = remembered(origin.run)
    numbers = require_numbers(run, cases)
    reference, name, exact = origin.reference(cases[0].inputs)
    notes = (*(n for n in origin.notes if n not in known), *sizes.notes, *exact, *numbers)
    own = largest_errors(reference, [run, *(moved_run(origin.run, seed) for seed in range(rounding.MOVES))], cases)
    names = list(run(cases[0].inputs))
    input_names = [s.name for s in b.origin.specs] if b.origin else [s.name for s in origin.specs]
    if len(input_names) != len(origin.specs):
        raise InputSpecError(f"'{a.name}' takes {counted(len(origin.specs), 'input')}, '{b.name}' {len(input_names)}")
    if set(input_names) == {s.name for s in origin.specs}:
        input_names = [s.name for s in origin.specs]

    def named(run: Run) -> Run:
        """Take inputs and give outputs under the names of the first."""

        def answer(inputs: Arrays) -> Arrays:
            given = {theirs: inputs[s.name] for theirs, s in zip(input_names, origin.specs, strict=True)}
            outputs = run(given)
            if set(outputs) == set(names):
                return outputs
            return dict(zip(names, outputs.values(), strict=False))

        return answer

    for content, how in ((_narrow(a), _as_it_is), (_narrow(b), named)):
        if content is not None:
            unmoved = how(Runtime(content, optimised=False).run)
            moved = largest_errors(unmoved, map(how, rounding.moved_runs(content)), cases)
            own = {key: max(error, moved.get(key, 0.0)) for key, error in own.items()}
    bound = rounding.bound_of(*(c for c in (_narrow(a), _narrow(b)) if c is not None))
    return replace(verify(reference, named(b.run), cases, name, own, bound, run), notes=notes)


def _require_one_shape(a: Side, b: Side) -> None:
    """Raise InputSpecError where both say what their inputs are, and no array fits both."""
    if a.origin is None or b.origin is None or len(a.origin.specs) != len(b.origin.specs):
        return
    named = {s.name: s for s in b.origin.specs}
    alike = set(named) == {s.name for s in a.origin.specs}
    for place, mine in enumerate(a.origin.specs):
        other = named[mine.name] if alike else b.origin.specs[place]
        pairs = zip(mine.dims, other.dims, strict=False)
        fixed = any(isinstance(d, int) and isinstance(e, int) and d != e for d, e in pairs)
        if fixed or len(mine.dims) != len(other.dims):
            raise InputSpecError(
                f"the two take other inputs, so they are not the same network: '{a.name}' {mine}, '{b.name}' {other}"
            )


def _ranged(mine: Sequence[InputSpec], others: Sequence[InputSpec]) -> tuple[InputSpec, ...]:
    """The inputs of the first; dimensions without a range take that of the second, as far as they are as many."""
    if len(mine) != len(others):
        return tuple(mine)
    named = {spec.name: spec for spec in others}
    alike = set(named) == {spec.name for spec in mine}
    ranges: dict[str, Dimension] = {}
    for place, spec in enumerate(mine):
        other = named[spec.name] if alike else others[place]
        for d, theirs in zip(spec.dims, other.dims, strict=False):
            if isinstance(d, Dimension) and isinstance(theirs, Dimension) and theirs.ranged and not d.ranged:
                ranges.setdefault(d.name, replace(theirs, name=d.name))
    return with_ranges(mine, ranges)


def _narrow(side: Side) -> bytes | None:
    """Return the file of a side that computes in float16 or bfloat16; None for every other."""
    content = side.origin.content if side.origin is not None else None
    return content if content is not None and narrow_types(content) else None


def _as_it_is(run: Run) -> Run:
    return run
