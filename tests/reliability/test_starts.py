"""A server that is stopped while it starts says so, and a server that crashes says where."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from tests.reliability.servers import ServerProcess, serving, write_repository
from tests.reliability.starts import start_often
from tests.waiting import wait_until


def test_sigterm_while_libraries_are_imported_ends_with_a_word(tmp_path):
    server = ServerProcess(write_repository(tmp_path), "--workers", "1")
    try:
        wait_until(lambda: "numpy" in Path(f"/proc/{server.pid}/maps").read_text())
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        assert server.lines[-1] == "stopped"
    finally:
        server.kill()


def test_a_crash_in_a_library_is_no_silent_end(tmp_path):
    with serving(write_repository(tmp_path)) as server:
        server.signal(signal.SIGSEGV)
        assert server.wait() == -signal.SIGSEGV
    assert "Fatal Python error: Segmentation fault" in server.printed


@pytest.mark.skipif("not __import__('os').environ.get('NORMFOLD_CHAOS')", reason="the long form starts servers")
def test_servers_that_are_started_often_end_as_they_should(tmp_path, times):
    found = start_often(write_repository(tmp_path), 5 * times, (("--workers", "1"),), print)
    assert found.odd == []
    assert found.outcomes.lost == []
