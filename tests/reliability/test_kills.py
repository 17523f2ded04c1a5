"""Workers and servers that are killed, or asked to stop, under load: no request is lost."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.reliability.kills import signal_server, signal_workers, surprises
from tests.reliability.outcomes import Outcomes
from tests.reliability.servers import lasting_address, serving, write_repository
from tests.waiting import wait_until


def test_workers_that_are_stopped_or_killed_lose_nothing_and_end_with_their_supervisor(tmp_path, frontend, times):
    with serving(write_repository(tmp_path), "--frontend", frontend, "--workers", "2") as server:
        stopped = signal_workers(server, times, signal.SIGTERM)
        assert surprises(stopped, frontend) == []
        assert stopped.cut == 0
        killed = signal_workers(server, times, signal.SIGKILL)
        assert killed.lost == []
        assert killed.right == killed.sent
        workers = server.workers
        assert len(workers) == 2
        os.kill(server.pid, signal.SIGKILL)
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))


def test_a_server_that_is_stopped_or_killed_and_started_again_loses_nothing(tmp_path, frontend, times):
    with serving(write_repository(tmp_path), "--frontend", frontend, listen=lasting_address()) as server:
        first, stopped = signal_server(server, times, signal.SIGTERM)
        assert surprises(stopped, frontend) == []
        assert stopped.cut == 0
        last, killed = signal_server(first, times, signal.SIGKILL)
        assert killed.lost == []
        assert killed.right == killed.sent
        last.kill()


def test_only_a_few_losses_are_known_ones():
    cancelled = ["CANCELLED: CANCELLED"]
    assert surprises(Outcomes(sent=100, right=90, lost=cancelled * 10), "grpcio") == []
    assert surprises(Outcomes(sent=100, right=89, lost=cancelled * 11), "grpcio") == cancelled * 11
    assert surprises(Outcomes(sent=100, right=98, lost=[*cancelled, "wrong"]), "grpcio") == ["wrong"]
    assert surprises(Outcomes(sent=100, right=99, lost=cancelled), "http2") == cancelled
