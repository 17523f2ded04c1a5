"""The inputs that variants are timed with: a batch of one at the traced sizes, or at the sizes that the user gives."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np

from normfold.export.errors import InputSpecError
from normfold.export.forms.measure import Arrays
from normfold.export.inputs.sizes import Sizes, batch_dimension
from normfold.export.inputs.specs import MAX_ELEMENTS, dimensions, random_inputs
from normfold.export.sources.origin import Run
from normfold.export.user_code import place_and_reason

__all__ = ["check_timed", "free_lengths", "timed_inputs"]


def timed_inputs(sizes: Sizes, asked: Mapping[str, int]) -> Arrays:
    """Return random inputs at the ``asked`` sizes; a dimension that is not asked for has its traced size, a batch 1."""
    return random_inputs(sizes.specs, _timed(sizes, asked), np.random.default_rng(1))


def free_lengths(sizes: Sizes, asked: Mapping[str, int]) -> tuple[str, ...]:
    """Return the dimensions whose timed size this program chose, without the batch."""
    batch = batch_dimension(sizes.specs)
    return tuple(d.name for d in dimensions(sizes.specs) if d != batch and d.name not in asked)


def check_timed(sizes: Sizes, asked: Mapping[str, int], run: Run) -> None:
    """Raise InputSpecError where an ``asked`` size is none of the network's, or where it does not ``run`` with it."""
    known = {d.name: d for d in dimensions(sizes.specs)}
    for name, size in asked.items():
        if name not in known:
            there = f"the named dimensions are {', '.join(known)}" if known else "every size is fixed"
            raise InputSpecError(f"--time-at {name}={size}: there is no dimension '{name}'; {there}")
        if not known[name].holds(size):
            raise InputSpecError(f"--time-at {name}={size}: the network takes {known[name]}")
    wanted = _timed(sizes, asked)
    if not asked:
        return
    shown = ", ".join(f"{name}={size}" for name, size in asked.items())
    if any(prod(spec.shape(wanted)) > MAX_ELEMENTS for spec in sizes.specs):
        raise InputSpecError(f"--time-at {shown}: an input would hold more than {MAX_ELEMENTS} numbers")
    try:
        run(timed_inputs(sizes, asked))
    except Exception as error:
        raise InputSpecError(f"--time-at {shown}: the network does not run there{place_and_reason(error)}") from error


def _timed(sizes: Sizes, asked: Mapping[str, int]) -> dict[str, int]:
    batch = batch_dimension(sizes.specs)
    single = {batch.name: batch.low or 1} if batch else {}
    return {**sizes.trace, **single, **asked}
