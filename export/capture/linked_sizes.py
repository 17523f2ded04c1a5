"""Sizes of a captured program that are computed from one another: an input has n entries, another 2·n.

Such a program takes one of them and then no other size of the second. The search for sizes, the proof and a server try
and check each dimension alone, so these sizes can only be exported at one value each.
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import sympy
import torch
from torch.export import ExportedProgram

from normfold.export.errors import InputSpecError
from normfold.export.inputs.specs import Dimension, InputSpec

__all__ = ["refuse_linked"]


@dataclass(frozen=True)
class _Axis:
    """An axis of an input whose size is no number."""

    spec: int
    axis: int
    size: sympy.Expr
    #: The size that the program was captured with; None: the file does not say.
    captured: int | None


def refuse_linked(program: ExportedProgram, specs: Sequence[InputSpec]) -> None:
    """Raise InputSpecError where sizes of the program's inputs are linked, unless ``specs`` give one size to each."""
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    axes = [
        _Axis(place, axis, size.node.expr, size.node.hint)
        for place, name in enumerate(program.graph_signature.user_inputs)
        for axis, size in enumerate(values[str(name)].shape)
        if isinstance(size, torch.SymInt)
    ]
    for linked in _groups(axes):
        if len({axis.size for axis in linked}) > 1 and not _agree(linked, specs):
            raise InputSpecError(_message(linked, specs))


def _groups(axes: Sequence[_Axis]) -> Iterator[list[_Axis]]:
    """Yield the axes whose sizes are made of the same symbols, directly or through another axis."""
    left = list(axes)
    while left:
        group, symbols = [left.pop(0)], set()
        while True:
            symbols = set().union(*(axis.size.free_symbols for axis in group))
            more = [axis for axis in left if axis.size.free_symbols & symbols]
            if not more:
                break
            group += more
            left = [axis for axis in left if axis not in more]
        yield group


def _agree(linked: Sequence[_Axis], specs: Sequence[InputSpec]) -> bool:
    """Whether the user gave one size for each axis, and together they are sizes that the program takes."""
    given = [_dimension(axis, specs) for axis in linked]
    if any(d.low is None or d.low != d.high for d in given):
        return False
    equations = [sympy.Eq(axis.size, d.low) for axis, d in zip(linked, given, strict=True)]
    try:
        return bool(sympy.solve(equations, dict=True))
    except NotImplementedError:  # torch's own functions of sizes, such as FloorDiv
        return all(axis.captured == d.low for axis, d in zip(linked, given, strict=True))


def _message(linked: Sequence[_Axis], specs: Sequence[InputSpec]) -> str:
    symbols = sorted(set().union(*(axis.size.free_symbols for axis in linked)), key=str)
    letters = dict(zip(symbols, map(sympy.Symbol, string.ascii_lowercase[13:]), strict=False))  # n, o, p, …
    sizes = ", ".join(f"axis {a.axis} of '{specs[a.spec].name}' is {a.size.xreplace(letters)}" for a in linked)
    return (
        f"the network takes sizes that depend on one another: {sizes}. Dimensions of an export are free of each other, "
        f"so each of these can have one size only: {_options(linked, specs)}"
    )


def _options(linked: Sequence[_Axis], specs: Sequence[InputSpec]) -> str:
    """Return the options that export the program at the sizes it was captured with."""
    fixed: Mapping[tuple[int, int], int] = {(a.spec, a.axis): a.captured or 0 for a in linked}

    def one(place: int, axis: int, d: int | Dimension) -> int | Dimension:
        size = fixed.get((place, axis))
        return d if size is None or isinstance(d, int) else Dimension(d.name, size, size)

    described = [
        replace(spec, dims=tuple(one(place, axis, d) for axis, d in enumerate(spec.dims)))
        for place, spec in enumerate(specs)
    ]
    return " ".join(f"--input '{spec}'" for spec in described)


def _dimension(axis: _Axis, specs: Sequence[InputSpec]) -> Dimension:
    d = specs[axis.spec].dims[axis.axis]
    assert isinstance(d, Dimension)
    return d
