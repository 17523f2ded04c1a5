"""The conditions on sizes that torch notes while it captures a network, in the names of the user's dimensions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import sympy
from torch.export import ExportedProgram

from normfold.export.inputs.guards import Guard
from normfold.export.inputs.specs import Dimension, InputSpec

__all__ = ["guards_of"]


def guards_of(program: ExportedProgram, specs: Sequence[InputSpec]) -> tuple[Guard, ...]:
    """Return the conditions under which ``program`` is the network, as far as they are about named dimensions."""
    users = set(program.graph_signature.user_inputs)
    values = [n.meta["val"] for n in program.graph.nodes if n.op == "placeholder" and n.name in users]
    names: dict[sympy.Symbol, str] = {}
    noted = []
    for spec, value in zip(specs, values, strict=True):
        for d, size in zip(spec.dims, value.shape, strict=True):
            if isinstance(d, Dimension) and not isinstance(size, int) and size.node.expr.is_symbol:
                names.setdefault(size.node.expr, d.name)
                noted = size.node.shape_env.guards
    found = {}
    for guard in noted:
        condition = guard.expr
        if condition.free_symbols and condition.free_symbols <= names.keys():
            found[str(condition)] = _guard(condition, names)
    return tuple(found.values())


def _guard(condition: sympy.Basic, names: Mapping[sympy.Symbol, str]) -> Guard:
    symbols = condition.free_symbols  # two of them may be sizes of one dimension, in two inputs

    def holds(sizes: Mapping[str, int]) -> bool:
        return bool(condition.xreplace({symbol: sympy.Integer(sizes[names[symbol]]) for symbol in symbols}))

    text = str(condition.xreplace({symbol: sympy.Symbol(names[symbol]) for symbol in symbols}))
    numbers = sorted({abs(int(number)) for number in condition.atoms(sympy.Integer)})
    return Guard(text, tuple(sorted({names[symbol] for symbol in symbols})), holds, tuple(numbers))
