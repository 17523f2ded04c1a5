"""A whole server: start, serve, shut down.

start       check onnxruntime, find the models, bind the port, load and warm every model
serve       until SIGTERM or Ctrl-C
shut down   health reports NOT_SERVING, for a while everything is answered, then only calls under way; exit
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from normfold.serving.errors import StartError
from normfold.serving.process import memory, tuning
from normfold.serving.process.cpus import available_cpus
from normfold.serving.process.file_thread import FileThread
from normfold.serving.process.idle import give_back_when_idle
from normfold.serving.process.logs import LogSettings
from normfold.serving.process.signals import stop_signal
from normfold.serving.rpc.methods import Method
from normfold.serving.runtime.devices import check_runtime, parse_device, providers
from normfold.serving.settings import ServerConfig

if TYPE_CHECKING:
    from normfold.serving.metrics.port import HttpPort

log = logging.getLogger(__name__)

#: Runs at a time with a GPU, for any number of CPUs: their threads only wait, and are started when they are needed.
GPU_RUNS = 64

#: A server that shuts down goes on answering until no request has come for this long, ...
QUIET_SECONDS = 0.1
#: ... but at most this long.
LAME_DUCK_SECONDS = 1.0
#: Time for runs that were stopped to end.
THREADS_SECONDS = 1.0


async def serve(config: ServerConfig, logs: LogSettings, on_ready: Callable[[Server], None] | None = None) -> bool:
    """Serve until SIGTERM or Ctrl-C, then answer the requests under way; whether all were answered in time.

    ``on_ready`` is called when the server has tried to load every model. A second signal ends the process at once.
    Raises StartError.
    """
    tuning.tune()
    server = Server(config, logs)
    stop = stop_signal()
    answered = False
    try:
        if await done_before(stop, server.start()):
            memory.settle()
            if on_ready:
                on_ready(server)
            await stop.wait()
    finally:
        answered = await server.shut_down()
    return answered


async def done_before(stop: asyncio.Event, work: Coroutine[None, None, object]) -> bool:
    """Whether ``work`` was done before ``stop``; if not, it is cancelled. Raises what it raises."""
    working, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
    await asyncio.wait([working, stopping], return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if working.done():
        await working
        return True
    working.cancel()
    return False


class Server:
    """One server. ``start`` and ``shut_down`` are for programs and tests that run it inside their own event loop."""

    def __init__(
        self,
        config: ServerConfig,
        logs: LogSettings | None = None,
        share: Callable[[list[Method]], list[Method]] | None = None,
        worker: int = 1,
        again: bool = False,
    ) -> None:
        """Find device and models; nothing is bound or loaded yet. Raises StartError.

        A worker passes its number and ``share``: from the methods of this process alone it makes those that ask all
        workers. ``again``: workers of the same server have served before.
        """
        check_runtime()
        from normfold.serving.doors import Doors
        from normfold.serving.frontends import frontend
        from normfold.serving.frontends.access_log import AccessLog
        from normfold.serving.infer import otlp
        from normfold.serving.infer.shared_memory import SharedMemory
        from normfold.serving.infer.tracing import TraceSettings
        from normfold.serving.remote.mirror import refresher
        from normfold.serving.rpc.traffic import Traffic
        from normfold.serving.runtime.session import available_providers
        from normfold.serving.scheduling.admission import Admission
        from normfold.serving.service import reflection, snapshot
        from normfold.serving.service.administration import Administration
        from normfold.serving.service.health import Health
        from normfold.serving.service.polling import Polling
        from normfold.serving.service.service import InferenceService
        from normfold.serving.service.snapshot import Snapshots
        from normfold.serving.service.under_way import admitted
        from normfold.serving.stock import Stock

        self.config = config
        cpus = config.cpus or available_cpus()
        device = parse_device(config.device)
        self._executor = ThreadPoolExecutor(max(cpus, GPU_RUNS) if device.gpu_demanded else cpus, "normfold-run")
        providers(device, available_providers())
        self._doors = Doors(config, again)
        self._admission = Admission(config.queue_limits)
        self._stock = Stock(config, device, cpus, self._executor, self._doors.trust, self._admission.work, again)
        self.catalog = self._stock.catalog
        control = config.clients_control
        regions = SharedMemory(config.local if config.shared_memory is None else config.shared_memory)
        traces = self._traces = TraceSettings(config.trace_file)
        self._spans = otlp.spans()
        if self._spans is not None:
            traces.collect(self._spans)
        self._giving_back: asyncio.Task[None] | None = None
        self.service = InferenceService(
            self.catalog,
            regions=regions,
            traces=traces,
            admission=self._admission,
            name=config.server_name,
            strict_readiness=config.strict_readiness,
            model_control=control,
        )
        refresh = refresher(config.remote)
        poll_seconds = config.poll_seconds if config.model_control == "poll" else 0.0
        administration = Administration(
            self.catalog,
            regions=regions,
            traces=traces,
            logs=logs or LogSettings(config.log_level),
            model_control=control,
            poll_seconds=poll_seconds,
            refresh=refresh,
        )
        self.health = Health(self.catalog, config.strict_readiness)
        self._traffic = Traffic()
        #: The counters of this process.
        self.snapshots = Snapshots(self.catalog, self._traffic, worker)
        #: Looks for changes of the repository; of several workers one does it for all.
        self.polling = Polling(self._stock.repository, self.catalog, poll_seconds, refresh)
        ours = self.polling.methods
        theirs = [*self.service.methods(), *administration.methods(), *self.health.methods()]
        methods = [*ours, *theirs, self.snapshots.method()]
        if share is not None:
            methods = share(methods)
            self.polling.share(methods[: len(ours)])
        loads = Admission(config.queue_limits)
        wire = [admitted(each, loads) if each.large else each for each in methods[len(ours) :]]
        if config.reflection:
            wire += reflection.methods({method.service for method in wire})
        self._snapshot = next(method for method in methods if method.path == snapshot.PATH)
        self._polling: asyncio.Task[None] | None = None
        self._http: HttpPort | None = None
        make = frontend(config.frontend)
        access, tls = self._doors.access, self._doors.tls
        lines = AccessLog.of(config.access_log)
        self._frontend = make(wire, self._traffic, config.max_message_bytes, config.client_limits, access, tls, lines)
        self._regions = regions

    @property
    def address(self) -> str:
        """The address that the server listens on; empty until it does."""
        return self._frontend.address

    @property
    def metrics_address(self) -> str:
        """The address of the HTTP port; empty where there is none."""
        return "" if self._http is None else self._http.address

    async def start(self) -> None:
        """Bind the ports, load every model, look for changes. Raises StartError when a port cannot be bound."""
        await self.listen()
        self.open_http()
        await self.load()
        self.look()

    async def listen(self, reuse_port: bool = False) -> None:
        """Bind the port, alone or together with other workers. Raises StartError when it cannot be bound."""
        await self._frontend.start(self.config.listen, reuse_port)
        self._doors.watch()
        self._giving_back = asyncio.create_task(give_back_when_idle(self._work, self._stock.give_back_all))

    def _work(self) -> tuple[int, int]:
        """A number that grows with each request, and with each MiB that clients no longer hold; requests under way."""
        entered, under_way = self._admission.work()
        return entered + (self._frontend.freed_bytes >> 20), under_way

    def open_http(self, reuse_port: bool = False) -> None:
        """Open the port for metrics and health, alone or together with other workers. Raises StartError.

        Where nobody asked for it, a port that is in use is only worth a warning.
        """
        from normfold.serving.metrics.port import HttpPort
        from normfold.serving.service.http import HttpAnswers

        if self.config.metrics is None:
            return
        answers = HttpAnswers(self.service, self.health, self._snapshot)
        try:
            self._http = HttpPort(self.config.metrics, answers.answer, reuse_port)
        except StartError as error:
            if self.config.metrics_listen is not None:
                raise
            log.warning("no metrics: %s", error)

    async def load(self) -> None:
        """Load every model that is to be served."""
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):  # not here, or not the main thread
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self.polling.look_now)
        await self.polling.begin()
        await self.catalog.load_all()
        await self.polling.catch_up()

    def look(self, unlike: Sequence[str] = ()) -> None:
        """Look for changes of the repository from now on, unless this server is stopping.

        ``unlike``: models that all workers load again first.
        """
        if self.catalog.leaving:
            return
        self._polling = asyncio.create_task(self.polling.run(unlike))

    def models(self) -> list[tuple[str, bool]]:
        """A line for each model, and whether it was loaded, as ``entries.lines`` writes it."""
        from normfold.serving.catalog.entries import lines

        return lines(self.catalog.entries)

    async def shut_down(self) -> bool:
        """Report NOT_SERVING, answer the requests under way, release everything; whether all were answered in time.

        ``drain_delay_seconds`` pass before new requests are refused, so that clients can go elsewhere first. They do
        not pass for a server that was stopped before it had tried all its models.
        """
        self.catalog.leave()
        if self._polling is not None:
            self._polling.cancel()
        if self.catalog.started:
            await asyncio.sleep(self.config.drain_delay_seconds)
        grace = self.config.grace_seconds
        end = time.monotonic() + grace
        await self._traffic.quieten(QUIET_SECONDS, min(LAME_DUCK_SECONDS, grace))
        await self._frontend.drain(max(0.0, min(LAME_DUCK_SECONDS, end - time.monotonic())))
        answered = await self._traffic.close(max(0.0, end - time.monotonic()))
        answered &= await self._frontend.stop(max(QUIET_SECONDS, end - time.monotonic()))
        if self._http is not None:
            await FileThread("normfold-http-end").run(self._http.close)  # the shared threads may all be at work
        await self._doors.close()
        await self._traces.close()
        if self._spans is not None:
            await self._spans.close()
        if self._giving_back is not None:
            self._giving_back.cancel()
        self.catalog.stop()
        await self._end_threads()
        self._regions.unregister("")
        return answered

    async def _end_threads(self) -> None:
        """Let the threads that run models end; one that does not is left behind, because nothing can interrupt it."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        ending = threading.Thread(target=self._executor.shutdown, daemon=True)
        ending.start()
        end = time.monotonic() + THREADS_SECONDS
        while ending.is_alive() and time.monotonic() < end:
            await asyncio.sleep(0.005)
