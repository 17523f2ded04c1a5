"""The supervisor: starts the workers of a server, keeps them there, and stops them together."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from normfold.serving.process.address import check
from normfold.serving.process.cpus import available_cpus
from normfold.serving.workers.exchange import Exchange
from normfold.serving.workers.port import Port
from normfold.serving.workers.process import WorkerProcess, how

log = logging.getLogger(__name__)

#: The wait before a worker is started again: doubled each time, back to the first once one has lived for a while.
FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS, STEADY_SECONDS = 0.1, 10.0, 10.0

#: A worker that ends so many times in a row before it listens will not listen the next time either.
MOST_FAILED_STARTS = 3

#: How much longer than its grace a worker may take to end.
MARGIN_SECONDS = 5.0


class WorkersError(Exception):
    """The server cannot start or go on; one line for the person who started it."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        #: What the process ends with.
        self.exit_code = exit_code


@dataclass(frozen=True)
class Started:
    """A server of which every worker listens."""

    address: str
    workers: int
    ready: bool
    #: A line for each model, and whether it was loaded.
    models: list[tuple[str, bool]]


class Supervisor:
    """Runs a server of several workers."""

    def __init__(self, settings: Mapping[str, Any], workers: int, log_level: str) -> None:
        """Take the port. ``settings`` are the fields of a ServerConfig. Raises WorkersError when it cannot be had."""
        listen = settings["listen"]
        try:
            check(listen)
            self._port = Port(listen)
        except ValueError as error:
            raise WorkersError(str(error)) from None
        except OSError as error:
            why = error.strerror or str(error)
            raise WorkersError(f"cannot listen on {listen}: {why}; choose another with --listen host:port") from None
        share = {"listen": self._port.address, "cpus": max(1, available_cpus() // workers), "log_level": log_level}
        self._settings = json.dumps({**settings, **share}, default=str)
        self._grace_seconds = float(settings["grace_seconds"])
        self._count = workers
        self._exchange = Exchange(workers)
        self._processes: dict[int, WorkerProcess] = {}
        self._stop = asyncio.Event()
        self._announced = False

    async def run(self, on_ready: Callable[[Started], None]) -> bool:
        """Serve until SIGTERM or Ctrl-C; whether every worker answered what was on its way.

        ``on_ready`` is called once, when every worker listens. A second signal ends all at once. Raises WorkersError
        when the workers cannot be started, or kept.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        stopped = asyncio.create_task(self._stop.wait())
        keepers = [asyncio.create_task(self._keep(number, on_ready)) for number in range(1, self._count + 1)]
        try:
            await asyncio.wait([stopped, *keepers], return_when=asyncio.FIRST_COMPLETED)
            if self._stop.is_set():
                self._signal(signal.SIGTERM)
                await asyncio.wait(keepers, timeout=self._grace_seconds + MARGIN_SECONDS)
        finally:
            self._stop.set()
            self._signal(signal.SIGKILL)
            codes = await asyncio.gather(*keepers, return_exceptions=True)
            self._port.release()
        for code in codes:
            if isinstance(code, BaseException):
                raise code
        return not any(codes)

    def _on_signal(self) -> None:
        if self._stop.is_set():
            self._signal(signal.SIGKILL)
            os._exit(1)
        self._stop.set()

    def _signal(self, number: signal.Signals) -> None:
        for worker in self._processes.values():
            worker.send_signal(number)

    async def _keep(self, number: int, on_ready: Callable[[Started], None]) -> int:
        """Keep worker ``number`` there until the server stops; 0 when the last one answered all it had to."""
        failed_starts, delay = 0, FIRST_DELAY_SECONDS
        while not self._stop.is_set():
            born = time.monotonic()
            worker = self._processes[number] = await WorkerProcess.start(number, self._settings)
            if self._stop.is_set():
                worker.send_signal(signal.SIGTERM)
            code = await self._attend(worker, on_ready)
            listened = worker.listening.result()
            if self._stop.is_set():
                return code if listened else 0
            if worker.failure and not self._exchange.complete:
                raise WorkersError(worker.failure, worker.exit_code)
            failed_starts = 0 if listened else failed_starts + 1
            ended = f"could not start: {worker.failure}" if worker.failure else how(code)
            served = self._exchange.complete and self._exchange.listening
            if failed_starts >= MOST_FAILED_STARTS and not served:
                raise WorkersError(f"worker {number} {ended}, {failed_starts} times in a row before it was ready")
            if time.monotonic() - born > STEADY_SECONDS:
                delay = FIRST_DELAY_SECONDS
            log.error("worker %d %s; another is started in %g s", number, ended, delay)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._stop.wait(), delay)
            delay = min(2 * delay, LONGEST_DELAY_SECONDS)
        return 0

    async def _attend(self, worker: WorkerProcess, on_ready: Callable[[Started], None]) -> int:
        """Do what ``worker`` asks for until it ends; its exit code."""
        joining: asyncio.Task[None] | None = None
        while (frame := await worker.link.hear()) is not None:
            if frame.kind == "failed":
                worker.failure, worker.exit_code = frame.fields["message"], frame.fields["exit_code"]
            elif frame.kind == "loaded":
                worker.models = [(line, loaded) for line, loaded in frame.fields["models"]]
                joining = asyncio.create_task(self._join(worker, on_ready))
            else:
                self._exchange.hear(worker, frame)
        self._exchange.leave(worker)
        if joining is not None:
            await joining
        await worker.link.close()
        return await worker.process.wait()

    async def _join(self, worker: WorkerProcess, on_ready: Callable[[Started], None]) -> None:
        if await self._exchange.join(worker) and self._exchange.complete and not self._announced:
            self._announced = True
            on_ready(Started(self._port.address, self._count, self._exchange.ready, worker.models))
