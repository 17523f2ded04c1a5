"""Fixtures for the tests of several folders."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from tests.certificates import Authority, Certificate

ROOT = Path(__file__).resolve().parent.parent

# How long an example takes says how busy the machine is.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


def pytest_configure() -> None:
    """Let SIGINT interrupt this process and the processes it starts, wherever the tests are started.

    A shell without job control, such as one that runs a script, makes its background jobs ignore SIGINT. Children
    inherit that, and tests that press Ctrl-C would wait in vain. A handler is not inherited: children of a process with
    one have the default.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def root() -> Path:
    """The folder of the project."""
    return ROOT


@pytest.fixture(scope="session", autouse=True)
def _own_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep measurements in a cache folder of this test run, and servers off the default port, in all processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NORMFOLD_SERVE_LISTEN", "127.0.0.1:0")
        patch.setenv("NORMFOLD_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with both trained networks, exported once for the whole test run."""
    from .latency.networks import export_both

    repository = tmp_path_factory.mktemp("trained")
    export_both(repository)
    return repository


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The authority whose certificates servers and clients trust."""
    from tests.certificates import Authority  # needs trustme, which a machine for the tests on a GPU may lack

    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Another one, which nobody trusts at first."""
    from tests.certificates import Authority

    return Authority(tmp_path_factory.mktemp("stranger"))


@pytest.fixture(scope="session")
def certificate(authority: Authority) -> Certificate:
    """The certificate of a server on this host."""
    return authority.issue("localhost", "127.0.0.1")


@pytest.fixture(scope="session")
def known_client(authority: Authority) -> Certificate:
    """The certificate of a client."""
    return authority.issue("client@example.org")
