"""Finds what a file of Python code defines without running it, and which of its classes is the whole network.

A file often has several: blocks first, then the network that is made of them. The whole network is the class that no
other class of the file uses.
"""

from __future__ import annotations

import ast
from pathlib import Path

from normfold.plain_file import read_plain_text

__all__ = ["defined_names", "whole_networks"]


def defined_names(path: Path) -> list[str]:
    """Return the public classes and functions of a file, whole networks first, then other classes."""
    body = _body(path)
    public = [s.name for kind in (ast.ClassDef, ast.FunctionDef) for s in body if isinstance(s, kind) if _is_public(s)]
    whole = whole_networks(path)
    return [*whole, *(name for name in public if name not in whole)]


def whole_networks(path: Path) -> list[str]:
    """Return the public classes of a file that may be whole networks, those first that are made without arguments."""
    classes = {s.name: s for s in _body(path) if isinstance(s, ast.ClassDef)}
    networks = {name: s for name, s in classes.items() if _is_network(s, classes)}
    used = {name for s in classes.values() for name in _names(s) if name != s.name}
    whole = [s for name, s in networks.items() if _is_public(s) and name not in used]
    whole = whole or [s for s in networks.values() if _is_public(s)]
    return [s.name for s in sorted(whole, key=lambda s: _needs_arguments(s, classes))]


def _body(path: Path) -> list[ast.stmt]:
    try:
        return ast.parse(read_plain_text(path)).body
    except (OSError, ValueError, SyntaxError):
        return []


def _is_public(definition: ast.ClassDef | ast.FunctionDef) -> bool:
    return not definition.name.startswith("_")


def _names(definition: ast.ClassDef) -> set[str]:
    return {node.id for node in ast.walk(definition) if isinstance(node, ast.Name)}


def _is_network(definition: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> bool:
    """Whether it has ``forward`` or a base named like a torch.nn.Module, or is made from such a class of the file."""
    lineage = _lineage(definition, classes)
    return any(_method(s, "forward") for s in lineage) or any(
        base.endswith(("Module", "Sequential")) and not base.endswith("DataModule")
        for s in lineage
        for base in _bases(s)
    )


def _needs_arguments(definition: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> bool:
    init = next((found for s in _lineage(definition, classes) if (found := _method(s, "__init__"))), None)
    if init is None:
        return False
    given = init.args
    required = len(given.posonlyargs) + len(given.args) - len(given.defaults) - 1
    return required > 0 or any(default is None for default in given.kw_defaults)


def _lineage(definition: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> list[ast.ClassDef]:
    """Return a class and the classes of the same file that it is made from."""
    found = [definition]
    for s in found:
        found += [classes[base] for base in _bases(s) if base in classes and classes[base] not in found]
    return found


def _bases(definition: ast.ClassDef) -> list[str]:
    return [ast.unparse(base).split("[")[0].rpartition(".")[2] for base in definition.bases]


def _method(definition: ast.ClassDef, name: str) -> ast.FunctionDef | None:
    return next((s for s in definition.body if isinstance(s, ast.FunctionDef) and s.name == name), None)
