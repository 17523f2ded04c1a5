"""The conditions that torch notes are evaluated as torch means them."""

from __future__ import annotations

from typing import Any

import sympy
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._sympy.functions import CeilToInt, FloorDiv, IntTrueDiv, Max, Min, Mod, PythonMod

from normfold.export.capture.guards import _guard, _made

L, N = (sympy.Symbol(name, positive=True, integer=True) for name in ("s68", "s3"))
MADE = {L: _made("L", L)[1], N: _made("N", N)[1]}
SMALL = st.integers(1, 7).map(sympy.Integer)


def combined(parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.tuples(parts, SMALL).map(lambda p: p[0] + p[1]),
        st.tuples(parts, parts).map(lambda p: p[0] + p[1]),
        st.tuples(parts, SMALL).map(lambda p: p[0] * p[1]),
        *(
            st.tuples(parts, SMALL).map(lambda p, made=made: made(*p))
            for made in (FloorDiv, Mod, PythonMod, Max, Min, lambda a, b: CeilToInt(IntTrueDiv(a, b)))
        ),
        st.tuples(parts, SMALL).map(lambda p: p[0] - Mod(p[0], p[1])),
    )


SIZES = st.recursive(st.sampled_from([L, N]), combined, max_leaves=6)
COMPARED = st.builds(
    lambda kind, a, b: kind(a, b), st.sampled_from([sympy.Eq, sympy.Ne, sympy.Lt, sympy.Ge]), SIZES, SMALL
)
CONDITIONS = st.one_of(
    COMPARED,
    st.builds(sympy.And, COMPARED, COMPARED),
    st.builds(sympy.Or, COMPARED, COMPARED),
    st.builds(sympy.Not, COMPARED),
)


@given(CONDITIONS)
def test_a_condition_holds_where_sympy_says_so(condition):
    if not condition.free_symbols:
        return
    guard = _guard(condition, MADE)
    for length in range(1, 26):
        sizes = {"L": length, "N": 2}
        wanted = condition.xreplace({L: sympy.Integer(length), N: sympy.Integer(2)})
        assert guard.holds(sizes) == bool(wanted), (guard.text, length)
