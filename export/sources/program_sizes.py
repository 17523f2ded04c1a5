"""The sizes that a ``torch.export`` program was captured for. It holds one path of a network, and runs at others, too.

torch itself refuses them, but also a batch of 1, at which nearly every program is right. So a program is run without
torch's own checks, and the conditions that were noted at its capture are checked here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import onnx_ir as ir
from torch.export import ExportedProgram

from normfold.export.capture.capture import GUARDS
from normfold.export.capture.guards import guards_of
from normfold.export.errors import InputSpecError
from normfold.export.inputs.guards import Guard
from normfold.export.inputs.specs import Dimension, InputSpec, dimensions, with_ranges
from normfold.export.sources.origin import Arrays, Run
from normfold.export.sources.program_guards import guard_of

__all__ = ["captured_sizes", "noted_guards", "refusing_others", "with_noted_guards", "within_guards"]


def captured_sizes(program: ExportedProgram, specs: Sequence[InputSpec]) -> dict[str, int]:
    """Return the sizes of the example that the program was captured with, by dimension; {} if they are not known."""
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    found: dict[str, int | None] = {}
    for spec, name in zip(specs, program.graph_signature.user_inputs, strict=True):
        for d, size in zip(spec.dims, values[str(name)].shape, strict=True):
            if isinstance(d, Dimension):
                found.setdefault(d.name, size.node.hint)
    known = {name: size for name, size in found.items() if size is not None}
    return known if len(known) == len(found) else {}


def noted_guards(program: ExportedProgram, specs: Sequence[InputSpec]) -> tuple[Guard, ...]:
    """Return the conditions on named dimensions under which the program is the network."""
    inputs = [str(name) for name in program.graph_signature.user_inputs]
    noted = (guard_of(text, inputs, specs) for text in program._guards_code)
    return (*guards_of(program, specs), *(guard for guard in noted if guard is not None))


def with_noted_guards(model: ir.Model, program: ExportedProgram, specs: Sequence[InputSpec]) -> ir.Model:
    """Return ``model``, the graph of ``program``, with the guards that were noted in the file beside its own."""
    guards = (*model.meta[GUARDS], *noted_guards(program, specs))
    model.meta[GUARDS] = tuple({guard.text: guard for guard in guards}.values())
    return model


def within_guards(
    specs: Sequence[InputSpec], given: Sequence[InputSpec], guards: Sequence[Guard], captured: Mapping[str, int]
) -> tuple[InputSpec, ...]:
    """Return ``specs`` with the bounds of the program moved to the nearest sizes at which the guards hold.

    A program of even lengths has the bound 3 if its network does not run at 2. Bounds that the user gave stay.
    """
    asked = {d.name for d in dimensions(given) if d.ranged}

    def nearest(d: Dimension, bound: int | None) -> int | None:
        if bound is None or d.name not in captured:
            return bound
        end = captured[d.name]
        sizes = range(bound, end + 1) if bound <= end else range(bound, end - 1, -1)
        held = (n for n in sizes if all(guard.holds({**captured, d.name: n}) for guard in guards))
        return next(held, bound)

    moved = {
        d.name: replace(d, low=nearest(d, d.low), high=nearest(d, d.high))
        for d in dimensions(specs)
        if d.name not in asked
    }
    return with_ranges(specs, moved)


def refusing_others(specs: Sequence[InputSpec], guards: Sequence[Guard], run: Run) -> Run:
    """Return ``run`` so that it raises InputSpecError for sizes at which the program is not the network."""

    def checked(inputs: Arrays) -> Arrays:
        sizes = _sizes(specs, inputs)
        for guard in guards:
            if not guard.holds(sizes):
                at = ", ".join(f"{name}={sizes[name]}" for name in guard.names)
                raise InputSpecError(f"the program was captured for sizes with {guard.text} only, not for {at}")
        return run(inputs)

    return checked if guards else run


def _sizes(specs: Sequence[InputSpec], inputs: Arrays) -> dict[str, int]:
    return {
        d.name: size
        for spec in specs
        for d, size in zip(spec.dims, inputs[spec.name].shape, strict=True)
        if isinstance(d, Dimension)
    }
