"""Three replicas behind the real Envoy, with the files of ``deploy/envoy``: nothing is lost, whatever replicas do."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from benches.scaling.envoy import PROGRAM, envoy
from tests.e2e.conftest import repository as repository
from tests.e2e.conftest import running
from tests.e2e.test_tritonclient import *  # noqa: F403  the same tests, with the fixtures below
from tests.reliability.load import Load
from tests.reliability.servers import ServerProcess, write_repository
from tests.waiting import wait_until

pytestmark = pytest.mark.interop
OPTIONS = ("--workers", "1", "--drain-delay", "2", "--max-queue-seconds", "60")


def need_envoy() -> None:
    """Skip the test where there is no Envoy."""
    if not PROGRAM.exists():
        pytest.skip(f"{PROGRAM} is missing; make interop fetches it")


@dataclass
class Behind:
    """The address of an Envoy before one replica."""

    address: str


@pytest.fixture(scope="session")
def start(tmp_path_factory) -> Callable[..., contextlib.AbstractContextManager[Behind]]:
    """As in tests/e2e, but the server's address is that of an Envoy."""
    need_envoy()

    @contextlib.contextmanager
    def behind(repository: Path, *options: str) -> Iterator[Behind]:
        folder = tmp_path_factory.mktemp("envoy")
        with running(repository, *options) as server, envoy([server.address], folder) as proxy:
            yield Behind(proxy.address)

    return behind


@pytest.fixture(scope="module")
def address(repository, tmp_path_factory) -> Iterator[str]:
    """The address of an Envoy before three replicas; calls of one client go to all of them."""
    need_envoy()
    with contextlib.ExitStack() as replicas:
        addresses = [replicas.enter_context(running(repository)).address for _ in range(3)]
        yield replicas.enter_context(envoy(addresses, tmp_path_factory.mktemp("envoy"))).address


def asked(replica: ServerProcess) -> int:
    """The number of inferences that a replica has answered."""
    from normfold.serving.client.client import Client

    with Client(replica.address) as client:
        return sum(counter.answered for counter in client.counters())


def test_one_is_killed_one_is_drained_one_is_added_and_nothing_is_lost(tmp_path):
    need_envoy()
    repository = write_repository(tmp_path / "repository")
    replicas = [ServerProcess(repository, *OPTIONS) for _ in range(3)]
    try:
        killed, drained, stays = (replica.wait_ready() for replica in replicas)
        every = [replica.address for replica in replicas]
        with envoy(every, tmp_path / "envoy") as proxy, Load(proxy.address, clients=4) as load:
            load.wait_for(150)
            wait_until(lambda: min(map(asked, replicas)) > 10)
            killed.kill()
            load.wait_for(150)
            drained.signal(signal.SIGTERM)
            assert drained.wait() == 0, drained.printed
            load.wait_for(150)
            assert proxy.healthy() == {stays.address}
            added = ServerProcess(repository, *OPTIONS)
            replicas.append(added)
            added.wait_ready()
            proxy.balance([stays.address, added.address])
            wait_until(lambda: proxy.healthy() == {stays.address, added.address})
            wait_until(lambda: asked(added) > 10)
        outcomes = load.outcomes
        assert outcomes.lost == []
        assert outcomes.right == outcomes.sent >= 450
        assert (outcomes.refused, outcomes.cut) == (0, 0), "no client had to try again: Envoy did"
    finally:
        for replica in replicas:
            replica.kill()
