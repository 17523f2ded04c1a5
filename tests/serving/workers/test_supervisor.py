"""What the supervisor does with signals."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from types import SimpleNamespace

from normfold.serving.settings import ServerConfig
from normfold.serving.workers.messages import Listening
from normfold.serving.workers.supervisor import Supervisor


def test_a_hang_up_while_the_first_worker_starts_reaches_it_when_it_listens():
    sent = []

    class Link:
        messages = iter([Listening(), None])

        async def receive(self):
            return next(self.messages)

        async def close(self):
            pass

    async def ended():
        return 0

    async def hang_up():
        supervisor = Supervisor(ServerConfig(Path("r"), "127.0.0.1:0"), 2)
        supervisor._on_hang_up()  # no worker is there yet
        future = asyncio.get_running_loop().create_future()
        worker = SimpleNamespace(
            number=1, listening=future, send_signal=sent.append, link=Link(), gone=lambda: None, served=(), ready=True,
            server_ready=False, process=SimpleNamespace(wait=ended),
        )  # fmt: skip
        supervisor._processes[1] = worker
        supervisor._on_hang_up()
        assert sent == []
        await supervisor._attend(worker, lambda started: None)
        assert sent == [signal.SIGHUP]
        supervisor._on_hang_up()
        assert sent == [signal.SIGHUP] * 2
        supervisor._port.release()

    asyncio.run(hang_up())
