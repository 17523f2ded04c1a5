"""Many calls at once over one ModelStreamInfer stream, for AsyncClient; answers are matched to requests by id.

benches/serving/RESULTS.md has the CPU time of a message of a stream and of a unary call, for both frontends. A server
answers in the order of requests, so a slow answer delays those behind it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError

from normfold.protos import grpc_service as pb
from normfold.serving.client.calls import SERVICE
from normfold.serving.client.errors import ClientError, client_error
from normfold.serving.client.transport import failures
from normfold.serving.client.transport.answers import Reply
from normfold.serving.client.transport.choice import LoopCalls
from normfold.serving.client.transport.retries import ATTEMPTS, Retries
from normfold.serving.errors import Status

#: As for unary calls: the pauses before a request is sent again if the stream breaks off before its answer, in seconds.
_PAUSES = (0.1, 0.3)
_RETRYABLE = (Status.UNAVAILABLE, Status.CANCELLED)
#: The status that grpc.aio gives instead of the stream's own, if the stream ends while grpc.aio writes.
_LOST = (Status.INTERNAL, "Internal error from Core")

#: The parameter of an error in a stream that says when to send the request again, in milliseconds.
PUSHBACK = "retry_pushback_ms"

#: A part of an error's text -> its status, for a server whose stream gives no status (Triton); the first match counts.
_TEXTS = (
    ("is not at ready state", Status.UNAVAILABLE),
    ("Exceeds maximum queue size", Status.UNAVAILABLE),
    ("Request timeout expired", Status.UNAVAILABLE),
    ("Server exiting", Status.UNAVAILABLE),
    ("Request for unknown model", Status.NOT_FOUND),
    ("expected", Status.INVALID_ARGUMENT),
    ("input", Status.INVALID_ARGUMENT),
    ("batch-size", Status.INVALID_ARGUMENT),
    ("invalid", Status.INVALID_ARGUMENT),
)


@dataclass
class _Waiting:
    """A request that has no answer yet."""

    data: bytes
    #: The id that the caller gave; the server gets an id of ours, which no other request had before.
    request_id: str
    answer: asyncio.Future[pb.ModelInferResponse]
    #: When the caller gives up, by the clock of the event loop.
    deadline: float
    #: How often it was sent without a refusal that says when to send it again.
    attempts: int = 0
    retries: Retries = field(default_factory=Retries)


class Multiplexer:
    """One stream of a channel; the first request opens it, and it is opened again when it broke off."""

    def __init__(self, calls: LoopCalls, address: str) -> None:
        """``calls`` carries the stream, on the event loop that runs now."""
        self._address, self._calls = address, calls
        self._waiting: dict[str, _Waiting] = {}
        self._numbers = itertools.count(1)
        self._outgoing: asyncio.Queue[str] | None = None
        self._running: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        #: Whether the stream has answered anything.
        self._answered = False
        #: The reply to every request once the client is closed, or is used on another event loop.
        self._end: Reply | None = None

    async def infer(self, request: pb.ModelInferRequest, timeout: float) -> pb.ModelInferResponse:
        """The response to ``request`` within ``timeout`` seconds. Raises ClientError."""
        if self._end is not None:
            raise client_error(self._end)
        request_id = request.id
        identifier = f"{request_id}~{next(self._numbers)}"
        request.id = identifier
        request.parameters["grpc_status"].bool_param = True
        answer: asyncio.Future[pb.ModelInferResponse] = self._loop.create_future()
        waiting = _Waiting(request.SerializeToString(), request_id, answer, self._loop.time() + timeout)
        self._waiting[identifier] = waiting
        if self._outgoing is not None:
            self._hand(identifier, waiting, self._outgoing)
        elif self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run())
        try:
            async with asyncio.timeout(timeout):
                response = await answer
        except TimeoutError:
            raise ClientError(Status.DEADLINE_EXCEEDED, "Deadline Exceeded") from None
        finally:
            self._waiting.pop(identifier, None)
        response.id = request_id
        return response

    async def close(self) -> None:
        """End the stream; requests without an answer fail as cancelled."""
        self._end = failures.CLOSED
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running])
        self._fail_all(client_error(failures.CLOSED))

    def leave(self, reply: Reply) -> None:
        """End the stream from another event loop; the requests fail with ``reply``, unless their loop is closed."""
        self._end = reply
        with contextlib.suppress(RuntimeError):  # of a closed loop, which calls nothing any more
            self._loop.call_soon_threadsafe(self._fail_all, client_error(reply))

    async def _run(self) -> None:
        """Keep a stream open as long as requests wait; whatever ends this ends them."""
        try:
            await self._keep_open()
        except asyncio.CancelledError:
            self._fail_all(client_error(self._end or Reply(Status.CANCELLED, "cancelled")))
            raise
        except Exception as error:
            said = f"the stream to the server at {self._address} ended: {type(error).__name__}: {error}"
            self._fail_all(ClientError(Status.INTERNAL, said))

    async def _keep_open(self) -> None:
        known: ClientError | None = None
        while self._waiting:
            self._answered = False
            error = await self._stream(careful=known is not None)
            if (error.code, error.details) == _LOST:  # perhaps for the reason of the stream before
                ended = ClientError(Status.UNAVAILABLE, f"the server at {self._address} ended the stream")
                error = ended if self._answered or known is None else known
            known = error
            for waiting in self._waiting.values():
                if error.code not in _RETRYABLE or waiting.attempts >= ATTEMPTS:
                    _fail(waiting, error)
            left = [waiting.attempts for waiting in self._waiting.values() if not waiting.answer.done()]
            if not left:
                return
            await asyncio.sleep(_PAUSES[max(left) - 1])

    async def _stream(self, careful: bool) -> ClientError:
        """Send the requests that wait and those that come, take answers until the stream ends, and return why it ended.

        ``careful``: send only one request before the first answer, so that no write hides why the stream ends.
        """
        outgoing = self._outgoing = asyncio.Queue[str]()
        for identifier, waiting in self._waiting.items():
            self._hand(identifier, waiting, outgoing)
        answered = asyncio.Event()
        if not careful:
            answered.set()
        ended = Reply(Status.OK)
        stream = self._calls.stream(SERVICE + "ModelStreamInfer", self._sent(outgoing, answered))
        try:
            async with contextlib.aclosing(stream):
                async for item in stream:
                    if isinstance(item, Reply):
                        ended = item
                        break
                    answered.set()
                    self._take(item)
            if ended.status is not Status.OK:
                return client_error(ended)
            return ClientError(Status.UNAVAILABLE, f"the server at {self._address} ended the stream")
        except DecodeError:
            what = f"the server at {self._address} streams answers that are not ModelStreamInferResponse"
            return ClientError(Status.INTERNAL, what)
        finally:
            self._outgoing = None

    def _hand(self, identifier: str, waiting: _Waiting, outgoing: asyncio.Queue[str]) -> None:
        waiting.attempts += 1
        outgoing.put_nowait(identifier)

    async def _sent(self, outgoing: asyncio.Queue[str], answered: asyncio.Event) -> AsyncIterator[bytes]:
        while True:
            waiting = self._waiting.get(await outgoing.get())
            if waiting is not None and not waiting.answer.done():  # the callers of the others have given up
                yield waiting.data
                await answered.wait()

    def _take(self, data: bytes) -> None:
        answer = pb.ModelStreamInferResponse.FromString(data)
        self._answered = True
        identifier = answer.infer_response.id
        waiting = self._waiting.get(identifier)
        if answer.error_message:
            status = stream_status(answer)
            if waiting is None and not identifier:  # the error is about a request that the server could not read
                self._fail_all(ClientError(status, answer.error_message))
            elif waiting is not None and (pause := _pause(waiting, answer)) is not None:
                asyncio.get_running_loop().call_later(pause, self._again, identifier, self._outgoing)
            elif waiting is not None:
                named = f"[request id: {waiting.request_id or '<id_unknown>'}]"
                details = answer.error_message.replace(f"[request id: {identifier}]", named)
                _fail(waiting, ClientError(status, details))
        elif waiting is not None and not waiting.answer.done():
            waiting.answer.set_result(answer.infer_response)

    def _again(self, identifier: str, outgoing: asyncio.Queue[str] | None) -> None:
        """Send a request that the stream of ``outgoing`` has refused once more; later streams send it anyway."""
        waiting = self._waiting.get(identifier)
        if waiting is not None:
            waiting.attempts -= 1
        if waiting is not None and outgoing is not None and outgoing is self._outgoing:
            self._hand(identifier, waiting, outgoing)

    def _fail_all(self, error: ClientError) -> None:
        for waiting in self._waiting.values():
            _fail(waiting, error)


def _fail(waiting: _Waiting, error: ClientError) -> None:
    if not waiting.answer.done():
        # Each caller gets an exception object of its own.
        waiting.answer.set_exception(ClientError(error.code, error.details))


def _pause(waiting: _Waiting, answer: pb.ModelStreamInferResponse) -> float | None:
    """The seconds after which a refused request is sent again, as a unary call is; None: it is not."""
    parameters = answer.infer_response.parameters
    if PUSHBACK not in parameters:
        return None
    left = waiting.deadline - asyncio.get_running_loop().time()
    reply = Reply(Status.RESOURCE_EXHAUSTED, pushback_ms=parameters[PUSHBACK].int64_param)
    return waiting.retries.pause(SERVICE + "ModelStreamInfer", reply, left)


def stream_status(answer: pb.ModelStreamInferResponse) -> Status:
    """The status of an error in a stream: the one that the server gives, else one by the text, else UNKNOWN."""
    name = answer.infer_response.parameters["grpc_status"].string_param
    if name in Status.__members__:
        return Status[name]
    return next((status for text, status in _TEXTS if text in answer.error_message), Status.UNKNOWN)
