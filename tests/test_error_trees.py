"""The trees that are drawn in the docstrings of the error modules show the classes as they are."""

from __future__ import annotations

import re
from importlib import import_module
from types import ModuleType

import pytest

#: "│   └── DeviceUnavailable   INVALID_ARGUMENT   words": what comes before the name, the name, a gRPC status or none.
LINE = re.compile(r"(?P<before>[ │├└─]*)(?P<name>[A-Z]\w+)(?: +(?P<status>[A-Z]+(?:_[A-Z]+)*)(?= ))?(?: |$)")


def drawn(module: ModuleType) -> dict[str, tuple[str | None, str | None]]:
    """For each class in the drawing: the class above it (None for the root), and the status beside it."""
    assert module.__doc__ is not None
    lines = module.__doc__.splitlines()
    branches = [number for number, line in enumerate(lines) if "── " in line]
    found: dict[str, tuple[str | None, str | None]] = {}
    above: list[tuple[int, str]] = []
    for line in lines[branches[0] - 1 : branches[-1] + 1]:
        match = LINE.match(line)
        assert match is not None, line
        column = len(match["before"])
        above = [(other, name) for other, name in above if other < column]
        found[match["name"]] = (above[-1][1] if above else None, match["status"])
        above.append((column, match["name"]))
    return found


def defined(module: ModuleType) -> dict[str, type[Exception]]:
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, Exception) and value.__module__ == module.__name__
    }


@pytest.mark.parametrize("name", ["normfold.export.errors", "normfold.serving.errors"])
def test_the_drawn_tree_of_errors_is_that_of_the_classes(name: str) -> None:
    module = import_module(name)
    classes = defined(module)
    tree = {name: parent for name, (parent, _) in drawn(module).items()}
    assert len(tree) > 5
    parents = {name: error.__base__.__name__ if error.__base__ else "" for name, error in classes.items()}
    assert tree == {name: parent if parent in classes else None for name, parent in parents.items()}


def test_a_status_beside_a_class_is_that_of_the_class_and_else_of_the_class_above() -> None:
    module = import_module("normfold.serving.errors")
    statuses = {name: error.status.name for name, error in defined(module).items()}  # type: ignore[attr-defined]
    assert statuses["NotFound"] == "NOT_FOUND"
    wrong = {}
    for name, (parent, status) in drawn(module).items():
        expected = status or statuses[str(parent)]
        if statuses[name] != expected:
            wrong[name] = f"{statuses[name]}, drawn as {expected}"
    assert wrong == {}
