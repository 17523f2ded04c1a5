"""The examples in docstrings are true."""

from __future__ import annotations

import doctest
from importlib import import_module
from pathlib import Path

import pytest

import normfold.protos
import normfold.serving

MODULES = [
    ".".join([package.__name__, *path.relative_to(Path(package.__file__).parent).with_suffix("").parts])
    for package in (normfold.protos, normfold.serving)
    for path in sorted(Path(package.__file__).parent.rglob("*.py"))
    if path.stem != "__init__"
]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_run(name):
    assert doctest.testmod(import_module(name)).failed == 0
