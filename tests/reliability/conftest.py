"""How often each thing is done: once, or NORMFOLD_CHAOS times in the long form."""

from __future__ import annotations

import os

import pytest

from normfold.serving.frontends import FRONTENDS


@pytest.fixture
def times() -> int:
    """How often each test does its harm."""
    return int(os.environ.get("NORMFOLD_CHAOS", "1"))


@pytest.fixture(params=FRONTENDS)
def frontend(request: pytest.FixtureRequest) -> str:
    """The name of each frontend."""
    return request.param
