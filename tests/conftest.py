"""What tests of several folders share."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def pytest_configure() -> None:
    """Let SIGINT interrupt this process and the processes it starts, wherever the tests are started.

    A shell without job control makes its background jobs ignore SIGINT, and every process passes that on to its
    children: tests that press Ctrl-C would wait for nothing. A handler is not passed on; children get the default.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's own folder."""
    return ROOT


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Measurements are remembered in a folder of this run, also by the processes it starts: never in the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NORMFOLD_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with both trained networks, exported once for the whole run."""
    from .latency.networks import export_both

    repository = tmp_path_factory.mktemp("trained")
    export_both(repository)
    return repository
