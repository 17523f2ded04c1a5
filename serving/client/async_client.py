"""``AsyncClient``: the same as ``Client`` with ``await``; with ``stream=True`` over one stream."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Self

from normfold.serving.client import calls, control
from normfold.serving.client.arguments import (
    checked_address,
    checked_in_flight,
    checked_model,
    checked_outputs,
    checked_request_id,
    checked_timeout,
    checked_top,
    checked_version,
)
from normfold.serving.client.call_metadata import CallMetadata, Metadata
from normfold.serving.client.calls import DEFAULT_ADDRESS, DEFAULT_TIMEOUT_SECONDS, method_path
from normfold.serving.client.connection import ClientTls, checked_tls, no_pickling
from normfold.serving.client.errors import ClientError, Made, advised, client_error
from normfold.serving.client.event_loops import EventLoops
from normfold.serving.client.inputs import Inputs, needs_metadata
from normfold.serving.client.metadata import ModelMetadata, ServerMetadata, named, server_metadata
from normfold.serving.client.plans import MessagePlans
from normfold.serving.client.questions import Questions
from normfold.serving.client.replies import Response, parsed, read_metadata, says_yes
from normfold.serving.client.sizes import refusal, shapes_of
from normfold.serving.client.time_left import TimeLeft
from normfold.serving.client.transport.choice import TRANSPORTS, loop_calls
from normfold.serving.client.transport.opening import Pairs
from normfold.serving.errors import Status

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from normfold.protos import grpc_service as pb

#: Inferences that one client has at the server at once. A server of normfold lets at least 102 of one connection pass.
DEFAULT_IN_FLIGHT = 100


class AsyncClient:
    """A client for ``asyncio``; many calls may run at once, as in ``asyncio.gather`` over thousands of rows."""

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        timeout: float = DEFAULT_TIMEOUT_SECONDS,
        stream: bool = False,
        tls: ClientTls | None = None,
        token: str | None = None,
        in_flight: int = DEFAULT_IN_FLIGHT,
        transport: str = TRANSPORTS[0],
        compression: str | None = None,
        keepalive: float = 0.0,
        metadata: Metadata | None = None,
    ) -> None:
        """Send nothing yet. What is not explained here is as in ``Client``. Raises ValueError.

        ``in_flight``: the largest number of inferences at the server at once; the others wait here, which does not
        count for ``timeout``.

        ``stream``: send all inferences over one ModelStreamInfer stream instead of one call each. Errors and deadlines
        are the same for the caller, but the server learns of neither a deadline nor a cancelled call, and answers come
        in the order of requests. The stream of the server must give ModelStreamInferResponse: Triton's does,
        MLServer's does not.
        """
        self.address, self.timeout = checked_address(address), checked_timeout(timeout)
        self._known = Questions()
        self._plans = MessagePlans()
        self._call_metadata = CallMetadata(metadata, token, stream)
        opened = loop_calls(address, checked_tls(tls), self._call_metadata.pairs, transport, compression, keepalive)
        multiplexed = None
        if stream:
            from normfold.serving.client.multiplex import Multiplexer

            multiplexed = functools.partial(Multiplexer, address=address)
        self._loops = EventLoops(opened, checked_in_flight(in_flight), multiplexed)

    __getstate__ = no_pickling

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; calls without an answer fail as cancelled."""
        await self._loops.close()

    async def call(
        self,
        method: str,
        request: Message,
        response: type[Response],
        timeout: float | None = None,
        metadata: Metadata | None = None,
    ) -> Response:
        """The response to a method, by its name in the protocol or its whole path. Raises ClientError."""
        pairs = self._call_metadata.of_call(metadata)
        return parsed(response, await self._send(method, request.SerializeToString(), timeout, pairs))

    async def _send(self, method: str, data: bytes, timeout: float | None, pairs: Pairs | None = None) -> bytes:
        """The serialized response to the serialized request ``data``. Raises ClientError."""
        reply = await self._loops.here().calls.call(method_path(method), data, self._seconds(timeout), pairs)
        if reply.status is not Status.OK:
            raise client_error(reply)
        return reply.message

    def _seconds(self, timeout: float | None) -> float:
        return self.timeout if timeout is None else checked_timeout(timeout)

    async def infer(
        self,
        model: str,
        inputs: Inputs,
        outputs: Iterable[str] | None = None,
        version: str | int = "",
        timeout: float | None = None,
        request_id: str = "",
        metadata: Metadata | None = None,
    ) -> calls.Answer:
        """The outputs by name: those in ``outputs``, or all. ``version`` of the answer is the version that answered.

        ``inputs`` are arrays by name, or one array if the model has one input. An array is sent in its own dtype;
        lists and numbers get the model's. Raises ClientError, or ValueError for an argument that cannot be sent.

        The metadata of the model is asked for once, before the first inference. An input of a size that the export
        did not prove is not sent: ClientError with INVALID_ARGUMENT, as the server itself would answer.

        ``metadata``: gRPC metadata of this inference; it replaces the client's of the same name. Not with ``stream``.
        """
        outputs, request_id = checked_outputs(outputs), checked_request_id(request_id)
        pairs = self._call_metadata.of_inference(metadata)
        left = TimeLeft(self._seconds(timeout))
        plan = self._plans.request(model, inputs, outputs, version)
        if plan is not None and not self._loops.multiplexed:
            described = await self._metadata_if_any(model, version, left)
            if described is plan.checked or not refusal(described, plan.shapes):
                plan.checked = described
                try:
                    async with self._loops.here().turns:
                        begin = monotonic()
                        data = plan.data(inputs, request_id)
                        answer = await self._send("ModelInfer", data, left.seconds(), pairs)
                except ClientError as error:
                    left.passed_since(begin)
                    made = functools.partial(calls.infer_request, model, inputs, outputs, version, request_id)
                    raise await self._cured(error, made, model, version, left) from None
                return self._plans.arrays(answer)
        return calls.arrays(await self._answer(model, inputs, outputs, version, left, pairs, request_id))

    async def classify(
        self,
        model: str,
        inputs: Inputs,
        top: int,
        output: str | None = None,
        version: str | int = "",
        timeout: float | None = None,
        metadata: Metadata | None = None,
    ) -> list[list[calls.LabelledClass]]:
        """The ``top`` best classes of each row in ``output`` (None: the model's first), with their labels.

        ``inputs``, ``metadata`` and exceptions are those of ``infer``.
        """
        top, pairs = checked_top(top), self._call_metadata.of_inference(metadata)
        left = TimeLeft(self._seconds(timeout))
        name = output or calls.first_output(await self._metadata(model, version, left))
        answer = await self._answer(model, inputs, [name], version, left, pairs, top=top)
        return calls.labelled(answer, name)

    async def _answer(
        self,
        model: str,
        inputs: Inputs,
        outputs: Iterable[str] | None,
        version: str | int,
        left: TimeLeft,
        pairs: Pairs | None,
        request_id: str = "",
        top: int = 0,
    ) -> pb.ModelInferResponse:
        asked = self._metadata if needs_metadata(inputs) else self._metadata_if_any
        metadata = await asked(model, version, left)
        request = calls.infer_request(model, inputs, outputs, version, request_id, top, metadata)
        if refusal(metadata, shapes_of(request)):
            self._known.clear()  # another version of the model may be in service now
            if said := refusal(await self._metadata_if_any(model, version, left), shapes_of(request)):
                raise ClientError(Status.INVALID_ARGUMENT, said)
        try:
            return await self._infer(request, left, pairs)
        except ClientError as error:
            raise await self._cured(error, lambda: request, model, version, left) from None

    async def _cured(
        self, error: ClientError, made: Made, model: str, version: str | int, left: TimeLeft
    ) -> ClientError:
        """``error``; if the server found a mistake in the request that ``made`` returns, with advice how to mend it."""
        if error.code is not Status.INVALID_ARGUMENT:
            return error
        self._known.clear()  # another version of the model may be in service now
        try:
            metadata = await self._metadata(model, version, left)
        except ClientError:
            return error
        return advised(error, made(), metadata)

    async def _metadata(self, model: str, version: str | int, left: TimeLeft) -> ModelMetadata:
        """The metadata of ``model``, which is asked for once, until the server refuses a request."""
        key = checked_model(model), checked_version(version)
        return self._known.known.get(key) or await self._known.answer_within(key, left, self.model_metadata)

    async def _metadata_if_any(self, model: str, version: str | int, left: TimeLeft) -> ModelMetadata | None:
        """The same, or None where the server gives none: the answer to the request itself then says what is wrong."""
        key = checked_model(model), checked_version(version)
        return self._known.known.get(key) or await self._known.answer_if_any(key, left, self.model_metadata)

    async def _infer(self, request: pb.ModelInferRequest, left: TimeLeft, pairs: Pairs | None) -> pb.ModelInferResponse:
        here = self._loops.here()
        async with here.turns:
            begin = monotonic()
            try:
                if here.multiplexer is not None:
                    return await here.multiplexer.infer(request, left.seconds())
                from normfold.protos import grpc_service as pb

                answer = await self._send("ModelInfer", request.SerializeToString(), left.seconds(), pairs)
                return parsed(pb.ModelInferResponse, answer)
            finally:
                left.passed_since(begin)

    async def models(self, timeout: float | None = None) -> list[control.VersionState]:
        """The state of every version of every model in the server's repository."""
        return control.states(await self.call(*control.index(), timeout))

    async def counters(self, timeout: float | None = None) -> list[control.VersionCounters]:
        """The counters of each version in service; only servers of normfold have them. Raises ClientError."""
        return control.counters(await self.call(*control.snapshot(), timeout))

    async def load(self, model: str, config: str | None = None, timeout: float | None = None) -> None:
        """Load or reload ``model``; its old versions answer until the new ones are warm, and go on if those fail.

        ``config`` is a configuration in JSON that replaces config.pbtxt. Raises ClientError with the reason.
        """
        await self.call(*control.load(model, config), timeout)
        self._known.clear()

    async def unload(self, model: str, timeout: float | None = None) -> None:
        """Stop serving ``model``; requests that it has are still answered."""
        await self.call(*control.unload(model), timeout)
        self._known.clear()

    async def use(self, model: str, version: int | str, timeout: float | None = None) -> None:
        """Put ``version`` of ``model`` in service and take the others out, until the model is loaded again.

        config.pbtxt is not changed: ``normfold use --repository`` does that. Raises ClientError, or ValueError.
        """
        number = control.checked_number(version)
        config = (await self.call(*control.config(model), timeout)).config
        await self.load(model, control.with_versions(config, [number]), timeout)

    async def is_live(self, timeout: float | None = None) -> bool:
        """Whether the server answers. Raises ClientError if no server does."""
        return says_yes(await self._send("ServerLive", b"", timeout))

    async def is_ready(self, timeout: float | None = None) -> bool:
        """Whether every model of the server is ready."""
        return says_yes(await self._send("ServerReady", b"", timeout))

    async def is_model_ready(self, model: str, version: str | int = "", timeout: float | None = None) -> bool:
        """Whether ``model`` can answer."""
        request = named(checked_model(model), checked_version(version))
        return says_yes(await self._send("ModelReady", request, timeout))

    async def server_metadata(self, timeout: float | None = None) -> ServerMetadata:
        """Name, version and extensions of the server."""
        from normfold.protos import grpc_service as pb

        request = pb.ServerMetadataRequest()
        return server_metadata(await self.call("ServerMetadata", request, pb.ServerMetadataResponse, timeout))

    async def model_metadata(self, model: str, version: str | int = "", timeout: float | None = None) -> ModelMetadata:
        """Inputs, outputs and versions of ``model``."""
        request = named(checked_model(model), checked_version(version))
        return read_metadata(await self._send("ModelMetadata", request, timeout))
