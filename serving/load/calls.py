"""The calls of a load: prepared requests, sent again and again as unary calls or as messages of a stream.

The caller gives each call a number; ``wait`` returns the numbers of the calls that ended, with their statuses by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol
from urllib.parse import quote

from normfold.digits import read_digits
from normfold.protos import grpc_service as pb
from normfold.serving.client.calls import SERVICE
from normfold.serving.client.connection import Credentials, token_header
from normfold.serving.client.transport.answers import HTTP_STATUSES
from normfold.serving.client.transport.opening import written_timeout
from normfold.serving.errors import Status
from normfold.serving.load.http2 import ClientConnection, Disconnected
from normfold.serving.load.pool import Pool
from normfold.serving.load.streams import Event
from normfold.serving.wire.request_bytes import find_id

NO_CREDENTIALS = Credentials()
Ended = list[tuple[int, str]]

#: The statuses of gRPC by their numbers.
STATUSES: dict[str, str] = {str(int(status)): status.name for status in Status}


class Calls(Protocol):
    """An object that calls a server and reports the calls that ended."""

    def send(self, number: int) -> None:
        """Queue a call; the next ``wait`` sends it."""

    def wait(self, seconds: float) -> Ended:
        """The calls that ended by the time that something came, or that ``seconds`` were over; often none."""

    def close(self) -> None:
        """Close the connections; calls without an answer are given up."""


class UnaryCalls:
    """Calls of ModelInfer, each on an HTTP/2 stream of its own, over ``connections`` in turn."""

    def __init__(
        self,
        address: str,
        messages: Sequence[bytes],
        *,
        connections: int = 1,
        timeout: float = 60.0,
        credentials: Credentials = NO_CREDENTIALS,
    ) -> None:
        """``messages``: serialized requests, sent in turn.

        Raises ConnectionError, or ValueError for the address and for ``credentials``.
        """
        self._data = [framed(message) for message in messages]
        sent = headers(address, "ModelInfer", timeout, credentials)
        self._pool = Pool(address, sent, connections, credentials.tls)
        self._numbers: dict[ClientConnection, dict[int, int]] = {}
        self._status: dict[tuple[ClientConnection, int], str] = {}

    def send(self, number: int) -> None:
        """Queue a call; the next ``wait`` sends it."""
        connection = self._pool.at(number)
        self._numbers.setdefault(connection, {})[connection.open(self._data[number % len(self._data)], end=True)] = (
            number
        )

    def wait(self, seconds: float) -> Ended:
        """The calls that ended by the time that something came, or that ``seconds`` were over; often none."""
        self._pool.flush()
        ended: Ended = []
        for connection, events in self._pool.wait(seconds):
            numbers = self._numbers.get(connection, {})
            if isinstance(events, Disconnected):
                ended += [(number, "UNAVAILABLE") for number in numbers.values()]
                self._numbers.pop(connection, None)
                continue
            for event in events:
                if event.refused:
                    self.send(numbers.pop(event.stream))
                    continue
                if event.headers and (name := status(event)):
                    self._status[connection, event.stream] = name
                if event.ended:
                    ended.append((numbers.pop(event.stream), self._status.pop((connection, event.stream), "UNKNOWN")))
        return ended

    def close(self) -> None:
        """Close the connections; calls without an answer are given up."""
        self._pool.close()


class StreamCalls:
    """Messages of ModelStreamInfer, one stream for each connection; answers are matched by the request's id."""

    def __init__(
        self,
        address: str,
        messages: Sequence[bytes],
        *,
        connections: int = 1,
        credentials: Credentials = NO_CREDENTIALS,
    ) -> None:
        """``messages``: serialized requests without id, sent in turn. Raises as UnaryCalls."""
        #: Each message in two parts: the id goes between them, as clients write it, which the server reads faster.
        self._messages = [(each[: find_id(each)[0]], each[find_id(each)[0] :]) for each in messages]
        sent = headers(address, "ModelStreamInfer", None, credentials)
        self._pool = Pool(address, sent, connections, credentials.tls)
        self._streams: dict[ClientConnection, int] = {}
        self._numbers: dict[ClientConnection, set[int]] = {}
        self._parts: dict[ClientConnection, bytearray] = {}

    def send(self, number: int) -> None:
        """Queue a message; the next ``wait`` sends it."""
        connection = self._pool.at(number)
        before, after = self._messages[number % len(self._messages)]
        data = framed(b"".join((before, pb.ModelInferRequest(id=str(number)).SerializeToString(), after)))
        if connection in self._streams:
            connection.send(self._streams[connection], data)
        else:
            self._streams[connection] = connection.open(data, end=False)
            self._parts[connection] = bytearray()
        self._numbers.setdefault(connection, set()).add(number)

    def wait(self, seconds: float) -> Ended:
        """The calls that ended by the time that something came, or that ``seconds`` were over; often none."""
        self._pool.flush()
        ended: Ended = []
        for connection, events in self._pool.wait(seconds):
            if isinstance(events, Disconnected):
                ended += self._broken(connection, "UNAVAILABLE")
                continue
            for event in events:
                if event.data:
                    for message in _messages(self._parts[connection], event.data):
                        ended += self._answer(connection, message)
                if event.ended:
                    ended += self._broken(connection, status(event) or "UNKNOWN")
        return ended

    def close(self) -> None:
        """Close the connections; calls without an answer are given up."""
        self._pool.close()

    def _answer(self, connection: ClientConnection, message: bytes) -> Ended:
        answer = pb.ModelStreamInferResponse.FromString(message)
        number = read_digits(answer.infer_response.id, 1 << 62)
        if number is None or number not in self._numbers[connection]:
            return []  # the model gives several answers to a request
        self._numbers[connection].discard(number)
        return [(number, "ERROR" if answer.error_message else "OK")]

    def _broken(self, connection: ClientConnection, name: str) -> Ended:
        self._streams.pop(connection, None)
        return [(number, name) for number in self._numbers.pop(connection, set())]


def framed(message: bytes) -> bytes:
    """``message`` as gRPC sends it: uncompressed, behind its length."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def headers(
    address: str, method: str, timeout: float | None, credentials: Credentials = NO_CREDENTIALS
) -> list[tuple[str, str]]:
    """The headers of a call by gRPC over HTTP/2. Raises ValueError for a token that cannot be one."""
    tls = credentials.tls
    name = tls.server_name if tls is not None else ""
    found = [
        (":method", "POST"),
        (":scheme", "http" if tls is None else "https"),
        (":path", SERVICE + method),
        (":authority", name or (quote(address, safe=":[]") if not address.startswith("unix:") else "localhost")),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        ("user-agent", "normfold-bench"),
        *token_header(credentials.token),
    ]
    return found if timeout is None else [*found, ("grpc-timeout", written_timeout(timeout).decode())]


def status(event: Event) -> str | None:
    """The name of the status in the headers of ``event``; None if they have none."""
    fields = dict(event.headers)
    number = fields.get("grpc-status")
    if number is not None:
        return STATUSES.get(number, "UNKNOWN")
    http = fields.get(":status", "200")
    if http == "200":
        return None
    return HTTP_STATUSES.get(read_digits(http, 999) or 0, Status.UNKNOWN).name


def _messages(so_far: bytearray, data: bytes) -> list[bytes]:
    """The messages that ``data`` completes; the rest of it stays in ``so_far``."""
    so_far += data
    found, at = [], 0
    while len(so_far) - at >= 5:
        size = int.from_bytes(so_far[at + 1 : at + 5], "big")
        if len(so_far) - at - 5 < size:
            break
        found.append(bytes(so_far[at + 5 : at + 5 + size]))
        at += 5 + size
    del so_far[:at]
    return found
