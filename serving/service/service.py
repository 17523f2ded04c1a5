"""inference.GRPCInferenceService without a transport: from request message to response message, or a ServingError.

This module has readiness, metadata and inference; ``administration`` has the rest of the service.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from importlib.metadata import PackageNotFoundError, version

from google.protobuf.message import DecodeError

from normfold.protos import grpc_service as pb
from normfold.serving.catalog import config
from normfold.serving.catalog.catalog import Catalog
from normfold.serving.catalog.contract import TensorSpec
from normfold.serving.catalog.model import Model
from normfold.serving.catalog.version_text import parse_version
from normfold.serving.errors import InvalidRequest, Unavailable
from normfold.serving.infer.inference import Inference
from normfold.serving.infer.shared_memory import SharedMemory
from normfold.serving.infer.tracing import Infer, TraceSettings
from normfold.serving.rpc.methods import LOOP_BYTES, Method, Unary, status_of
from normfold.serving.rpc.pieces import Answer, Pieces
from normfold.serving.rpc.traffic import EXITING
from normfold.serving.scheduling.admission import Admission
from normfold.serving.wire.outer_fields import small_fields
from normfold.serving.wire.proved_sizes import ALLOWED, BATCHNORMS, PROVED
from normfold.serving.wire.pushback import PUSHBACK, trailers
from normfold.serving.wire.varint import varint
from normfold.serving.wording import near, quoted

SERVICE = "inference.GRPCInferenceService"

try:
    VERSION = version("normfold")
except PackageNotFoundError:  # a source tree that was never installed
    VERSION = "0.0.0"

_ID_AND_PARAMETERS = (pb.ModelInferRequest.ID_FIELD_NUMBER, pb.ModelInferRequest.PARAMETERS_FIELD_NUMBER)

#: The serialized end of every answer of a stream.
FINAL_RESPONSE = pb.ModelInferResponse(
    parameters={"triton_final_response": pb.InferParameter(bool_param=True)}
).SerializeToString()


class InferenceService:
    """The methods that clients of models call; each is a coroutine from its request to its response."""

    def __init__(
        self,
        catalog: Catalog,
        *,
        regions: SharedMemory,
        traces: TraceSettings,
        admission: Admission | None = None,
        name: str = "normfold",
        strict_readiness: bool = True,
        model_control: bool = True,
    ) -> None:
        self._catalog, self._regions = catalog, regions
        self._inference = Inference(catalog, regions, traces, admission)
        self._infer: Infer = self._inference.answer
        self._infer_in_stream: Infer = self._infer
        self._door = self._inference.door if traces.spans is None else None  # with spans each refusal has one
        if traces.spans is not None:
            self._infer_in_stream = traces.spans.traced(self._infer, "ModelStreamInfer")
            self._infer = traces.spans.traced(self._infer, "ModelInfer")
        self._name, self._strict, self._model_control = name, strict_readiness, model_control

    def methods(self) -> list[Method]:
        """The methods of the service."""
        unary: list[tuple[str, Unary]] = [
            ("ServerLive", self.server_live),
            ("ServerReady", self.server_ready),
            ("ModelReady", self.model_ready),
            ("ServerMetadata", self.server_metadata),
            ("ModelMetadata", self.model_metadata),
            ("ModelConfig", self.model_config),
            ("ModelStatistics", self.model_statistics),
        ]
        methods = [Method(f"/{SERVICE}/{name}", request_type(name), unary=function) for name, function in unary]
        infer = Method(f"/{SERVICE}/ModelInfer", pb.ModelInferRequest, wire_unary=self._infer, door=self._door)
        stream = Method(f"/{SERVICE}/ModelStreamInfer", pb.ModelInferRequest, wire_each=self._stream_answer)
        return [*methods, infer, stream]

    async def server_live(self, request: pb.ServerLiveRequest) -> pb.ServerLiveResponse:
        """Always True: a server that answers is live."""
        return pb.ServerLiveResponse(live=True)

    async def server_ready(self, request: pb.ServerReadyRequest) -> pb.ServerReadyResponse:
        """Whether every model is ready or, without strict readiness, was tried. Raises Unavailable at shutdown."""
        if self._catalog.leaving:
            raise Unavailable(EXITING)
        return pb.ServerReadyResponse(ready=self._catalog.ready(self._strict))

    async def model_ready(self, request: pb.ModelReadyRequest) -> pb.ModelReadyResponse:
        """Whether the model can answer; false for an unknown model, and once the server stops. Raises InvalidRequest.

        A model that its first request loads can answer.
        """
        number = parse_version(request.version)
        return pb.ModelReadyResponse(ready=self._catalog.model_ready(request.name, number))

    async def server_metadata(self, request: pb.ServerMetadataRequest) -> pb.ServerMetadataResponse:
        """Name, version, and the extensions that this server really has."""
        extensions = ["classification"]
        if self._model_control:
            extensions += ["model_repository", "model_repository(unload_dependents)"]
        extensions += ["schedule_policy", "model_configuration"]
        if self._regions.enabled:
            extensions += ["system_shared_memory"]
        extensions += ["binary_tensor_data", "parameters", "statistics", "trace", "logging"]
        return pb.ServerMetadataResponse(name=self._name, version=VERSION, extensions=extensions)

    async def model_metadata(self, request: pb.ModelMetadataRequest) -> pb.ModelMetadataResponse:
        """Inputs, outputs and ready versions of a model. Raises as ``Catalog.awake``."""
        model = await self._catalog.awake(request.name, request.version)
        versions = [model] if request.version else self._catalog.entries[request.name].ready
        return pb.ModelMetadataResponse(
            name=model.name,
            versions=[str(each.version) for each in versions],
            platform=config.PLATFORM,
            inputs=[_metadata(spec) for spec in model.contract.inputs.values()],
            outputs=[_metadata(spec) for spec in model.contract.outputs.values()],
            properties={key: model.config.parameters[key].string_value for key in _shown(model)},
        )

    def _stream_answer(self, data: bytes) -> bytes | Awaitable[Answer]:
        """The answer to one message of ModelStreamInfer; an error is an answer, too, and leaves the stream open."""
        try:
            answer = self._infer_in_stream(data)
        except Exception as error:
            return _stream_error(data, error)
        if isinstance(answer, bytes):
            return _in_stream(answer)
        later = asyncio.get_running_loop().create_task(self._stream_later(data, answer))
        later.add_done_callback(lambda _: answer.cancel())  # a task that is cancelled before it starts awaits nothing
        return later

    async def _stream_later(self, data: bytes, answer: Awaitable[Answer]) -> Answer:
        try:
            found = await answer
            if isinstance(found, Pieces):
                return found.within(_begin_in_stream(found), FINAL_RESPONSE)
            return _in_stream(found)
        except Exception as error:
            return _stream_error(data, error)
        finally:
            del answer  # its error refers to this frame: a cycle that would keep the request in memory

    async def model_config(self, request: pb.ModelConfigRequest) -> pb.ModelConfigResponse:
        """The configuration in force. Raises as ``Catalog.awake``."""
        return pb.ModelConfigResponse(config=(await self._catalog.awake(request.name, request.version)).config)

    async def model_statistics(self, request: pb.ModelStatisticsRequest) -> pb.ModelStatisticsResponse:
        """The counters of one version, of a model's versions, or of all models. Raises InvalidRequest."""
        number = parse_version(request.version)
        entries = self._catalog.entries
        entry = entries.get(request.name)
        if request.name and (entry is None or not (entry.ready or entry.lazy)):
            hint = near(request.name, self._catalog.nameable) if entry is None else ": no version of it is ready"
            raise InvalidRequest(f"requested model {quoted(request.name)} is not available{hint}")
        names = [request.name] if request.name else sorted(entries)
        stats = [one for name in names for version, one in entries[name].statistics() if number in (None, version)]
        if request.name and not stats and entry is not None and not entry.asleep:
            raise InvalidRequest(f"requested model version is not available for model {quoted(request.name)}")
        return pb.ModelStatisticsResponse(model_stats=stats)


def request_type(name: str) -> type:
    """The message class of a method's request."""
    request: type = getattr(pb, f"{name}Request")
    return request


def _in_stream(answer: bytes) -> bytes:
    """A serialized ModelStreamInferResponse: fields of a message may follow one another in any order."""
    return b"".join((_begin_in_stream(answer), answer, FINAL_RESPONSE))


def _begin_in_stream(answer: Answer) -> bytes:
    """The bytes of a ModelStreamInferResponse before the serialized ``answer``."""
    return b"\x12" + varint(len(answer) + len(FINAL_RESPONSE))


def _stream_error(data: bytes, error: Exception) -> bytes:
    status, details = status_of(error, f"/{SERVICE}/ModelStreamInfer")
    try:
        if len(data) > LOOP_BYTES:  # the error needs no more of the request, and this is on the event loop
            data = small_fields(data, _ID_AND_PARAMETERS, LOOP_BYTES)
        request = pb.ModelInferRequest.FromString(data)
    except (ValueError, DecodeError):
        request = pb.ModelInferRequest()
    response = pb.ModelInferResponse(id=request.id)
    if "grpc_status" in request.parameters:
        response.parameters["grpc_status"].string_param = status.name
        if (pushback := dict(trailers(error, status, details)).get(PUSHBACK)) is not None:
            response.parameters["retry_pushback_ms"].int64_param = int(pushback)
    return pb.ModelStreamInferResponse(error_message=details, infer_response=response).SerializeToString()


def _shown(model: Model) -> list[str]:
    """The keys of the properties of ``model``; they are parameters of its configuration, too."""
    return [key for key in (PROVED, ALLOWED, BATCHNORMS) if key in model.config.parameters]


def _metadata(spec: TensorSpec) -> pb.ModelMetadataResponse.TensorMetadata:
    return pb.ModelMetadataResponse.TensorMetadata(name=spec.name, datatype=spec.datatype.name, shape=spec.shape)
