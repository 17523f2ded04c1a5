"""One worker as its supervisor sees it: a process, the connection to it, and what it has said."""

from __future__ import annotations

import asyncio
import itertools
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from normfold.serving.workers.frames import Frame, Link

MODULE = "normfold.serving.workers.worker"


class WorkerProcess:
    """A worker that was started."""

    def __init__(self, number: int, process: asyncio.subprocess.Process, link: Link) -> None:
        self.number, self.process, self.link = number, process, link
        #: Whether its own models are ready.
        self.ready = False
        #: What it was last told of the others' readiness.
        self.told_ready = False
        #: What kept it from starting, in its own words.
        self.failure = ""
        #: What the server ends with because of it.
        self.exit_code = 1
        #: A line for each model, and whether the model was loaded.
        self.models: list[tuple[str, bool]] = []
        #: Done once it listens, or is gone.
        self.listening: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        #: Whether it has hung up.
        self.left = False
        self._calls: dict[int, asyncio.Future[Frame | None]] = {}
        self._numbers = itertools.count()

    @classmethod
    async def start(cls, number: int, settings: str) -> WorkerProcess:
        """Start worker ``number`` with ``settings``, its ServerConfig as JSON.

        It is in a process group of its own, so that Ctrl-C reaches the supervisor alone, which tells it when to stop.
        """
        ours, theirs = socket.socketpair()
        # A console script does not look for modules in the working directory; neither may what it starts.
        flags = [] if {"", str(Path.cwd())} & set(sys.path) else ["-P"]
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, *flags, "-m", MODULE, str(number), str(theirs.fileno()), settings),
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                process_group=0,
            )
        return cls(number, process, await Link.over(ours))

    def call(self, method: str, data: bytes) -> asyncio.Future[Frame | None]:
        """Have it do ``method``; its answer, None when it is gone before it answers."""
        number = next(self._numbers)
        future: asyncio.Future[Frame | None] = asyncio.get_running_loop().create_future()
        if self.left:
            future.set_result(None)
            return future
        self._calls[number] = future
        self.link.say("call", data, id=number, method=method)
        return future

    def answered(self, frame: Frame) -> None:
        """Its answer to a call has come."""
        future = self._calls.pop(frame.fields["id"], None)
        if future is not None and not future.done():
            future.set_result(frame)

    def gone(self) -> None:
        """It has hung up: nothing more will come."""
        self.left, self.ready = True, False
        for future in self._calls.values():
            if not future.done():
                future.set_result(None)
        self._calls.clear()
        if not self.listening.done():
            self.listening.set_result(False)

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal, unless it has ended."""
        if self.process.returncode is None:
            self.process.send_signal(number)


def how(code: int) -> str:
    """How a process with exit code ``code`` ended, for a sentence.

    >>> how(-9), how(1)
    ('was ended by SIGKILL', 'ended with exit code 1')
    """
    if code >= 0:
        return f"ended with exit code {code}"
    named: Any = {number.value: number.name for number in signal.Signals}
    return f"was ended by {named.get(-code, f'signal {-code}')}"
