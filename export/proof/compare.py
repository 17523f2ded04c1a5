"""Do two networks, in whatever form each stands, compute the same? The question behind ``normfold verify``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from normfold.export.errors import InputSpecError
from normfold.export.proof.accepted_sizes import sizes_of
from normfold.export.proof.proof import cases_of, nudged
from normfold.export.proof.verify import Case, Verification, verify
from normfold.export.sources.origin import Arrays, Origin, Run

__all__ = ["Side", "compare"]


@dataclass(frozen=True)
class Side:
    """One of the two: where it can be run, and its origin where it is a module or a file (None: a served model)."""

    name: str
    run: Run
    origin: Origin | None = None


def compare(a: Side, b: Side, samples: Sequence[Case] = ()) -> Verification:
    """Compare the second with the first computed in float64, in units of the first's own float32 error.

    Outputs are matched by name where both have the same names, else by order. Raises InputSpecError where neither side
    says what its inputs are, or where they differ in number.
    """
    if a.origin is None:
        a, b = b, a
    if a.origin is None:
        raise InputSpecError("both sides are served models; one of the two must be a module or a file")
    origin = a.origin
    sizes = sizes_of(origin, samples)
    cases = [*cases_of(sizes.specs, sizes), *samples]
    reference, name, _ = origin.reference(cases[0].inputs)
    exact = name.endswith("float64")

    def before(inputs: Arrays) -> Arrays:
        return origin.run(inputs if exact else nudged(inputs))

    names = list(origin.run(cases[0].inputs))
    input_names = [s.name for s in b.origin.specs] if b.origin else [s.name for s in origin.specs]
    if len(input_names) != len(origin.specs):
        raise InputSpecError(f"'{a.name}' takes {len(origin.specs)} inputs, '{b.name}' {len(input_names)}")
    if set(input_names) == {s.name for s in origin.specs}:
        input_names = [s.name for s in origin.specs]

    def after(inputs: Arrays) -> Arrays:
        given = {theirs: inputs[s.name] for theirs, s in zip(input_names, origin.specs, strict=True)}
        outputs = b.run(given)
        if set(outputs) == set(names):
            return outputs
        return dict(zip(names, outputs.values(), strict=False))

    return verify(reference, before, after, cases, name)
