"""A whole server: start, serve, shut down.

start       check onnxruntime, find the models, bind the port, load and warm every model
serve       until SIGTERM or Ctrl-C
shut down   health says NOT_SERVING, requests on their way are answered, exit
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from normfold.serving.catalog.repository import Repository
from normfold.serving.errors import StartError
from normfold.serving.frontends import FRONTENDS
from normfold.serving.process import memory
from normfold.serving.process.address import check as check_address
from normfold.serving.process.address import is_local
from normfold.serving.process.cache_folder import cache_folder
from normfold.serving.process.cpus import available_cpus
from normfold.serving.process.logs import LogSettings
from normfold.serving.rpc.methods import Method
from normfold.serving.runtime.devices import check_runtime, parse_device, providers

log = logging.getLogger(__name__)

#: Runs at once with a GPU, whatever the CPUs: their threads only wait, and are made when they are needed.
GPU_RUNS = 64

#: A server that shuts down still answers while requests come closer together than this, at most so long.
QUIET_SECONDS = 0.1
LAME_DUCK_SECONDS = 1.0


@dataclass(frozen=True)
class ServerConfig:
    """How a server runs."""

    #: A folder of models, one model's folder, or one .onnx file.
    repository: Path
    #: "host:port", port 0 for any free one, or "unix:/path".
    listen: str = "127.0.0.1:8001"
    #: What carries the calls: "grpcio", or "http2", which takes less CPU time.
    frontend: str = "grpcio"
    #: "cpu", "cuda", "cuda:N", "tensorrt", "tensorrt:N" or "auto".
    device: str = "cpu"
    #: Threads of one run; 0: as measured, or without ``tune`` one for small models, all CPUs for others. At most 1024.
    threads: int = 0
    #: Measure how many threads a run should have where nobody says, and remember it.
    tune: bool = True
    #: CPUs to use; 0: as many as there are for this process.
    cpus: int = 0
    #: The name of a single model; None: that of its folder or file.
    model_name: str | None = None
    #: What ServerMetadata calls the server.
    server_name: str = "normfold"
    #: One model that failed to load makes the server not ready.
    strict_readiness: bool = True
    #: Clients may load and unload models; None: only where the server listens on this host alone.
    model_control: bool | None = None
    #: Clients may use POSIX shared memory; None: only where the server listens on this host alone.
    shared_memory: bool | None = None
    #: Models to load at the start; empty: all.
    load_models: tuple[str, ...] = ()
    #: Largest request in bytes; at least 1 MiB.
    max_message_bytes: int = 256 << 20
    #: Where traces are written; None: to the log.
    trace_file: Path | None = None
    #: Longest wait for requests on their way at the end, in seconds.
    grace_seconds: float = 30.0

    def __post_init__(self) -> None:
        try:
            check_address(self.listen)
        except ValueError as error:
            raise StartError(str(error)) from None
        if self.frontend not in FRONTENDS:
            raise StartError(f"frontend {self.frontend!r} is not one of {', '.join(FRONTENDS)}")
        if not 0 <= self.threads <= 1024:
            raise StartError(f"threads must lie between 0 and 1024, got {self.threads}")
        if not 1 << 20 <= self.max_message_bytes < 1 << 31:
            raise StartError(f"max_message_bytes must lie between 1 MiB and 2 GiB - 1, got {self.max_message_bytes}")

    @property
    def local(self) -> bool:
        """Whether only programs on this host can reach the server."""
        return is_local(self.listen)


async def serve(config: ServerConfig, logs: LogSettings, on_ready: Callable[[Server], None] | None = None) -> bool:
    """Serve until SIGTERM or Ctrl-C, then answer what is on its way; whether all of it was answered in time.

    ``on_ready`` is called once every model was tried. A second signal ends the process at once. Raises StartError.
    """
    memory.keep_freed()
    server = Server(config, logs)
    stop = stop_signal()
    answered = False
    try:
        await server.start()
        memory.settle()
        if on_ready:
            on_ready(server)
        await stop.wait()
    finally:
        answered = await server.shut_down()
    return answered


def stop_signal() -> asyncio.Event:
    """An event that SIGTERM and Ctrl-C set; a second signal ends the process at once."""
    stop = asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():
            os._exit(1)
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(NotImplementedError, RuntimeError):  # not on this platform, or not the main thread
            loop.add_signal_handler(number, on_signal)
    return stop


class Server:
    """One server. ``start`` and ``shut_down`` are for programs and tests that run it inside their own event loop."""

    def __init__(
        self,
        config: ServerConfig,
        logs: LogSettings | None = None,
        shared: Callable[[list[Method]], list[Method]] | None = None,
    ) -> None:
        """Find device and models; nothing is bound or loaded yet. Raises StartError.

        ``shared`` gives the methods to serve for those of this process alone, where it is one of several workers.
        """
        check_runtime()
        from normfold.serving.catalog.catalog import Catalog
        from normfold.serving.catalog.load import LoadOptions
        from normfold.serving.frontends import frontend
        from normfold.serving.infer.shared_memory import SharedMemory
        from normfold.serving.infer.tracing import TraceSettings
        from normfold.serving.rpc.traffic import Traffic
        from normfold.serving.runtime.session import available_providers
        from normfold.serving.runtime.tuning import Tuning
        from normfold.serving.service.administration import Administration
        from normfold.serving.service.health import Health
        from normfold.serving.service.reflection import methods as reflection
        from normfold.serving.service.service import InferenceService

        self.config = config
        cpus = config.cpus or available_cpus()
        device = parse_device(config.device)
        self._executor = ThreadPoolExecutor(max(cpus, GPU_RUNS) if device.gpu_demanded else cpus, "normfold-run")
        providers(device, available_providers())
        tuning = Tuning(cache_folder("threads"), cpus) if config.tune else None
        options = LoadOptions(device, cpus, config.threads, tuning=tuning)
        repository = Repository(config.repository, config.model_name)
        self.catalog = Catalog(repository, options, self._executor)
        control = config.local if config.model_control is None else config.model_control
        regions = SharedMemory(config.local if config.shared_memory is None else config.shared_memory)
        traces = TraceSettings(config.trace_file)
        self.service = InferenceService(
            self.catalog,
            regions=regions,
            traces=traces,
            name=config.server_name,
            strict_readiness=config.strict_readiness,
            model_control=control,
        )
        administration = Administration(
            self.catalog, regions=regions, traces=traces, logs=logs or LogSettings(), model_control=control
        )
        self.health = Health(self.catalog, config.strict_readiness)
        methods = [*self.service.methods(), *administration.methods(), *self.health.methods()]
        if shared is not None:
            methods = shared(methods)
        methods += reflection({method.service for method in methods})
        self._traffic = Traffic()
        self._frontend = frontend(config.frontend)(methods, self._traffic, config.max_message_bytes)
        self._regions = regions

    @property
    def address(self) -> str:
        """Where the server listens, once it does."""
        return self._frontend.address

    async def start(self) -> None:
        """Bind the port, then load every model. Raises StartError when the port cannot be had."""
        await self.listen()
        await self.load()

    async def listen(self, reuse_port: bool = False) -> None:
        """Bind the port, alone or together with other workers. Raises StartError when it cannot be had."""
        await self._frontend.start(self.config.listen, reuse_port)

    async def load(self) -> None:
        """Load every model that is to be served."""
        await self.catalog.load_all(self.config.load_models or None)

    def models(self) -> list[tuple[str, bool]]:
        """A line for each model version, and whether it was loaded."""
        lines = []
        for name, entry in self.catalog.entries.items():
            lines += [(model.describe(), True) for model in entry.ready]
            for number, version in entry.versions.items():
                if version.model is None:
                    lines.append((f"{name} version {number} was not loaded: {version.reason}", False))
            if entry.reason:
                lines.append((f"{name} was not loaded: {entry.reason}", False))
        return lines

    async def shut_down(self) -> bool:
        """Tell health, answer what is on its way, and release everything; whether it ended within ``grace_seconds``."""
        self.health.close()
        self.service.close()
        grace = self.config.grace_seconds
        await self._traffic.quieten(QUIET_SECONDS, min(LAME_DUCK_SECONDS, grace))
        answered = await self._traffic.close(grace)
        await self._frontend.stop(QUIET_SECONDS)
        self._executor.shutdown(wait=answered, cancel_futures=True)
        self._regions.unregister("")
        return answered
