"""The supervisor: starts the workers of a server, keeps them running, and stops them together."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from normfold.serving.errors import WorkersError
from normfold.serving.process import children
from normfold.serving.process.cpus import available_cpus
from normfold.serving.process.memory_limit import default_limit_bytes
from normfold.serving.setting_bounds import LEAST_LIMIT_BYTES
from normfold.serving.settings import OFF, ServerConfig
from normfold.serving.workers.exchange import MOST_REFUSED_STARTS, Exchange
from normfold.serving.workers.messages import ModelsLoaded, Ping, Pong, StartFailed
from normfold.serving.workers.port import Port
from normfold.serving.workers.process import WorkerProcess, how

log = logging.getLogger(__name__)

#: The wait before a worker is started again. It doubles each time, and starts anew after a worker that ran long enough.
FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS, STEADY_SECONDS = 0.1, 10.0, 10.0

#: After this many failed starts of one worker in a row the server ends. Those beside workers that answer do not count,
#: once the server was complete. It is more than MOST_REFUSED_STARTS: a model that cannot be loaded ends no server.
MOST_FAILED_STARTS = MOST_REFUSED_STARTS + 1

#: Time beyond ``drain_delay_seconds`` and ``grace_seconds`` that a worker may take to end, also once it has left.
MARGIN_SECONDS = 5.0

#: Time between two pings to a worker, and the longest wait for the first message of one that starts.
PING_SECONDS, START_SECONDS = 1.0, 300.0

#: Time between two looks for processes that a killed worker has left.
COLLECT_SECONDS = 1.0


@dataclass(frozen=True)
class Started:
    """A server all of whose workers listen."""

    address: str
    workers: int
    ready: bool
    #: A line for each model, and whether it was loaded.
    models: tuple[tuple[str, bool], ...]
    #: "host:port" of the HTTP port; empty where it is off.
    metrics: str


class _End(NamedTuple):
    """The end of a worker."""

    #: Its exit code.
    code: int
    #: Whether it ever listened.
    listened: bool
    #: Whether it counts as a failed start.
    failed_start: bool
    #: How it ended, for a sentence: "was ended by SIGKILL".
    how: str


class Supervisor:
    """Runs a server of several workers."""

    def __init__(self, config: ServerConfig, workers: int) -> None:
        """Hold the port. Raises WorkersError when that cannot be."""
        self._port = _hold(config.listen, "--listen host:port")
        self._ports, metrics = [self._port], config.metrics
        if metrics is not None:
            try:
                self._ports.append(_hold(metrics, "--metrics-listen host:port, or off"))
                metrics = self._ports[-1].address
            except WorkersError as error:
                if config.metrics_listen is not None:
                    raise
                log.warning("no metrics: %s", error)
                metrics = None
        cpus = max(1, available_cpus() // workers)
        memory = config.memory_limit_bytes // workers or default_limit_bytes(workers)
        budget = max(config.memory_budget_bytes // workers, LEAST_LIMIT_BYTES) if config.memory_budget_bytes else 0
        self._config = dataclasses.replace(
            config,
            listen=self._port.address,
            metrics_listen=metrics or OFF,
            cpus=cpus,
            memory_limit_bytes=max(memory, LEAST_LIMIT_BYTES),
            memory_budget_bytes=budget,
        )
        self._count = workers
        self._exchange = Exchange(workers)
        self._processes: dict[int, WorkerProcess] = {}
        self._stop = asyncio.Event()
        self._announced = False

    async def run(self, on_ready: Callable[[Started], None]) -> bool:
        """Serve until SIGTERM or Ctrl-C; whether every worker answered the requests that were under way.

        ``on_ready`` is called once, when every worker listens. A second signal ends all workers at once. Raises
        WorkersError when the workers cannot be started, or kept running.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        loop.add_signal_handler(signal.SIGHUP, self._exchange.look_now)
        stopped = asyncio.create_task(self._stop.wait())
        collecting = asyncio.create_task(children.collect_orphans(COLLECT_SECONDS))
        keepers = [asyncio.create_task(self._keep(number, on_ready)) for number in range(1, self._count + 1)]
        try:
            await asyncio.wait([stopped, *keepers], return_when=asyncio.FIRST_COMPLETED)
            if self._stop.is_set():
                self._signal(signal.SIGTERM)
                most = self._config.drain_delay_seconds + self._config.grace_seconds + MARGIN_SECONDS
                await asyncio.wait(keepers, timeout=most)
        finally:
            self._stop.set()
            self._signal(signal.SIGKILL)
            codes = await asyncio.gather(*keepers, return_exceptions=True)
            collecting.cancel()
            for port in self._ports:
                port.release()
        for code in codes:
            if isinstance(code, BaseException):
                raise code
        return not any(codes)

    @property
    def _answers(self) -> bool:
        """Whether the server was complete, and still answers."""
        return self._exchange.complete and bool(self._exchange.listening)

    def _on_signal(self) -> None:
        if self._stop.is_set():
            self._signal(signal.SIGKILL)
            os._exit(1)
        self._exchange.stopping = True
        self._stop.set()

    def _signal(self, number: signal.Signals) -> None:
        for worker in self._processes.values():
            worker.send_signal(number)

    async def _keep(self, number: int, on_ready: Callable[[Started], None]) -> int:
        """Keep a worker ``number`` running until the server stops; the last one's exit code, 0 if it never listened."""
        failed_starts, delay = 0, FIRST_DELAY_SECONDS
        while not self._stop.is_set():
            born = time.monotonic()
            end = await self._run_worker(number, failed_starts, on_ready)
            if self._stop.is_set():
                return end.code if end.listened else 0
            failed_starts = failed_starts + 1 if end.failed_start else 0
            if failed_starts >= MOST_FAILED_STARTS:
                raise WorkersError(f"worker {number} {end.how}, {failed_starts} times in a row before it was ready")
            if time.monotonic() - born > STEADY_SECONDS:
                delay = FIRST_DELAY_SECONDS
            log.error("worker %d %s; another is started in %g s", number, end.how, delay)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._stop.wait(), delay)
            delay = min(2 * delay, LONGEST_DELAY_SECONDS)
        return 0

    async def _run_worker(self, number: int, failed_starts: int, on_ready: Callable[[Started], None]) -> _End:
        """Start a worker ``number`` and attend to it until it ends.

        Raises WorkersError when it says that it cannot start, and the server was not complete yet.
        """
        try:
            worker = await WorkerProcess.start(number, self._config, self._exchange.serve.models is not None)
        except (OSError, RuntimeError) as error:  # no memory, process, file or thread is left; the others go on
            reason = getattr(error, "strerror", None) or error
            return _End(0, False, not self._answers, f"could not be started: {reason}")
        self._processes[number] = worker
        worker.failed_starts = failed_starts
        worker.link.send(self._exchange.serve)
        if self._stop.is_set():
            worker.send_signal(signal.SIGTERM)
        code = await self._attend(worker, on_ready)
        del self._processes[number]
        if worker.failure and not self._exchange.complete and not self._stop.is_set():
            raise WorkersError(worker.failure, worker.exit_code)
        ended = f"could not start: {worker.failure}" if worker.failure else how(code)
        listened = worker.listening.result()
        beside = worker.beside_others and self._exchange.complete  # the others may have ended meanwhile
        return _End(code, listened, not (listened or beside or self._answers), ended)

    async def _attend(self, worker: WorkerProcess, on_ready: Callable[[Started], None]) -> int:
        """Handle the messages of ``worker`` until it ends; its exit code."""
        joining: asyncio.Task[None] | None = None
        pinging = asyncio.create_task(self._end_if_deaf(worker))
        while (message := await worker.link.receive()) is not None:
            worker.heard, worker.unanswered = True, 0
            match message:
                case StartFailed():
                    worker.failure, worker.exit_code = message.message, message.exit_code
                case ModelsLoaded():
                    worker.models = message.models
                    joining = asyncio.create_task(self._join(worker, on_ready))
                case Pong():
                    pass
                case _:
                    self._exchange.handle(worker, message)
        pinging.cancel()
        self._exchange.leave(worker)
        if joining is not None:
            await joining
        await worker.link.close()
        try:
            return await asyncio.wait_for(worker.process.wait(), MARGIN_SECONDS)  # closing it is the last that it does
        except TimeoutError:
            log.error("worker %d has left but has not ended within %g s and is ended", worker.number, MARGIN_SECONDS)
            worker.send_signal(signal.SIGKILL)
            return await worker.process.wait()

    async def _end_if_deaf(self, worker: WorkerProcess) -> None:
        """Send pings to ``worker``, and kill it when it has not answered for too long."""
        while True:
            await asyncio.sleep(PING_SECONDS)
            seconds = worker.unanswered * PING_SECONDS
            if seconds >= (self._config.worker_seconds if worker.heard else START_SECONDS):
                log.error("worker %d has not answered for %g s and is ended", worker.number, seconds)
                worker.send_signal(signal.SIGKILL)
                return
            worker.unanswered += 1  # pings, not time: the whole machine may have been asleep
            worker.link.send(Ping())

    async def _join(self, worker: WorkerProcess, on_ready: Callable[[Started], None]) -> None:
        listens = await self._exchange.join(worker)
        if listens and self._exchange.complete and not self._announced:
            self._announced = True
            on_ready(
                Started(
                    self._port.address, self._count, self._exchange.ready, worker.models, self._config.metrics or ""
                )
            )


def _hold(listen: str, option: str) -> Port:
    """Hold the port of ``listen``. Raises WorkersError, which names ``option``."""
    try:
        return Port(listen)
    except OSError as error:
        raise WorkersError(
            f"cannot listen on {listen}: {error.strerror or error}; choose another with {option}"
        ) from None
