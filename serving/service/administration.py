"""The part of inference.GRPCInferenceService that administers the server: models, shared memory, traces, logs."""

from __future__ import annotations

from collections.abc import Callable

from normfold.protos import grpc_service as pb
from normfold.serving.catalog.catalog import Catalog
from normfold.serving.errors import InvalidRequest, NotFound, NotOffered, Unimplemented
from normfold.serving.infer.shared_memory import SharedMemory
from normfold.serving.infer.tracing import TraceSettings
from normfold.serving.process.file_thread import FileThread
from normfold.serving.process.logs import LogSettings
from normfold.serving.process.off_loop import off_loop
from normfold.serving.rpc.methods import Method, Unary
from normfold.serving.service.service import SERVICE, request_type
from normfold.serving.wording import near, quoted


class Administration:
    """The methods that administer the server; each is a coroutine from its request to its response."""

    def __init__(
        self,
        catalog: Catalog,
        *,
        regions: SharedMemory,
        traces: TraceSettings,
        logs: LogSettings,
        model_control: bool = True,
        poll_seconds: float = 0.0,
        refresh: Callable[[], None] | None = None,
    ) -> None:
        """``poll_seconds``: the time between two looks at the repository; 0: this server does not poll.

        ``refresh`` brings the image of a repository on object storage up to date; None: the repository is here.
        """
        self._catalog, self._regions, self._traces, self._logs = catalog, regions, traces, logs
        self._model_control, self._poll_seconds, self._refresh = model_control, poll_seconds, refresh
        self._files = FileThread("normfold-refresh")

    def methods(self) -> list[Method]:
        """The methods with their paths."""
        unary: list[tuple[str, Unary]] = [
            ("RepositoryIndex", self.repository_index),
            ("RepositoryModelLoad", self.repository_model_load),
            ("RepositoryModelUnload", self.repository_model_unload),
            ("SystemSharedMemoryStatus", self.system_shared_memory_status),
            ("SystemSharedMemoryRegister", self.system_shared_memory_register),
            ("SystemSharedMemoryUnregister", self.system_shared_memory_unregister),
            ("CudaSharedMemoryStatus", self.cuda_shared_memory_status),
            ("CudaSharedMemoryRegister", self.cuda_shared_memory_register),
            ("CudaSharedMemoryUnregister", self.cuda_shared_memory_unregister),
            ("TraceSetting", self.trace_setting),
            ("LogSettings", self.log_settings),
        ]
        large = ("RepositoryModelLoad",)  # it may bring the files of a model
        return [
            Method(f"/{SERVICE}/{name}", request_type(name), unary=function, large=name in large)
            for name, function in unary
        ]

    async def repository_index(self, request: pb.RepositoryIndexRequest) -> pb.RepositoryIndexResponse:
        """Every model of the repository with its state."""
        _no_repository_name(request.repository_name)
        return pb.RepositoryIndexResponse(models=self._catalog.index(request.ready, await self._catalog.look()))

    async def repository_model_load(self, request: pb.RepositoryModelLoadRequest) -> pb.RepositoryModelLoadResponse:
        """Load or reload a model. Raises PollFailed, LoadRefused, InvalidRequest or NotOffered."""
        name = self._controlled(request.repository_name, request.model_name)
        override, files = await off_loop(bool(request.parameters), _sent, request)
        if self._refresh is not None and not files:
            await self._files.run(self._refresh)
        await self._catalog.load(name, override, files)
        return pb.RepositoryModelLoadResponse()

    async def repository_model_unload(
        self, request: pb.RepositoryModelUnloadRequest
    ) -> pb.RepositoryModelUnloadResponse:
        """Stop serving a model; it is no error if the model is not loaded."""
        name = self._controlled(request.repository_name, request.model_name)
        for key, value in request.parameters.items():
            if key != "unload_dependents" or value.WhichOneof("parameter_choice") != "bool_param":
                raise InvalidRequest(
                    f"unrecognized unload parameter {quoted(key)}; there is 'unload_dependents', a bool_param"
                )
        await self._catalog.unload(name, leave_out=True)
        return pb.RepositoryModelUnloadResponse()

    def _controlled(self, repository_name: str, model_name: str) -> str:
        """The name of the model to load or unload; KServe's messages have it in the first field."""
        if not self._model_control:
            refused = "explicit model load / unload is not allowed: "
            if self._poll_seconds:  # a change counts once two looks have seen the same files
                raise NotOffered(
                    f"{refused}this server polls its repository; a change of the files there is in service within "
                    f"{2 * self._poll_seconds:g} s and the time that the load takes"
                )
            raise NotOffered(
                f"{refused}start the server with --model-control explicit, or send it SIGHUP after a change of its "
                "repository"
            )
        if model_name:
            _no_repository_name(repository_name)
        return model_name or repository_name

    def _settings_controlled(self, change: bool) -> None:
        """Raise NotOffered for a ``change`` of settings that clients may only read."""
        if change and not self._model_control:
            raise NotOffered(
                "changing settings of the log and of traces is not allowed: start the server with "
                "--model-control explicit"
            )

    async def system_shared_memory_status(
        self, request: pb.SystemSharedMemoryStatusRequest
    ) -> pb.SystemSharedMemoryStatusResponse:
        """The registered regions. Raises NotFound."""
        return self._regions.status(request.name)

    async def system_shared_memory_register(
        self, request: pb.SystemSharedMemoryRegisterRequest
    ) -> pb.SystemSharedMemoryRegisterResponse:
        """Register a region. Raises as ``SharedMemory.register``."""
        self._regions.register(request.name, request.key, request.offset, request.byte_size)
        return pb.SystemSharedMemoryRegisterResponse()

    async def system_shared_memory_unregister(
        self, request: pb.SystemSharedMemoryUnregisterRequest
    ) -> pb.SystemSharedMemoryUnregisterResponse:
        """Forget one region, or all."""
        self._regions.unregister(request.name)
        return pb.SystemSharedMemoryUnregisterResponse()

    async def cuda_shared_memory_status(
        self, request: pb.CudaSharedMemoryStatusRequest
    ) -> pb.CudaSharedMemoryStatusResponse:
        """No regions, because this server has no CUDA shared memory. Raises NotFound for a name."""
        if request.name:
            raise NotFound(f"Unable to find cuda shared memory region: {quoted(request.name)}")
        return pb.CudaSharedMemoryStatusResponse()

    async def cuda_shared_memory_register(
        self, request: pb.CudaSharedMemoryRegisterRequest
    ) -> pb.CudaSharedMemoryRegisterResponse:
        """Always raises InvalidRequest, as Triton does without a GPU."""
        raise InvalidRequest(
            f"failed to register CUDA shared memory region: {quoted(request.name)}, GPUs not supported: there is no "
            "CUDA shared memory here; send raw contents or use system shared memory"
        )

    async def cuda_shared_memory_unregister(
        self, request: pb.CudaSharedMemoryUnregisterRequest
    ) -> pb.CudaSharedMemoryUnregisterResponse:
        """Does nothing, because no region is ever registered."""
        return pb.CudaSharedMemoryUnregisterResponse()

    async def trace_setting(self, request: pb.TraceSettingRequest) -> pb.TraceSettingResponse:
        """Change and read which requests are traced. Raises InvalidRequest, and NotOffered without model control."""
        self._settings_controlled(bool(request.settings))
        if request.model_name and request.model_name not in self._catalog.entries:
            raise InvalidRequest(
                f"Request for unknown model : {quoted(request.model_name)}"
                f"{near(request.model_name, self._catalog.nameable)}"
            )
        changes = {key: list(value.value) for key, value in request.settings.items()}
        response = pb.TraceSettingResponse()
        for key, values in self._traces.update(request.model_name, changes).items():
            response.settings[key].value.extend(values)
        return response

    async def log_settings(self, request: pb.LogSettingsRequest) -> pb.LogSettingsResponse:
        """Change and read the settings of the log. Raises InvalidRequest, and NotOffered without model control."""
        self._settings_controlled(bool(request.settings))
        self._logs.update(request.settings)
        response = pb.LogSettingsResponse()
        for key, value in self._logs.read().items():
            if isinstance(value, bool):
                response.settings[key].bool_param = value
            elif isinstance(value, int):
                response.settings[key].uint32_param = value
            else:
                response.settings[key].string_param = value
        return response


def _sent(request: pb.RepositoryModelLoadRequest) -> tuple[str | None, dict[str, bytes]]:
    """The configuration and the files that a load request brings. Raises InvalidRequest."""
    override: str | None = None
    files: dict[str, bytes] = {}
    for key, value in request.parameters.items():
        kind = value.WhichOneof("parameter_choice")
        if key == "config" and kind == "string_param":
            override = value.string_param
        elif key.startswith("file:") and kind == "bytes_param":
            files[key.removeprefix("file:")] = value.bytes_param
        else:
            known = {"config": "string_param"} | ({key: "bytes_param"} if key.startswith("file:") else {})
            if key in known:
                raise InvalidRequest(f"invalid value type for load parameter {quoted(key)}, expected {known[key]}.")
            raise InvalidRequest(
                f"unrecognized load parameter {quoted(key)}; there are 'config', a string_param, and "
                "'file:<path>', a bytes_param"
            )
    return override, files


def _no_repository_name(name: str) -> None:
    if name:
        raise Unimplemented("'repository_name' specification is not supported")
