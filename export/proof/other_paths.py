"""Sizes from which a network takes another path than its captured graph: the graph is published for those below.

The guards that were noted at the capture say where such sizes may be. Network and graph are run there. Many guards are
about nothing but memory, and both give the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod

import numpy as np

from normfold.export.errors import CaptureError, InputSpecError
from normfold.export.inputs.guards import Guard
from normfold.export.inputs.sizes import CASE_ELEMENTS, Sizes
from normfold.export.inputs.specs import MAX_ELEMENTS, Dimension, dimensions, random_inputs
from normfold.export.sources.origin import Origin, Run

__all__ = ["below_other_paths"]

#: Another path gives other numbers; the rounding of float32 gives less than this, of the largest number.
OTHER = 1e-2


def below_other_paths(origin: Origin, sizes: Sizes, guards: Sequence[Guard], graph: Run) -> Sizes:
    """Return ``sizes`` with upper bounds where the network takes another path above them.

    Raises InputSpecError where a declared range goes further, CaptureError where a guard is about several dimensions.
    """
    for guard in guards:
        if len(guard.names) > 1:
            _check_together(origin, sizes, guard, graph)
            continue
        (name,) = guard.names
        d = next(d for d in dimensions(sizes.specs) if d.name == name)
        size = guard.broken_above(sizes.trace, name, _most(sizes, d))
        why = "" if size is None else _why(origin, graph, sizes, {**sizes.trace, name: size})
        if size is None or not why:
            continue
        if any(given.high for given in dimensions(origin.specs) if given.name == name):
            raise InputSpecError(
                f"dimension '{d}' is declared up to {d.high}, but the graph holds the network only while {guard.text}: "
                f"at {name} = {size} {why}. Declare {_bounded(d, size)}"
            )
        sizes = _below(sizes, name, size, f"{guard.text}: at {name} = {size} {why}")
    return sizes


def _elements(sizes: Sizes, tried: Mapping[str, int]) -> int:
    return max((prod(s.shape(tried)) for s in sizes.specs), default=0)


def _most(sizes: Sizes, d: Dimension) -> int:
    """The largest size of a dimension that is looked at: the declared one, or the largest that an input can have."""
    rest = max(prod(s.shape({**sizes.trace, d.name: 1})) for s in sizes.specs if d in s.dims)
    return min(d.high or MAX_ELEMENTS, max(1, MAX_ELEMENTS // max(1, rest)))


def _check_together(origin: Origin, sizes: Sizes, guard: Guard, graph: Run) -> None:
    """Raise CaptureError where a guard about several dimensions is broken within their ranges, and it matters."""
    most = {d.name: d.high or MAX_ELEMENTS for d in dimensions(sizes.specs)}
    for names in (guard.names, *((name,) for name in guard.names)):
        broken = guard.broken_together(sizes.trace, {name: most[name] for name in names})
        if broken is None or _elements(sizes, broken) > MAX_ELEMENTS or not (why := _why(origin, graph, sizes, broken)):
            continue
        at = ", ".join(f"{name}={broken[name]}" for name in guard.names)
        raise CaptureError(
            f"the graph holds the network only while {guard.text}: at {at} {why}. Declare ranges for "
            f"{' and '.join(guard.names)} in --input within which that holds"
        )


def _why(origin: Origin, graph: Run, sizes: Sizes, tried: Mapping[str, int]) -> str:
    """In what the network and its graph differ at these sizes; "" if in nothing."""
    if _elements(sizes, tried) > CASE_ELEMENTS:
        return "the inputs are too large to try"
    inputs = random_inputs(sizes.specs, tried, np.random.default_rng(0))
    try:
        wanted = origin.run(inputs)
    except Exception:
        return "the network refuses its input"
    try:
        got = graph(inputs)
    except Exception:
        return "the network takes another path than the graph, which refuses its input"
    for name, array in wanted.items():
        if got[name].shape != array.shape:
            return f"the network takes another path: output '{name}' has the shape {list(array.shape)}"
        scale = np.max(np.abs(array.astype(np.float64)), initial=0.0)
        apart = np.max(np.abs(array.astype(np.float64) - got[name].astype(np.float64)), initial=0.0)
        if not apart <= OTHER * scale and array.dtype.kind == "f":
            return f"the network takes another path: output '{name}' has other numbers"
    return ""


def _below(sizes: Sizes, name: str, size: int, why: str) -> Sizes:
    """Return ``sizes`` with an upper bound below ``size``, at which they are proved, too."""

    def bounded(d: int | Dimension) -> int | Dimension:
        return _bounded(d, size) if isinstance(d, Dimension) and d.name == name else d

    specs = tuple(replace(s, dims=tuple(map(bounded, s.dims))) for s in sizes.specs)
    high = next(d.high for d in dimensions(specs) if d.name == name)
    assert high is not None
    last = {**sizes.trace, name: high}
    proof = [tried for tried in sizes.proof if tried[name] <= high]
    if last not in proof and _elements(sizes, last) <= CASE_ELEMENTS:
        proof.append(last)
    return replace(sizes, specs=specs, proof=tuple(proof), notes=(*sizes.notes, f"{name} is up to {high}, while {why}"))


def _bounded(d: Dimension, size: int) -> Dimension:
    """Return a dimension whose largest size is the last one below ``size``."""
    step, low = d.step or 1, d.low or 1
    return Dimension(d.name, d.low, size - 1 - (size - 1 - low) % step, d.step)
