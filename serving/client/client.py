"""Clients for any server of the Open Inference Protocol, which take and give NumPy arrays by name.

    with Client("127.0.0.1:8001") as client:
        answer = client.infer("surnames", {"x": x})     # {"y": array}

``AsyncClient`` is the same with ``await``. ``AsyncClient(stream=True)`` sends all inferences over one stream, which
takes less CPU time of the server.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message
from numpy.typing import ArrayLike

from normfold.protos import grpc_service as pb
from normfold.serving.client import calls
from normfold.serving.client.calls import DEFAULT_ADDRESS, DEFAULT_TIMEOUT_SECONDS, OPTIONS, SERVICE, Array
from normfold.serving.client.calls import ClientError as ClientError
from normfold.serving.client.multiplex import Multiplexer

Response = TypeVar("Response", bound=Message)


class Client:
    """A client whose calls block; several threads may use one client at once."""

    def __init__(self, address: str = DEFAULT_ADDRESS, *, timeout: float = DEFAULT_TIMEOUT_SECONDS) -> None:
        """Send nothing yet. ``timeout``, in seconds, is for calls that give none."""
        self.address, self.timeout = address, timeout
        self._channel = grpc.insecure_channel(address, options=OPTIONS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def call(self, method: str, request: Message, response: type[Response], timeout: float | None = None) -> Response:
        """The response to any method of the protocol by its name, such as "ModelStatistics". Raises ClientError."""
        rpc = self._channel.unary_unary(
            SERVICE + method, request_serializer=_serialize, response_deserializer=response.FromString
        )
        try:
            answer: Response = rpc(request, timeout=self.timeout if timeout is None else timeout)
        except grpc.RpcError as error:
            raise calls.client_error(error, self.address) from None
        return answer

    def infer(
        self,
        model: str,
        inputs: Mapping[str, ArrayLike],
        outputs: Iterable[str] | None = None,
        version: str = "",
        timeout: float | None = None,
        request_id: str = "",
    ) -> dict[str, Array]:
        """The outputs by name: those in ``outputs``, or all. Raises ClientError, or ValueError for a dtype."""
        request = calls.infer_request(model, inputs, outputs, str(version), request_id)
        return calls.arrays(self.call("ModelInfer", request, pb.ModelInferResponse, timeout))

    def classify(
        self,
        model: str,
        inputs: Mapping[str, ArrayLike],
        top: int,
        output: str | None = None,
        version: str = "",
        timeout: float | None = None,
    ) -> list[list[calls.LabelledClass]]:
        """The ``top`` best classes of each row in ``output`` (None: the model's first), with their labels."""
        name = output or self.model_metadata(model, version, timeout).outputs[0].name
        request = calls.infer_request(model, inputs, [name], str(version), "", top)
        return calls.labelled(calls.arrays(self.call("ModelInfer", request, pb.ModelInferResponse, timeout))[name])

    def is_live(self, timeout: float | None = None) -> bool:
        """Whether the server answers. Raises ClientError if no server does."""
        return self.call("ServerLive", pb.ServerLiveRequest(), pb.ServerLiveResponse, timeout).live

    def is_ready(self, timeout: float | None = None) -> bool:
        """Whether every model of the server is ready."""
        return self.call("ServerReady", pb.ServerReadyRequest(), pb.ServerReadyResponse, timeout).ready

    def is_model_ready(self, model: str, version: str = "", timeout: float | None = None) -> bool:
        """Whether ``model`` can answer."""
        request = pb.ModelReadyRequest(name=model, version=str(version))
        return self.call("ModelReady", request, pb.ModelReadyResponse, timeout).ready

    def server_metadata(self, timeout: float | None = None) -> calls.ServerMetadata:
        """Name, version and extensions of the server."""
        request = pb.ServerMetadataRequest()
        return calls.server_metadata(self.call("ServerMetadata", request, pb.ServerMetadataResponse, timeout))

    def model_metadata(self, model: str, version: str = "", timeout: float | None = None) -> calls.ModelMetadata:
        """Inputs, outputs and versions of ``model``."""
        request = pb.ModelMetadataRequest(name=model, version=str(version))
        return calls.model_metadata(self.call("ModelMetadata", request, pb.ModelMetadataResponse, timeout))


class AsyncClient:
    """A client for ``asyncio``; many calls may run at once."""

    def __init__(
        self, address: str = DEFAULT_ADDRESS, *, timeout: float = DEFAULT_TIMEOUT_SECONDS, stream: bool = False
    ) -> None:
        """Send nothing yet. ``timeout``, in seconds, is for calls that give none.

        ``stream``: send all inferences over one ModelStreamInfer stream instead of one call each. Errors and deadlines
        are the same for the caller, but the server learns of neither a deadline nor a cancelled call, and answers come
        in the order of requests. The stream of the server must give ModelStreamInferResponse: Triton's does,
        MLServer's does not.
        """
        self.address, self.timeout = address, timeout
        self._channel = grpc.aio.insecure_channel(address, options=OPTIONS)
        self._multiplexer = Multiplexer(self._channel, address) if stream else None
        self._methods: dict[str, Any] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; calls without an answer fail as cancelled."""
        if self._multiplexer is not None:
            await self._multiplexer.close()
        await self._channel.close()

    async def call(
        self, method: str, request: Message, response: type[Response], timeout: float | None = None
    ) -> Response:
        """The response to any method of the protocol by its name, such as "ModelStatistics". Raises ClientError."""
        rpc = self._methods.get(method)
        if rpc is None:
            rpc = self._methods[method] = self._channel.unary_unary(
                SERVICE + method, request_serializer=_serialize, response_deserializer=response.FromString
            )
        try:
            answer: Response = await rpc(request, timeout=self.timeout if timeout is None else timeout)
        except grpc.RpcError as error:
            raise calls.client_error(error, self.address) from None
        return answer

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, ArrayLike],
        outputs: Iterable[str] | None = None,
        version: str = "",
        timeout: float | None = None,
        request_id: str = "",
    ) -> dict[str, Array]:
        """The outputs by name: those in ``outputs``, or all. Raises ClientError, or ValueError for a dtype."""
        request = calls.infer_request(model, inputs, outputs, str(version), request_id)
        return calls.arrays(await self._infer(request, timeout))

    async def classify(
        self,
        model: str,
        inputs: Mapping[str, ArrayLike],
        top: int,
        output: str | None = None,
        version: str = "",
        timeout: float | None = None,
    ) -> list[list[calls.LabelledClass]]:
        """The ``top`` best classes of each row in ``output`` (None: the model's first), with their labels."""
        name = output or (await self.model_metadata(model, version, timeout)).outputs[0].name
        request = calls.infer_request(model, inputs, [name], str(version), "", top)
        return calls.labelled(calls.arrays(await self._infer(request, timeout))[name])

    async def _infer(self, request: pb.ModelInferRequest, timeout: float | None) -> pb.ModelInferResponse:
        if self._multiplexer is None:
            return await self.call("ModelInfer", request, pb.ModelInferResponse, timeout)
        return await self._multiplexer.infer(request, self.timeout if timeout is None else timeout)

    async def is_live(self, timeout: float | None = None) -> bool:
        """Whether the server answers. Raises ClientError if no server does."""
        return (await self.call("ServerLive", pb.ServerLiveRequest(), pb.ServerLiveResponse, timeout)).live

    async def is_ready(self, timeout: float | None = None) -> bool:
        """Whether every model of the server is ready."""
        return (await self.call("ServerReady", pb.ServerReadyRequest(), pb.ServerReadyResponse, timeout)).ready

    async def is_model_ready(self, model: str, version: str = "", timeout: float | None = None) -> bool:
        """Whether ``model`` can answer."""
        request = pb.ModelReadyRequest(name=model, version=str(version))
        return (await self.call("ModelReady", request, pb.ModelReadyResponse, timeout)).ready

    async def server_metadata(self, timeout: float | None = None) -> calls.ServerMetadata:
        """Name, version and extensions of the server."""
        request = pb.ServerMetadataRequest()
        return calls.server_metadata(await self.call("ServerMetadata", request, pb.ServerMetadataResponse, timeout))

    async def model_metadata(self, model: str, version: str = "", timeout: float | None = None) -> calls.ModelMetadata:
        """Inputs, outputs and versions of ``model``."""
        request = pb.ModelMetadataRequest(name=model, version=str(version))
        return calls.model_metadata(await self.call("ModelMetadata", request, pb.ModelMetadataResponse, timeout))


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()
