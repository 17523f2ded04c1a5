"""Which random inputs does a network give numbers for, and on which cases did the proof compare any?

A logarithm or a root of a spectrogram is NaN on a negative number, and one NaN spreads over all that the layers behind
it mix. Two graphs that give NaN throughout are equal there whatever they compute.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain

import numpy as np

from normfold.export.errors import InputSpecError, StateError
from normfold.export.inputs.samples import sample_sizes
from normfold.export.inputs.sizes import usual_sizes
from normfold.export.inputs.specs import InputSpec, random_inputs
from normfold.export.proof.verify import Arrays, Case, Run
from normfold.export.sources.origin import Origin

__all__ = ["drawn_for", "numberless", "require_numbers", "telling"]

#: So many sizes are tried at which the network runs and gives no numbers; a larger input may take long.
TRIED = 6


def numberless(answer: Arrays) -> tuple[str, ...]:
    """Return the outputs in which no entry is a finite number, of those that have entries."""
    return tuple(n for n, y in answer.items() if y.dtype.kind == "f" and y.size and not np.isfinite(y).any())


def drawn_for(origin: Origin, samples: Sequence[Case]) -> Origin:
    """Return ``origin`` with inputs that are drawn positive where the network gives more numbers for such inputs.

    More is: numbers throughout in place of some, or some in place of none in an output.
    """
    sizes = chain((sample_sizes(c.inputs, origin.specs, c.name) for c in samples), usual_sizes(origin.specs))
    ran = 0
    for tried in sizes:
        ways = _ways(origin, tried)
        if ways:
            specs, whole, some = max(ways, key=lambda way: way[1:])  # the first of the best
            if some:
                positive = ", ".join(s.name for s in specs if s.positive)
                note = f"random numbers for {positive} are drawn positive: the answer to negative ones holds NaN"
                notes = (*origin.notes, *([note] if positive else []))
                return replace(origin, specs=specs, notes=notes, gives_numbers=whole)
            ran += 1
        if ran == TRIED:
            break
    return origin


def _ways(origin: Origin, sizes: Mapping[str, int]) -> list[tuple[tuple[InputSpec, ...], bool, bool]]:
    """Return the inputs in each way to draw them, with whether all entries are numbers, and some in each output.

    Nothing where the network does not take these sizes. The first way, which draws none positive, is the only one where
    all its entries are numbers.
    """
    floats = [s.name for s in origin.specs if s.datatype.dtype.kind == "f"]
    found: list[tuple[tuple[InputSpec, ...], bool, bool]] = []
    for way in dict.fromkeys([(), *((name,) for name in floats), tuple(floats)]):
        specs = tuple(replace(s, positive=s.name in way) for s in origin.specs)
        try:
            answer = origin.run(random_inputs(specs, sizes, np.random.default_rng(0)))
        except StateError:
            raise  # true at every size
        except Exception:  # the search of sizes gives the reason
            break
        whole = all(np.isfinite(y).all() for y in answer.values() if y.dtype.kind == "f")
        found.append((specs, whole, not numberless(answer)))
        if whole:
            break
    return found


def require_numbers(run: Run, cases: Sequence[Case]) -> tuple[str, ...]:
    """Return a note for each kind of case on which an output has no number anywhere.

    Raises InputSpecError for an output that has none on any case: then nothing can be compared.
    """
    without: dict[str, dict[str, bool]] = {}
    for case in cases:
        answer = run(case.inputs)
        missing = numberless(answer)
        for name in answer:
            kinds = without.setdefault(name, {})
            kinds[case.kind] = kinds.get(case.kind, True) and name in missing
    for name, kinds in without.items():
        if all(kinds.values()):
            samples = " and on every sample" if "sample" in kinds else ""
            raise InputSpecError(
                f"output '{name}' is NaN or infinite in every entry on random inputs{samples}, so nothing can be "
                "proved. Give --sample FILE with an input that the network is made for, on which it gives numbers"
            )
    return tuple(
        f"output '{name}' is NaN or infinite in every entry on all {kind} inputs, so they prove nothing of it"
        for name, kinds in without.items()
        for kind, missing in kinds.items()
        if missing
    )


def telling(run: Run, cases: Sequence[Case]) -> list[Case]:
    """Return the cases on which the fewest outputs are without numbers."""
    counts = [len(numberless(run(case.inputs))) for case in cases]
    return [case for case, count in zip(cases, counts, strict=True) if count == min(counts)]
