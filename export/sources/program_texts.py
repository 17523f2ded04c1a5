"""The texts that describe a ``torch.export`` program, looked at before torch resolves, parses or executes them."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from normfold.export.sources.program_guards import is_guard, is_plain

__all__ = ["faults"]

#: Operators on sizes.
_OF_NUMBERS = re.compile(
    r"_operator\.(add|sub|mul|truediv|floordiv|mod|pow|neg|pos|abs|lshift|rshift|and_|or_|not_|eq|ne|lt|le|gt|ge|getitem)"
    r"|math\.[a-z]\w*|torch\.sym_\w+"
)
_OF_TENSORS = re.compile(r"torch\.ops\.(aten|prims|higher_order|_caffe2)\.(\w+)(\.\w+)?")
#: Functions in torch's size expressions: those of SymPy, and torch's own functions of numbers.
_FUNCTIONS = {
    *("Symbol", "Integer", "Rational", "Float", "Add", "Mul", "Pow", "Mod", "Max", "Min", "Abs", "floor", "ceiling"),
    *("FloorDiv", "CeilDiv", "CleanDiv", "IntTrueDiv", "PythonMod", "ModularIndexing", "Where", "PowByNatural"),
    *("CeilToInt", "FloorToInt", "TruncToInt", "RoundToInt", "TruncToFloat", "ToFloat", "FloatPow", "FloatTrueDiv"),
    *("LShift", "RShift", "RoundDecimal", "Identity", "IsNonOverlappingAndDenseIndicator"),
    *("Eq", "Ne", "Lt", "Le", "Gt", "Ge", "And", "Or", "Not", "Equality", "Unequality"),
    *("StrictLessThan", "LessThan", "StrictGreaterThan", "GreaterThan"),
}
#: Fields whose mapping has names of the file's own as keys, so that a key says nothing of what is below it.
_MAPPINGS = {
    *("tensor_values", "sym_int_values", "sym_bool_values", "sym_float_values", "custom_obj_values", "config"),
    *("as_string_to_argument", "treespec_namedtuple_fields", "opset_version", "range_constraints"),
}
#: Names of variables and parameters, which torch writes into Python code as they are.
_VARIABLES = {"name", "as_name", "forward_arg_names"}
#: Paths of weights and modules, which torch quotes in code.
_PATHS = {"parameter_name", "buffer_name", "tensor_constant_name", "fqn"}
#: Texts that torch keeps as text: where a node comes from, and texts that are arguments of operators.
_TEXTS = {"metadata", "as_string", "as_strings"}
#: Any other text: a dotted path, a device, a version. Nothing is called, assigned, quoted or on another line.
_OTHER = re.compile(r"[\w.:/+<>*@ -]*")


def faults(value: Any, field: str = "") -> Iterator[str]:
    """Yield what could run code in a description, read from JSON, as the end of "the file …"; ``field`` holds it."""
    if isinstance(value, str):
        yield from _of_text(value, field)
    elif isinstance(value, list):
        for item in value:
            yield from faults(item, field)
    elif isinstance(value, dict):
        own = field in _MAPPINGS
        for key, inner in value.items():
            if own and field != "range_constraints":
                yield from _of_text(key, "name" if field.endswith("_values") else "fqn")
            if own or key not in _TEXTS:
                yield from faults(inner, "" if own else key)


def _of_text(text: str, field: str) -> Iterator[str]:
    if field in ("target", "as_operator"):
        if "." in text and not _is_operator(text):  # torch keeps a text without a dot as a text
            yield f"calls '{text}', which is no torch operator that an export may use"
    elif field == "expr_str":
        if not _is_arithmetic(text):
            yield f"holds the size expression {text[:80]!r}, which is not arithmetic"
    elif field == "guards_code":
        if not is_guard(text):
            yield f"holds the guard {text[:80]!r}, which is not arithmetic"
    elif field in ("in_spec", "out_spec") and text.startswith("["):
        yield from _of_structure(json.loads(text))
        if field == "in_spec":
            for keyword in _keywords(text):
                yield from _of_text(keyword, "name")
    elif not _is_name(text, field):
        yield f"holds the name {text[:80]!r}, which is none"


def _is_name(text: str, field: str) -> bool:
    if field in _VARIABLES:
        return re.fullmatch(r"\w*", text) is not None
    return is_plain(text) if field in _PATHS else _OTHER.fullmatch(text) is not None


def _is_operator(text: str) -> bool:
    """Whether ``text`` is an operator of numbers or of tensors; not one that reads or writes a file."""
    if _OF_NUMBERS.fullmatch(text):
        return True
    if not _OF_TENSORS.fullmatch(text):
        return False
    found: Any = torch.ops
    for part in text.split(".")[2:]:
        found = getattr(found, part, None)
    if isinstance(found, torch._ops.OpOverload):
        return all(argument.name != "filename" for argument in found._schema.arguments)
    return isinstance(found, torch._ops.HigherOrderOperator)


def _is_arithmetic(text: str) -> bool:
    """Whether ``sympify``, which evaluates ``text`` as Python, can only do arithmetic on it."""
    try:
        return text.isascii() and text.isprintable() and _computes(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def _computes(node: ast.AST) -> bool:
    match node:
        case ast.Constant(value):
            return isinstance(value, int | float)
        case ast.Name(name):
            return "__" not in name
        case ast.Call(ast.Name("Symbol"), [ast.Constant(str(name))], keywords):
            return re.fullmatch(r"\w+", name) is not None and all(isinstance(k.value, ast.Constant) for k in keywords)
        case ast.Call(ast.Name("Float"), [ast.Constant(str(number))], keywords):
            return re.fullmatch(r"[\d.e+-]+", number) is not None and all(_computes(k.value) for k in keywords)
        case ast.Call(ast.Name(function), arguments, keywords):
            return function in _FUNCTIONS and all(map(_computes, [*arguments, *(k.value for k in keywords)]))
        case ast.BinOp() | ast.BoolOp() | ast.UnaryOp() | ast.Compare():
            return all(_computes(child) for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr))
    return False


def _of_structure(value: Any) -> Iterator[str]:
    """Yield the faults of how arguments or outputs are nested. torch imports the modules of enums and factories."""
    if isinstance(value, str):
        if value[:1] in ("[", "{", '"'):
            yield from _of_structure(json.loads(value))
        elif not is_plain(value):
            yield f"holds the name {value[:80]!r}, which is none"
    elif isinstance(value, list):
        for item in value:
            yield from _of_structure(item)
    elif isinstance(value, dict):
        module = str(value["fqn"]).partition(":")[0] if "__enum__" in value else value.get("default_factory_module")
        if module not in (None, "builtins", "collections"):
            yield f"imports the module '{module}'"
        for item in (*value.keys(), *value.values()):
            yield from _of_structure(item)


def _keywords(text: str) -> Sequence[str]:
    """Return the names of the keywords of a call, from the description of its arguments."""
    try:
        keywords = json.loads(json.loads(text)[1]["children_spec"][1]["context"])
    except (IndexError, KeyError, TypeError):
        return ()
    return [keyword for keyword in keywords if isinstance(keyword, str)] if isinstance(keywords, list) else ()
