"""A server without room for its log, its cache and its traces, or without standard files, answers all the same."""

from __future__ import annotations

import signal

import pytest
from tests.reliability import disks
from tests.reliability.load import Load
from tests.reliability.servers import ServerProcess, lasting_address, write_repository


def test_a_full_disk_loses_nothing(tmp_path, times):
    if why := disks.why_not():
        pytest.skip(f"no tmpfs can be mounted here: {why}")
    repository = write_repository(tmp_path / "repository")
    server, outcomes = disks.on_a_full_disk(tmp_path, repository, 100 * times, "--workers", "1")
    try:
        assert outcomes.lost == []
        assert outcomes.right == outcomes.sent
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
    finally:
        server.kill()


def test_closed_standard_files_are_no_reason_to_end(tmp_path):
    repository = write_repository(tmp_path / "repository")
    listen = lasting_address()
    server = ServerProcess(repository, "--workers", "2", listen=listen, before=disks.closed("012"))
    try:
        with Load(listen) as load:
            load.wait_for(20)
        assert load.outcomes.lost == []
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
    finally:
        server.kill()
