"""The guards of a ``torch.export`` program, texts such as ``(L['x'].size()[2] % 30) != 0``, read but never executed."""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from normfold.export.inputs.guards import Guard
from normfold.export.inputs.specs import Dimension, InputSpec
from normfold.export.sources.program_powers import are_bounded

__all__ = ["guard_of", "is_guard", "is_plain"]

_Number = Callable[[Mapping[str, int]], Any]

_OPERATORS: Mapping[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.LShift: operator.lshift,
    ast.RShift: operator.rshift,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
    ast.BitXor: operator.xor,
    ast.USub: operator.neg,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Not: operator.not_,
}
#: Functions of math that a guard may use: not those whose results have as many digits as one likes.
_MATH = {n: f for n, f in vars(math).items() if callable(f) and n not in ("factorial", "comb", "perm")}
_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "max": max,
    "min": min,
    "int": int,
    "float": float,
    "abs": abs,
    "round": round,
    "torch.sym_float": float,
    "torch.sym_int": int,
    "torch.sym_max": max,
    "torch.sym_min": min,
    "torch.sym_not": operator.not_,
    "torch.sym_sqrt": math.sqrt,
    **{f"math.{name}": function for name, function in _MATH.items()},
}
#: Functions of torch and methods of tensors in guards that say nothing of one path or another.
_OTHER = re.compile(r"IsNonOverlappingAndDenseIndicator|torch\.sym_\w+|math\.(pi|e|inf|nan)")
_METHODS = ("size", "stride", "storage_offset", "dim", "numel")


def is_guard(text: str) -> bool:
    """Whether ``text`` only compares sizes of inputs: torch executes it."""
    try:
        if len(text) > 10_000 or not text.isprintable():
            return False
        tree = ast.parse(text, mode="eval").body
        return _compares(tree) and are_bounded(tree)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def is_plain(text: str) -> bool:
    """Whether a text can stand between quotes in code."""
    return text.isprintable() and not set(text) & set("'\"\\")


def _compares(node: ast.AST) -> bool:
    match node:
        case ast.Constant(value):
            return isinstance(value, int | float) or (isinstance(value, str) and is_plain(value))
        case ast.Name(id):
            return id in ("L", "inf")
        case ast.Subscript(value, index):
            return _compares(value) and _compares(index)
        case ast.Call(function, arguments, []):
            of = function.value if isinstance(function, ast.Attribute) and function.attr in _METHODS else None
            named = ast.unparse(function)
            known = _compares(of) if of is not None else named in _FUNCTIONS or _OTHER.fullmatch(named) is not None
            return known and all(map(_compares, arguments))
        case ast.BinOp() | ast.BoolOp() | ast.Compare() | ast.UnaryOp():
            inner = [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr)]
            return all(map(_compares, inner))
    return False


def guard_of(text: str, inputs: Sequence[str], specs: Sequence[InputSpec]) -> Guard | None:
    """Return the guard that ``text`` is, about the named dimensions of ``specs``; None where it is about others, too.

    None also where it says that no inner size is 1: torch assumes that of every dynamic size, as it does of a batch.
    ``inputs`` are the names of the inputs in the program, in the order of ``specs``.
    """
    tree = ast.parse(text, mode="eval").body
    if _is_assumed(tree):
        return None
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if (size := _size(node)) is not None:
            place = _place(size[0], inputs)
            d = specs[place].dims[size[1]] if place is not None else None
            if isinstance(d, Dimension):
                names[ast.unparse(node)] = d.name
    try:
        number = _number(tree, names)
    except KeyError:
        return None
    shown = text
    for size_text, name in names.items():
        shown = shown.replace(size_text, name)
    numbers = {abs(n.value) for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, int)}

    def holds(sizes: Mapping[str, int]) -> bool:
        try:
            return bool(number(sizes))
        except (ArithmeticError, ValueError, TypeError):
            return False

    return Guard(shown, tuple(sorted(set(names.values()))), holds, tuple(sorted(numbers))) if names else None


def _is_assumed(tree: ast.AST) -> bool:
    """Whether this is ``size != 1``; a remainder that is not 1 is a condition of the network's own."""
    match tree:
        case ast.Compare(size, [ast.NotEq()], [ast.Constant(1)]):
            return not any(isinstance(node, ast.Mod) for node in ast.walk(size))
    return False


def _size(node: ast.AST) -> tuple[ast.expr, int] | None:
    """Return the tensor and the axis of ``L['x'].size()[2]``; None for anything else."""
    match node:
        case ast.Subscript(ast.Call(ast.Attribute(tensor, "size"), []), ast.Constant(int(axis))):
            return tensor, axis
    return None


def _place(tensor: ast.expr, inputs: Sequence[str]) -> int | None:
    """Return which input ``L['batch']['mask']`` is, whose name in the program is ``batch_mask``."""
    keys = [node.value for node in _keys(tensor)]
    if keys[:1] == ["flat_args"] and len(keys) == 2 and isinstance(keys[1], int):
        return keys[1] if keys[1] < len(inputs) else None
    name = re.sub(r"[^a-z0-9]+", "_", "_".join(map(str, keys)).lower())
    return next((place for place, one in enumerate(inputs) if one.lower() == name), None)


def _keys(tensor: ast.expr) -> Iterator[ast.Constant]:
    if isinstance(tensor, ast.Subscript):
        yield from _keys(tensor.value)
        if isinstance(tensor.slice, ast.Constant):
            yield tensor.slice


def _number(node: ast.AST, names: Mapping[str, str]) -> _Number:
    """Return ``node`` as a function of the sizes. Raises KeyError for what is none of the operators here."""
    if (name := names.get(ast.unparse(node))) is not None:
        return lambda sizes: sizes[name]
    match node:
        case ast.Constant(int() | float() as value):
            return lambda sizes: value
        case ast.UnaryOp(op, inner):
            return _applied(_OPERATORS[type(op)], [inner], names)
        case ast.BinOp(left, op, right) | ast.Compare(left, [op], [right]):
            return _applied(_OPERATORS[type(op)], [left, right], names)
        case ast.BoolOp(op, values):
            every = isinstance(op, ast.And)
            return _applied(lambda *parts: all(parts) if every else any(parts), values, names)
        case ast.Call(function, arguments):
            return _applied(_FUNCTIONS[ast.unparse(function)], arguments, names)
    raise KeyError(type(node).__name__)


def _applied(function: Callable[..., Any], arguments: Sequence[ast.AST], names: Mapping[str, str]) -> _Number:
    numbers = [_number(argument, names) for argument in arguments]
    return lambda sizes: function(*(number(sizes) for number in numbers))
