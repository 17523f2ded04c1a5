"""Servers that the fuzz asks, in processes of their own, so that a crash is seen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fuzz.messages import write_models
from tests.reliability.servers import ServerProcess, serving

from normfold.serving.frontends import FRONTENDS


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models that are asked."""
    return write_models(tmp_path_factory.mktemp("fuzz"))


@pytest.fixture(scope="session")
def servers(repository: Path) -> Iterator[dict[str, ServerProcess]]:
    """A server of each frontend. Neither may have printed a traceback at the end, and both must end with 0.

    The first loads models without trying them in another process first, so that bad files reach the server itself.
    """
    options = ("--no-tune", "--log-level", "error")
    with (
        serving(repository, "--frontend", FRONTENDS[0], "--load-seconds", "0", *options) as first,
        serving(repository, "--frontend", FRONTENDS[1], *options) as second,
    ):
        yield dict(zip(FRONTENDS, (first, second), strict=True))
