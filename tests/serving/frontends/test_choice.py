"""The frontend of a server is chosen by a name of FRONTENDS."""

from __future__ import annotations

from pathlib import Path

import pytest

from normfold.serving.errors import StartError
from normfold.serving.frontends import FRONTENDS, frontend
from normfold.serving.settings import ServerConfig


def test_every_name_is_a_frontend_of_its_own():
    assert len({frontend(name) for name in FRONTENDS}) == len(FRONTENDS)


def test_another_name_is_told_with_those_that_there_are():
    with pytest.raises(StartError, match="--frontend 'http3' is not one of http2, grpcio"):
        ServerConfig(Path(), frontend="http3")
