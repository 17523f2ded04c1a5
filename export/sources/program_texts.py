"""The texts that describe a ``torch.export`` program, looked at before torch resolves, parses or executes them."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any
from unicodedata import normalize

from normfold.export.sources.program_guards import is_guard, is_plain
from normfold.export.sources.program_operators import is_operator
from normfold.export.sources.program_powers import are_bounded

__all__ = ["faults"]

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
_VARIABLES = {"name", "as_name", "forward_arg_names", "keyword"}
#: Those among them that are names of arguments only.
_OF_CALLS = {"forward_arg_names", "keyword"}
#: Paths of weights and modules, which torch quotes in code.
_PATHS = {"parameter_name", "buffer_name", "tensor_constant_name", "fqn"}
#: Where a node comes from, which torch keeps as text.
_METADATA = "metadata"
#: Texts that are arguments of operators are any; those of inputs and outputs are written into guards.
_STRINGS = {"as_string", "as_strings"}
#: Ranges are those of sizes: torch counts up to the number in the name of one that depends on data.
_RANGE = re.compile(r"(u|zuf)[0-9]{1,6}|(?!u|zuf).*")
#: Names that code of torch's own uses in the function of a program.
_RESERVED = {"torch", "self", "operator", "_operator", "device", "getattr", "pytree", "fx_pytree"}
#: The types of the default values of a defaultdict.
_FACTORIES = {"list", "dict", "set", "tuple", "int", "float", "str", "bool"}
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
            if own:
                yield from _of_text(key, field if field == "range_constraints" else _key(field))
            if own or (key != _METADATA and not (key in _STRINGS and field in ("arg", ""))):
                yield from faults(inner, "" if own else "keyword" if key == "name" and "arg" in value else key)


def _key(mapping: str) -> str:
    return "name" if mapping.endswith("_values") else "key"


def _of_text(text: str, field: str) -> Iterator[str]:
    if field in ("target", "as_operator"):
        if not is_operator(text):
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
                yield from _of_text(str(keyword), "name")
    elif not _is_name(text, field):
        yield f"holds the name {text[:80]!r}, which is none"


def _is_name(text: str, field: str) -> bool:
    if field in _VARIABLES:
        return re.fullmatch(r"\w*", text) is not None and (
            field in _OF_CALLS or normalize("NFKC", text) not in _RESERVED
        )
    if field in _PATHS or field == "key":
        return is_plain(text) and (field == "key" or not any(part.startswith("__") for part in text.split(".")))
    if field in _STRINGS:
        return is_plain(text)
    return (_RANGE if field == "range_constraints" else _OTHER).fullmatch(text) is not None


def _is_arithmetic(text: str) -> bool:
    """Whether ``sympify``, which evaluates ``text`` as Python, can only do arithmetic on it."""
    try:
        if len(text) > 10_000 or not (text.isascii() and text.isprintable()):
            return False
        tree = ast.parse(text, mode="eval").body
        return _computes(tree) and are_bounded(tree)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def _computes(node: ast.AST) -> bool:
    match node:
        case ast.Constant(value):
            return isinstance(value, int | float)
        case ast.Name(name):
            return re.fullmatch(r"[a-z]{1,4}\d+|(int_)?oo|true|false", name) is not None
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
        if "__enum__" in value:
            yield f"imports the module '{str(value.get('fqn')).partition(':')[0]}'"
        module, name = value.get("default_factory_module"), value.get("default_factory_name")
        if module is not None and (module != "builtins" or name not in _FACTORIES):
            yield f"imports the module '{module}'" if module != "builtins" else f"calls '{name}'"
        for item in (*value.keys(), *value.values()):
            yield from _of_structure(item)


def _keywords(text: str) -> Sequence[Any]:
    """Return the names of the keywords of a call, from the description of its arguments."""
    try:
        keywords = json.loads(json.loads(text)[1]["children_spec"][1]["context"])
    except (IndexError, KeyError, TypeError, ValueError):
        return ()
    return list(keywords) if isinstance(keywords, list | dict | str) else ()
