"""Which random inputs does a network give numbers for, and on which cases did the proof compare any?

A logarithm or a root of a spectrogram is NaN on a negative number, and one NaN spreads over all that the layers behind
it mix. Two graphs that give NaN throughout are equal there whatever they compute.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from normfold.export.errors import InputSpecError, StateError
from normfold.export.inputs.samples import sample_sizes
from normfold.export.inputs.sizes import usual_sizes
from normfold.export.inputs.specs import InputSpec, random_inputs
from normfold.export.proof.verify import Arrays, Case, Run
from normfold.export.sources.origin import Origin

__all__ = ["drawn", "drawn_for", "numberless", "require_numbers", "telling"]

#: The most sizes that are tried at which the network runs but gives no numbers; a larger input may take long.
TRIED = 6


def numberless(answer: Arrays) -> tuple[str, ...]:
    """Return the outputs in which no entry is a finite number, of those that have entries."""
    return tuple(n for n, y in answer.items() if y.dtype.kind == "f" and y.size and not np.isfinite(y).any())


class _Way(NamedTuple):
    """One way to draw the inputs, and what the network gave for them."""

    specs: tuple[InputSpec, ...]
    sizes: Mapping[str, int]
    #: The number of outputs without a number: none of their entries is one, or they have none.
    without: int
    #: The outputs in which all entries are numbers.
    whole: frozenset[str]


def drawn_for(origin: Origin, samples: Sequence[Case]) -> Origin:
    """Return ``origin`` with inputs that are drawn positive where the network gives more numbers for such inputs.

    More is: some numbers in more outputs, or as many with numbers throughout in more. The sizes with the most are noted
    too: a network that cuts 40 positions off at each end takes 32, and gives nothing there.
    """
    best: _Way | None = None
    ran = 0
    for tried in usual_sizes(origin.specs, [sample_sizes(c.inputs, origin.specs, c.name) for c in samples]):
        ways = _ways(origin, tried)
        found = [*([best] if best else []), *ways]
        best = max(found, key=lambda way: (-way.without, len(way.whole)), default=None)  # the first of the best
        ran += bool(ways)
        if ran == TRIED or (best and not best.without):
            break
    if best is None:
        return origin
    positive = ", ".join(s.name for s in best.specs if s.positive)
    note = f"random numbers for {positive} are drawn positive: the answer to negative ones holds NaN"
    notes = (*origin.notes, *([note] if positive else []))
    return replace(origin, specs=best.specs, notes=notes, gives_numbers=best.whole, numbers_at=best.sizes)


def _ways(origin: Origin, sizes: Mapping[str, int]) -> list[_Way]:
    """Return each way to draw the inputs; nothing where the network does not take these sizes.

    The first way, which draws none positive, is the only one where all its entries are numbers.
    """
    floats = [s.name for s in origin.specs if s.datatype.dtype.kind == "f"]
    found: list[_Way] = []
    for way in dict.fromkeys([(), *((name,) for name in floats), tuple(floats)]):
        specs = tuple(replace(s, positive=s.name in way) for s in origin.specs)
        try:
            answer = origin.run(drawn(origin, specs, sizes))
        except StateError:
            raise  # true at every size
        except Exception:  # the search of sizes gives the reason
            break
        whole = frozenset(n for n, y in answer.items() if y.dtype.kind != "f" or np.isfinite(y).all())
        empty = sum(not y.size for y in answer.values())
        found.append(_Way(specs, sizes, len(numberless(answer)) + empty, whole))
        if len(whole) == len(answer):
            break
    return found


def drawn(origin: Origin, specs: Sequence[InputSpec], sizes: Mapping[str, int]) -> Arrays:
    """Return random inputs as a client sends them whose numbers the network itself sees as ``specs`` draws them."""
    inputs = random_inputs(specs, sizes, np.random.default_rng(0))
    return inputs if origin.raw is None else origin.raw(inputs)


def require_numbers(run: Run, cases: Sequence[Case]) -> tuple[str, ...]:
    """Return a note for each output without a number anywhere, on every case or on those of one kind.

    Raises InputSpecError where no output of floats has one on any case: then nothing can be compared.
    """
    without: dict[str, dict[str, bool]] = {}
    filled: set[str] = set()
    for case in cases:
        answer = run(case.inputs)
        some = {name for name, y in answer.items() if y.size}
        filled |= some
        with_numbers = some.difference(numberless(answer))
        for name in (n for n, y in answer.items() if y.dtype.kind == "f"):
            kinds = without.setdefault(name, {})
            kinds[case.kind] = kinds.get(case.kind, True) and name not in with_numbers
    never = [name for name, kinds in without.items() if all(kinds.values())]
    if without and len(never) == len(without):
        samples = " and on every sample" if any(case.kind == "sample" for case in cases) else ""
        what = "is NaN or infinite in every entry" if filled.intersection(never) else "is empty"
        raise InputSpecError(
            f"output {' and '.join(map(repr, never))} {what} on random inputs{samples}, so nothing can be proved. Give "
            "--sample FILE with an input that the network is made for, on which it gives numbers"
        )
    never = [name for name in never if name in filled]
    return (
        *(
            f"output '{name}' is NaN or infinite in every entry on all inputs, so no number is compared"
            for name in never
        ),
        *(
            f"output '{name}' is NaN or infinite in every entry on all {kind} inputs, so they prove nothing of it"
            for name, kinds in without.items()
            for kind, missing in kinds.items()
            if missing and name in filled and name not in never
        ),
    )


def telling(run: Run, cases: Sequence[Case]) -> list[Case]:
    """Return the cases on which the fewest outputs are without numbers."""
    counts = [len(numberless(run(case.inputs))) for case in cases]
    return [case for case, count in zip(cases, counts, strict=True) if count == min(counts)]
