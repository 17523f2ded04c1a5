"""Two replicas on a real cluster of Ray Serve, with the files of ``deploy/ray``; one is killed.

``make ray`` makes an environment with Ray; $RAY_PYTHON is its interpreter. Without it the tests are skipped, and the
skip is printed.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from benches.ports import free_port
from tests.e2e.conftest import repository as repository
from tests.e2e.test_tritonclient import client as client
from tests.e2e.test_tritonclient import test_a_stream_with_an_error_in_it as test_a_stream_with_an_error_in_it
from tests.e2e.test_tritonclient import (
    test_an_error_has_the_words_that_programs_look_for as test_an_error_has_the_words_that_programs_look_for,
)
from tests.e2e.test_tritonclient import test_calls_in_the_background as test_calls_in_the_background
from tests.e2e.test_tritonclient import test_classification as test_classification
from tests.e2e.test_tritonclient import test_every_option_of_infer_is_taken as test_every_option_of_infer_is_taken
from tests.e2e.test_tritonclient import test_infer_gives_the_same_numbers as test_infer_gives_the_same_numbers
from tests.e2e.test_tritonclient import test_live_ready_and_metadata as test_live_ready_and_metadata
from tests.e2e.test_tritonclient import test_requested_outputs_and_versions as test_requested_outputs_and_versions
from tests.e2e.test_tritonclient import test_text as test_text
from tests.e2e.test_tritonclient import test_the_asyncio_client as test_the_asyncio_client
from tests.reliability.load import Load
from tests.reliability.servers import write_version

ROOT = Path(__file__).resolve().parents[2]
PYTHON = Path(os.environ.get("RAY_PYTHON", ROOT / ".venv-ray/bin/python"))
START_SECONDS = 240.0
pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]


class Cluster:
    """A cluster in a process of its own, which answers questions."""

    def __init__(self, repository: Path) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        program = str(ROOT / "benches/scaling/ray_cluster.py")
        self._process = subprocess.Popen(
            [str(PYTHON), program, str(repository), self.address.rpartition(":")[2], "2"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        )
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def wait_for(self, start: str) -> str:
        """The next line that begins with ``start``."""
        while True:
            line = self._lines.get(timeout=START_SECONDS)
            assert line, "the cluster has ended"
            if line.startswith(start):
                return line

    def replicas(self) -> set[int]:
        """The process ids of the replicas."""
        assert self._process.stdin is not None
        self._process.stdin.write("replicas\n")
        self._process.stdin.flush()
        return set(map(int, self.wait_for("pids:").split()[1:]))

    def stop(self) -> None:
        """End the cluster."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(120)


@pytest.fixture(scope="module")
def cluster(repository) -> Iterator[Cluster]:
    if not PYTHON.exists():
        pytest.skip(f"{PYTHON} is missing; make ray makes it")
    write_version(repository / "good", 1)
    cluster = Cluster(repository)
    try:
        cluster.wait_for("listening on")
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="module")
def address(cluster) -> str:
    """The address of Ray's proxy."""
    return cluster.address


def test_one_of_two_replicas_is_killed_another_takes_its_place_and_no_answer_is_wrong(cluster):
    with Load(cluster.address, clients=2) as load:
        load.wait_for(50)
        before = cluster.replicas()
        assert len(before) == 2
        killed = min(before)
        os.kill(killed, signal.SIGKILL)
        load.wait_for(50)
        until = time.monotonic() + START_SECONDS
        while len(cluster.replicas() - {killed}) < 2:
            assert time.monotonic() < until, "no other replica was started"
            time.sleep(0.2)
        load.wait_for(50)
    # Ray's proxy ends what a dead replica held with INTERNAL; everything else was answered, and answered right.
    assert {why for why in load.outcomes.lost if "INTERNAL" not in why} == set()
    assert load.outcomes.right >= 150
