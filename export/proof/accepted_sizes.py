"""Which sizes a network takes, and which of them its captured graph takes as it does.

A network may go another way below some size: squeeze a length of 1, pad what is too short. A graph holds one way only,
that of the sizes it was traced with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from normfold.export.errors import CaptureError
from normfold.export.inputs.samples import sample_sizes
from normfold.export.inputs.sizes import Attempt, Sizes, find_sizes
from normfold.export.inputs.specs import dimensions, random_inputs
from normfold.export.proof.verify import Case
from normfold.export.sources.origin import Origin, Run

__all__ = ["sizes_of", "sizes_of_both"]


def sizes_of(origin: Origin, samples: Sequence[Case] = ()) -> Sizes:
    """Try sizes on the network itself; the samples' own are tried first."""

    def attempt(sizes: Mapping[str, int]) -> None:
        origin.run(random_inputs(origin.specs, sizes, np.random.default_rng(0)))

    return _found(origin, samples, attempt)


def sizes_of_both(origin: Origin, samples: Sequence[Case], sizes: Sizes, graph: Run) -> Sizes:
    """Return ``sizes`` with the lower bounds that were found by trying raised to where the graph follows the network.

    Raises InputSpecError where a declared bound is below that. Sizes above the bounds are kept, for the proof to judge.
    """

    def attempt(tried: Mapping[str, int]) -> None:
        inputs = random_inputs(origin.specs, tried, np.random.default_rng(0))
        wanted, got = origin.run(inputs), graph(inputs)
        for name, array in wanted.items():
            if got[name].shape != array.shape:
                traced = ", ".join(f"{k}={v}" for k, v in sizes.trace.items())
                raise CaptureError(
                    f"output '{name}' has the shape {list(array.shape)}, and {list(got[name].shape)} in the graph that "
                    f"was captured at {traced}, so the network takes another path there"
                )

    try:
        for tried in sizes.proof:
            attempt(tried)
    except Exception:
        found = _found(origin, samples, attempt)
    else:
        return sizes
    if found.trace != sizes.trace:
        return sizes  # the graph does not even take what it was traced with: that is no question of bounds
    low = {d.name: d.low or 1 for d in dimensions(found.specs)}
    before = {d.name: d.low or 1 for d in dimensions(sizes.specs)}
    above = [s for s in sizes.proof if all(s[name] >= size for name, size in low.items())]
    raised = "; ".join(
        f"{name} is from {size}: below, down to {before[name]}, the network takes another path than its graph"
        for name, size in low.items()
        if size > before[name]
    )
    proof = [*found.proof, *(s for s in above if s not in found.proof)]
    return replace(found, proof=tuple(proof), notes=(*found.notes, *([raised] if raised else [])))


def _found(origin: Origin, samples: Sequence[Case], attempt: Attempt) -> Sizes:
    return find_sizes(origin.specs, attempt, [sample_sizes(c.inputs, origin.specs, c.name) for c in samples])
