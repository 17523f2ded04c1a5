"""The conditions on sizes that torch notes while it captures a network, in the names of the user's dimensions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import sympy
from torch.export import ExportedProgram
from torch.utils._sympy.printers import PythonPrinter

from normfold.export.inputs.guards import Guard
from normfold.export.inputs.specs import Dimension, InputSpec

__all__ = ["guards_of"]


@dataclass(frozen=True)
class _Made:
    """A size of an input: ``factor`` times a symbol, plus ``offset``."""

    name: str
    factor: int
    offset: int

    def symbol(self, sizes: Mapping[str, int]) -> int:
        return (sizes[self.name] - self.offset) // self.factor


def guards_of(program: ExportedProgram, specs: Sequence[InputSpec]) -> tuple[Guard, ...]:
    """Return the conditions under which ``program`` is the network, as far as they are about named dimensions."""
    users = set(program.graph_signature.user_inputs)
    values = [n.meta["val"] for n in program.graph.nodes if n.op == "placeholder" and n.name in users]
    made: dict[sympy.Symbol, _Made] = {}
    found: dict[str, Guard] = {}
    noted = []
    for spec, value in zip(specs, values, strict=True):
        for d, size in zip(spec.dims, value.shape, strict=True):
            if not isinstance(d, Dimension) or isinstance(size, int):
                continue
            noted = size.node.shape_env.guards
            if known := _made(d.name, size.node.expr):
                symbol, of = known
                if of.factor == 1 or symbol not in made:
                    made[symbol] = of
                found |= {guard.text: guard for guard in _whole(of)}
    for guard in noted:
        condition = guard.expr
        if condition.free_symbols and condition.free_symbols <= made.keys():
            found[str(condition)] = _guard(condition, made)
    return tuple(found.values())


def _made(name: str, size: sympy.Expr) -> tuple[sympy.Symbol, _Made] | None:
    """Return the symbol of a size, and the size as ``factor * symbol + offset``; None: it has no such form."""
    if len(size.free_symbols) != 1:
        return None
    (symbol,) = size.free_symbols
    factor = size.coeff(symbol)
    offset = size - factor * symbol
    if not (factor.is_Integer and offset.is_Integer and factor > 0):
        return None
    return symbol, _Made(name, int(factor), int(offset))


def _whole(of: _Made) -> Iterator[Guard]:
    """Yield the guard that a size such as ``2*n`` is even; none where every size is made so."""
    if of.factor == 1:
        return
    rest = of.offset % of.factor
    text = f"{of.name} % {of.factor} == {rest}"
    yield Guard(text, (of.name,), lambda sizes: sizes[of.name] % of.factor == rest, (of.factor,))


def _guard(condition: sympy.Basic, made: Mapping[sympy.Symbol, _Made]) -> Guard:
    symbols = sorted(condition.free_symbols, key=str)  # two of them may be sizes of one dimension, in two inputs
    # Some 50 times as fast as sympy. sympy's own printer would write torch's Mod(s0 + 1, 4) as s0 + 1 % 4.
    compiled = sympy.lambdify(symbols, condition, modules=[{"math": math}], printer=PythonPrinter)

    def holds(sizes: Mapping[str, int]) -> bool:
        numbers = [made[symbol].symbol(sizes) for symbol in symbols]
        try:
            return bool(compiled(*numbers))
        except ZeroDivisionError:  # the network may divide by a size of zero there: it is tried
            return False
        except Exception:  # a function that is none of Python's
            return bool(condition.xreplace(dict(zip(symbols, map(sympy.Integer, numbers), strict=True))))

    used = [made[symbol] for symbol in symbols]
    shown = {symbol: (sympy.Symbol(of.name) - of.offset) / of.factor for symbol, of in zip(symbols, used, strict=True)}
    numbers = {abs(int(number)) for number in condition.atoms(sympy.Integer)}
    numbers |= {of.factor for of in used if of.factor > 1}
    dims = sorted({of.name for of in used})
    return Guard(PythonPrinter().doprint(condition.xreplace(shown)), tuple(dims), holds, tuple(sorted(numbers)))
