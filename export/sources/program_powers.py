"""Powers and products in the size expressions and guards of a ``torch.export`` program, which could take for ever.

Nobody lives to see ``9**9**9**9``, nor the product of thirty sums of thirty sizes each, which SymPy multiplies out.
"""

from __future__ import annotations

import ast
import math

__all__ = ["are_bounded"]

#: A size is squared, or two to the power of a small number; nothing has more powers within each other than three.
_POWERS, _EXPONENT = 3, 64
#: The terms of a size, multiplied out.
_TERMS = 1000
_FUNCTIONS = {"Pow", "PowByNatural", "FloatPow", "LShift", "pow", "math.pow"}


def are_bounded(tree: ast.AST) -> bool:
    """Whether powers and shifts in ``tree`` are few, and by small numbers or sizes, and its sums are not multiplied."""
    exponents = [one for node in ast.walk(tree) if (one := _exponent(node)) is not None]
    return len(exponents) <= _POWERS and all(map(_is_small, exponents)) and _terms(tree) <= _TERMS


def _exponent(node: ast.AST) -> ast.AST | None:
    match node:
        case ast.BinOp(_, ast.Pow() | ast.LShift(), right):
            return right
        case ast.Call(ast.Name() | ast.Attribute() as function, [_, right, *_]) if ast.unparse(function) in _FUNCTIONS:
            return right
    return None


def _is_small(exponent: ast.AST) -> bool:
    """Whether it is a number or a size, or the sum of such."""
    for node in ast.walk(exponent):
        match node:
            case ast.Constant(int() | float() as value) if abs(value) > _EXPONENT:
                return False
            case ast.BinOp(_, op) if not isinstance(op, ast.Add | ast.Sub):
                return False
            case ast.Call(ast.Name("Mul" | "Pow" | "PowByNatural" | "FloatPow" | "LShift")):
                return False
    return True


def _terms(node: ast.AST) -> int:
    """Return at most how many terms ``node`` has, multiplied out."""
    exponent = _exponent(node)
    inner = [_terms(child) for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr)]
    match node:
        case ast.BinOp() if exponent is not None:
            return _most(inner[0] ** _power(exponent))
        case ast.Call() if exponent is not None:
            return _most(inner[1] ** _power(exponent))
        case ast.BinOp(_, ast.Add() | ast.Sub()):
            return _most(sum(inner))
        case ast.Call(ast.Name("Add"), arguments):
            return _most(sum(inner[1 : 1 + len(arguments)]))
    return _most(math.prod(inner))


def _power(exponent: ast.AST) -> int:
    match exponent:
        case ast.Call(ast.Name("Integer"), [number]):
            return _power(number)
        case ast.Constant(int(value)) | ast.UnaryOp(ast.USub(), ast.Constant(int(value))):
            return min(value, _EXPONENT)
    return _EXPONENT


def _most(terms: int) -> int:
    return max(1, min(terms, _TERMS + 1))
