"""The numbers of one call as floats where one of them is: torch's exporter (2.13) refuses ``x.clamp(50, 4000.0)``.

It makes a tensor of each whole number that meets floats, and knows no clamp between a tensor and a number.
"""

from __future__ import annotations

from torch._ops import OpOverload
from torch.export import ExportedProgram

from normfold.export.capture.program_nodes import program_nodes

__all__ = ["as_floats_where_mixed"]


def as_floats_where_mixed(program: ExportedProgram) -> None:
    """Write the whole numbers of each call of an operator as floats, where the call has floats too.

    Whole numbers that are no numbers to calculate with, such as axes and sizes, stay.
    """
    for node in program_nodes(program):
        if not isinstance(node.target, OpOverload):
            continue
        declared = node.target._schema.arguments
        numbers = {a.name for a in declared if str(a.type) in ("number", "Optional[number]")}
        given = dict(zip((a.name for a in declared), node.args, strict=False)) | node.kwargs
        if any(isinstance(given[name], float) for name in numbers & given.keys()):
            floats = {n: float(a) if n in numbers and type(a) is int else a for n, a in given.items()}
            node.args = tuple(floats[a.name] for a in declared[: len(node.args)])
            node.kwargs = {name: floats[name] for name in node.kwargs}
