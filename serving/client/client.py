"""A client for any server of the Open Inference Protocol, which takes and gives NumPy arrays by name.

    with Client("127.0.0.1:8001") as client:
        answer = client.infer("surnames", {"x": x})     # {"y": array}
        answer = client.infer("surnames", x)            # the same, where the model has one input

``AsyncClient`` in async_client.py is the same with ``await``.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Self

from normfold.serving.client import calls, control
from normfold.serving.client.arguments import (
    checked_address,
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
from normfold.serving.client.errors import WITHOUT_METADATA, Made, advised, client_error
from normfold.serving.client.errors import ClientError as ClientError
from normfold.serving.client.inputs import Inputs, needs_metadata
from normfold.serving.client.metadata import ModelMetadata, ServerMetadata, named, server_metadata
from normfold.serving.client.plans import MessagePlans
from normfold.serving.client.replies import Response, parsed, read_metadata, says_yes
from normfold.serving.client.sizes import refusal, shapes_of
from normfold.serving.client.time_left import TimeLeft
from normfold.serving.client.transport.choice import TRANSPORTS, blocking_calls
from normfold.serving.client.transport.opening import Pairs
from normfold.serving.errors import Status

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from normfold.protos import grpc_service as pb


class Client:
    """A client whose calls block; several threads may use one client at once."""

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        timeout: float = DEFAULT_TIMEOUT_SECONDS,
        tls: ClientTls | None = None,
        token: str | None = None,
        transport: str = TRANSPORTS[0],
        compression: str | None = None,
        keepalive: float = 0.0,
        metadata: Metadata | None = None,
    ) -> None:
        """Send nothing yet. ``timeout``, in seconds, is for calls that give none; more than 23 days count as 23 days.

        ``tls``: connect with TLS, such as ``ClientTls(ca="ca.pem")``; None: in plain text. ``token``: for a server that
        admits only tokens. ``metadata``: gRPC metadata of every call, text by lower-case name, and bytes by names that
        end in -bin, such as ``{"x-tenant": "a"}`` (grpc/doc/PROTOCOL-HTTP2.md, "Custom-Metadata").

        ``transport``: "http2", ours, or "grpcio", a channel of that package. ``compression``: "gzip" compresses
        requests; answers may be compressed anyway. ``keepalive``: a server from which nothing has come for this many
        seconds, while calls wait, is pinged; 0: never (servers on grpcio refuse pings more often than each 300 s).
        Raises ValueError.
        """
        self.address, self.timeout = checked_address(address), checked_timeout(timeout)
        #: By model and version; None: the server has no such procedure. A new dict replaces it when all is forgotten:
        #: calls that other threads have begun before go on with the old dict, and put their answers there.
        self._known: dict[tuple[str, str], ModelMetadata | None] = {}
        self._plans = MessagePlans()
        self._call_metadata = CallMetadata(metadata, token)
        self._calls = blocking_calls(
            address, checked_tls(tls), self._call_metadata.pairs, transport, compression, keepalive
        )

    __getstate__ = no_pickling

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._calls.close()

    def call(
        self,
        method: str,
        request: Message,
        response: type[Response],
        timeout: float | None = None,
        metadata: Metadata | None = None,
    ) -> Response:
        """The response to a method, by its name in the protocol or its whole path. Raises ClientError."""
        pairs = self._call_metadata.of_call(metadata)
        return parsed(response, self._send(method, request.SerializeToString(), timeout, pairs))

    def _send(self, method: str, data: bytes, timeout: float | None, pairs: Pairs | None = None) -> bytes:
        """The serialized response to the serialized request ``data``. Raises ClientError."""
        reply = self._calls.call(method_path(method), data, self._seconds(timeout), pairs)
        if reply.status is not Status.OK:
            raise client_error(reply)
        return reply.message

    def _seconds(self, timeout: float | None) -> float:
        return self.timeout if timeout is None else checked_timeout(timeout)

    def infer(
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

        ``metadata``: gRPC metadata of this inference; it replaces the client's of the same name.
        """
        outputs, request_id = checked_outputs(outputs), checked_request_id(request_id)
        pairs = self._call_metadata.of_inference(metadata)
        left = TimeLeft(self._seconds(timeout))
        plan = self._plans.request(model, inputs, outputs, version)
        if plan is not None:
            described = self._metadata_if_any(model, version, left)
            if described is plan.checked or not refusal(described, plan.shapes):
                plan.checked, begin = described, monotonic()
                try:
                    data = plan.data(inputs, request_id)
                    return self._plans.arrays(self._send("ModelInfer", data, left.seconds(), pairs))
                except ClientError as error:
                    left.passed_since(begin)
                    made = functools.partial(calls.infer_request, model, inputs, outputs, version, request_id)
                    raise self._cured(error, made, model, version, left) from None
        return calls.arrays(self._answer(model, inputs, outputs, version, left, pairs, request_id))

    def classify(
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
        name = output or calls.first_output(self._metadata(model, version, left))
        answer = self._answer(model, inputs, [name], version, left, pairs, top=top)
        return calls.labelled(answer, name)

    def _answer(
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
        metadata = asked(model, version, left)
        request = calls.infer_request(model, inputs, outputs, version, request_id, top, metadata)
        if refusal(metadata, shapes_of(request)):
            self._known = {}  # another version of the model may be in service now
            said = refusal(self._metadata_if_any(model, version, left), shapes_of(request))
            if said:
                raise ClientError(Status.INVALID_ARGUMENT, said)
        from normfold.protos import grpc_service as pb

        begin = monotonic()
        try:
            answer = self._send("ModelInfer", request.SerializeToString(), left.seconds(), pairs)
            return parsed(pb.ModelInferResponse, answer)
        except ClientError as error:
            left.passed_since(begin)
            raise self._cured(error, lambda: request, model, version, left) from None

    def _cured(self, error: ClientError, made: Made, model: str, version: str | int, left: TimeLeft) -> ClientError:
        """``error``; if the server found a mistake in the request that ``made`` returns, with advice how to mend it."""
        if error.code is not Status.INVALID_ARGUMENT:
            return error
        self._known = {}  # another version of the model may be in service now
        try:
            metadata = self._metadata(model, version, left)
        except ClientError:
            return error
        return advised(error, made(), metadata)

    def _metadata(self, model: str, version: str | int, left: TimeLeft) -> ModelMetadata:
        """The metadata of ``model``, which is asked for once, until the server refuses a request."""
        known = self._known.get((checked_model(model), checked_version(version)))
        if known is not None:
            return known
        begin = monotonic()
        try:
            return self.model_metadata(model, version, left.seconds())
        finally:
            left.passed_since(begin)

    def _metadata_if_any(self, model: str, version: str | int, left: TimeLeft) -> ModelMetadata | None:
        """The same, or None where the server gives none: the answer to the request itself then says what is wrong."""
        key = (checked_model(model), checked_version(version))
        known = self._known
        if key in known:
            return known[key]
        try:
            return self._metadata(model, version, left)
        except ClientError as error:
            if error.code is Status.DEADLINE_EXCEEDED:
                raise
            if error.code in WITHOUT_METADATA:
                known[key] = None
            return None

    def models(self, timeout: float | None = None) -> list[control.VersionState]:
        """The state of every version of every model in the server's repository."""
        return control.states(self.call(*control.index(), timeout))

    def counters(self, timeout: float | None = None) -> list[control.VersionCounters]:
        """The counters of each version in service; only servers of normfold have them. Raises ClientError."""
        return control.counters(self.call(*control.snapshot(), timeout))

    def load(self, model: str, config: str | None = None, timeout: float | None = None) -> None:
        """Load or reload ``model``; its old versions answer until the new ones are warm, and go on if those fail.

        ``config`` is a configuration in JSON that replaces config.pbtxt. Raises ClientError with the reason.
        """
        self.call(*control.load(model, config), timeout)
        self._known = {}

    def unload(self, model: str, timeout: float | None = None) -> None:
        """Stop serving ``model``; requests that it has are still answered."""
        self.call(*control.unload(model), timeout)
        self._known = {}

    def use(self, model: str, version: int | str, timeout: float | None = None) -> None:
        """Put ``version`` of ``model`` in service and take the others out, until the model is loaded again.

        config.pbtxt is not changed: ``normfold use --repository`` does that. Raises ClientError, or ValueError.
        """
        number = control.checked_number(version)
        config = self.call(*control.config(model), timeout).config
        self.load(model, control.with_versions(config, [number]), timeout)

    def is_live(self, timeout: float | None = None) -> bool:
        """Whether the server answers. Raises ClientError if no server does."""
        return says_yes(self._send("ServerLive", b"", timeout))

    def is_ready(self, timeout: float | None = None) -> bool:
        """Whether every model of the server is ready."""
        return says_yes(self._send("ServerReady", b"", timeout))

    def is_model_ready(self, model: str, version: str | int = "", timeout: float | None = None) -> bool:
        """Whether ``model`` can answer."""
        request = named(checked_model(model), checked_version(version))
        return says_yes(self._send("ModelReady", request, timeout))

    def server_metadata(self, timeout: float | None = None) -> ServerMetadata:
        """Name, version and extensions of the server."""
        from normfold.protos import grpc_service as pb

        request = pb.ServerMetadataRequest()
        return server_metadata(self.call("ServerMetadata", request, pb.ServerMetadataResponse, timeout))

    def model_metadata(self, model: str, version: str | int = "", timeout: float | None = None) -> ModelMetadata:
        """Inputs, outputs and versions of ``model``."""
        key = checked_model(model), checked_version(version)
        known = self._known
        metadata = known[key] = read_metadata(self._send("ModelMetadata", named(*key), timeout))
        return metadata
