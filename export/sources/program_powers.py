"""Powers in the size expressions and guards of a ``torch.export`` program: computing ``9**9**9**9`` takes for ever."""

from __future__ import annotations

import ast

__all__ = ["are_bounded"]

#: A size is squared, or two to the power of a small number; nothing has more powers within each other than three.
_POWERS, _EXPONENT = 3, 64
_FUNCTIONS = {"Pow", "PowByNatural", "FloatPow", "LShift", "pow", "math.pow"}


def are_bounded(tree: ast.AST) -> bool:
    """Whether there are few powers and shifts in ``tree``, and each by a small number or by a size."""
    exponents = [one for node in ast.walk(tree) if (one := _exponent(node)) is not None]
    return len(exponents) <= _POWERS and all(map(_is_small, exponents))


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
