"""A worker as its supervisor sees it: its exit code is asyncio's to take."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys

import pytest

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
