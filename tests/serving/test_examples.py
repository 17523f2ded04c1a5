"""The examples in docstrings are true."""

from __future__ import annotations

import doctest
from importlib import import_module
from pathlib import Path

import pytest

import normfold.protos
import normfold.serving

MODULES = [
    f"{package.__name__}.{path.stem}"
    for package in (normfold.protos, normfold.serving)
    for path in sorted(Path(package.__file__).parent.glob("*.py"))
    if path.stem != "__init__"
]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_run(name):
    assert doctest.testmod(import_module(name)).failed == 0
