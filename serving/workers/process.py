"""One worker as its supervisor sees it: a process, the connection to it, and what it has reported."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import socket
import subprocess

from normfold.serving.catalog.served import ServedModel
from normfold.serving.process import children
from normfold.serving.settings import ServerConfig
from normfold.serving.workers.frames import SupervisorEnd, supervisor_end
from normfold.serving.workers.messages import Perform, Performed, WorkerAnswer

MODULE = "normfold.serving.workers.worker"


class WorkerProcess:
    """A worker that was started."""

    def __init__(self, number: int, process: asyncio.subprocess.Process, link: SupervisorEnd) -> None:
        self.number, self.process, self.link = number, process, link
        #: Whether its own models are ready.
        self.ready = False
        #: Whether the server is ready, as this worker has it from the last ServerReady.
        self.server_ready = False
        #: The reason why it cannot start, and the exit code of the server because of it.
        self.failure, self.exit_code = "", 1
        #: A line for each model, and whether the model was loaded.
        self.models: tuple[tuple[str, bool], ...] = ()
        #: Done once it listens (True) or has ended (False).
        self.listening: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        #: The models that it serves.
        self.served: tuple[ServedModel, ...] = ()
        #: Whether anything has come from it, and the pings since its last message.
        self.heard, self.unanswered = False, 0
        #: The starts in a row before this one that failed while no other worker listened.
        self.failed_starts = 0
        #: Whether other workers were listening when this one was told to listen.
        self.beside_others = False
        #: Whether it has closed the connection.
        self.left = False
        self._calls: dict[int, asyncio.Future[WorkerAnswer | None]] = {}
        self._numbers = itertools.count()

    @classmethod
    async def start(cls, number: int, config: ServerConfig, again: bool) -> WorkerProcess:
        """Start worker ``number``. Raises OSError, or RuntimeError where a thread that waits for it cannot be started.

        ``again``: workers of this server have served before. It has a process group of its own, so that Ctrl-C reaches
        the supervisor alone, which stops the workers.
        """
        ours, theirs = socket.socketpair()
        words = [config.to_json(), "again"] if again else [config.to_json()]
        try:
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    *children.python(MODULE, str(number), str(theirs.fileno()), *words),
                    stdin=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    process_group=0,
                )
            return cls(number, process, await supervisor_end(ours))
        except BaseException:
            ours.close()  # a worker that was started nevertheless ends, because its connection is closed
            raise

    def perform(self, method: str, request: bytes) -> asyncio.Future[WorkerAnswer | None]:
        """Have the worker carry out a request; its answer, or None when it ends before it answers."""
        number = next(self._numbers)
        future: asyncio.Future[WorkerAnswer | None] = asyncio.get_running_loop().create_future()
        if self.left:
            future.set_result(None)
            return future
        self._calls[number] = future
        self.link.send(Perform(number, method, request))
        return future

    def performed(self, message: Performed) -> None:
        """The worker has answered a request."""
        future = self._calls.pop(message.number, None)
        if future is not None and not future.done():
            future.set_result(message.answer)

    def gone(self) -> None:
        """The worker has closed the connection and sends nothing more."""
        self.left, self.ready = True, False
        for future in self._calls.values():
            if not future.done():
                future.set_result(None)
        self._calls.clear()
        if not self.listening.done():
            self.listening.set_result(False)

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal, unless the process has ended."""
        # Not by the library: it looks first whether the process has ended, which takes the exit code from asyncio.
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, number)


def how(code: int) -> str:
    """How a process with exit code ``code`` ended, for a sentence.

    >>> how(-9), how(1)
    ('was ended by SIGKILL', 'ended with exit code 1')
    """
    if code >= 0:
        return f"ended with exit code {code}"
    named = {number.value: number.name for number in signal.Signals}
    return f"was ended by {named.get(-code, f'signal {-code}')}"
