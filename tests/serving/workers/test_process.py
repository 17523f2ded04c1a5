"""A worker as its supervisor sees it: how it starts, and that its exit code is asyncio's to take."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from normfold.serving.settings import ServerConfig
from normfold.serving.workers.frames import supervisor_end
from normfold.serving.workers.process import WorkerProcess


def test_a_signal_does_not_take_the_exit_code_of_the_process(monkeypatch):
    async def run():
        child = await asyncio.create_subprocess_exec(sys.executable, "-c", "import time; time.sleep(60)")
        ours, theirs = socket.socketpair()
        with theirs:
            worker = WorkerProcess(1, child, await supervisor_end(ours))
            monkeypatch.setattr(subprocess.Popen, "poll", lambda self: pytest.fail("it may have ended just now"))
            worker.send_signal(signal.SIGTERM)
            code = await child.wait()
            worker.send_signal(signal.SIGTERM)
            await worker.link.close()
            return code

    assert asyncio.run(run()) == -signal.SIGTERM


def test_a_start_that_fails_leaves_no_socket_open(monkeypatch):
    pairs = []
    make = socket.socketpair

    def socketpair(*arguments):
        pairs.append(make(*arguments))
        return pairs[-1]

    async def no_process(*arguments, **options):
        raise OSError(24, "Too many open files")

    async def run():  # the event loop has a pair of its own
        monkeypatch.setattr(socket, "socketpair", socketpair)
        monkeypatch.setattr(asyncio, "create_subprocess_exec", no_process)
        await WorkerProcess.start(1, ServerConfig(Path("r")), False)

    with pytest.raises(OSError, match="Too many open files"):
        asyncio.run(run())
    assert [[end.fileno() for end in pair] for pair in pairs] == [[-1, -1]]
