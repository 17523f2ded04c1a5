"""The conditions on sizes that torch notes while it captures a network, in the names of the user's dimensions."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence

import sympy
from torch.export import ExportedProgram
from torch.utils._sympy.printers import PythonPrinter

from normfold.export.inputs.guards import Guard
from normfold.export.inputs.specs import Dimension, InputSpec

__all__ = ["guards_of"]

#: What the functions of torch's conditions are in Python, for whole numbers that are not negative.
FUNCTIONS = {
    "FloorDiv": operator.floordiv,
    "CleanDiv": operator.floordiv,
    "Mod": operator.mod,
    "PythonMod": operator.mod,
    "Max": max,
    "Min": min,
    "ToFloat": float,
    "TruncToInt": math.trunc,
    "FloorToInt": math.floor,
    "CeilToInt": math.ceil,
    "RoundToInt": round,
    "IntTrueDiv": operator.truediv,
    "FloatTrueDiv": operator.truediv,
    "FloatPow": operator.pow,
    "PowByNatural": operator.pow,
    "OpaqueUnaryFn_sqrt": math.sqrt,
}


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
    symbols = sorted(condition.free_symbols, key=str)  # two of them may be sizes of one dimension, in two inputs
    compiled = sympy.lambdify(symbols, condition, modules=[FUNCTIONS, "math"])  # some 50 times as fast as sympy

    def holds(sizes: Mapping[str, int]) -> bool:
        numbers = [sizes[names[symbol]] for symbol in symbols]
        try:
            return bool(compiled(*numbers))
        except ZeroDivisionError:  # the network may divide by a size of zero there: it is tried
            return False
        except Exception:  # a function that is none of Python's
            return bool(condition.xreplace(dict(zip(symbols, map(sympy.Integer, numbers), strict=True))))

    named = condition.xreplace({symbol: sympy.Symbol(names[symbol]) for symbol in symbols})
    numbers = sorted({abs(int(number)) for number in condition.atoms(sympy.Integer)})
    dims = sorted({names[symbol] for symbol in symbols})
    return Guard(PythonPrinter().doprint(named), tuple(dims), holds, tuple(numbers))
