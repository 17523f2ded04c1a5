"""The inputs of a file that normfold wrote: its metadata have the sizes that were proved, and the ranges of values."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from normfold.export.errors import InputSpecError
from normfold.export.inputs.specs import Dimension, InputSpec, dimensions, parse_inputs, with_ranges

__all__ = ["as_proved"]


def as_proved(specs: Sequence[InputSpec], metadata: Mapping[str, str]) -> tuple[InputSpec, ...]:
    """``specs`` with the ranges in the ``metadata`` of their file; as they are where it has none, or others.

    The file may take more sizes than were proved, and compute something else there: a network can take another path
    for a short input.
    """
    try:
        proved = json.loads(metadata["normfold.proved"])["dimensions"]
        ranges = {name: _range(name, found) for name, found in proved.items()}
        written = {spec.name: spec for spec in parse_inputs(metadata["normfold.inputs"].split("; "))}
    except (KeyError, ValueError, TypeError, AttributeError, InputSpecError):  # of another exporter, or version
        return tuple(specs)
    named = {d.name for d in dimensions(specs)}
    return tuple(_with_values(spec, written.get(spec.name), named) for spec in with_ranges(specs, ranges))


def _range(name: str, found: Mapping[str, int | None]) -> Dimension:
    low, high, step = (found[bound] for bound in ("low", "high", "step"))
    if any(isinstance(number, bool) for number in (low, high, step)):
        raise TypeError(f"the sizes of {name}: {found}")
    if not isinstance(low, int) or not isinstance(step, int) or not isinstance(high, int | None):
        raise TypeError(f"the sizes of {name}: {found}")
    if low < 1 or step < 1 or (high is not None and high < low):
        raise ValueError(f"the sizes of {name}: {found}")
    return Dimension(name, low, high, step)


def _with_values(spec: InputSpec, written: InputSpec | None, named: Collection[str]) -> InputSpec:
    """``spec`` with the values that are ``written``, unless a dimension ends them that is fixed now."""
    if written is None or written.datatype != spec.datatype or (written.limit and written.limit not in named):
        return spec
    return replace(spec, values=written.values, limit=written.limit, below=written.below)
