"""Many calls at a time over one connection, whose requests may be any bytes."""

from __future__ import annotations

import select
import socket
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import unquote

from normfold.serving.load.http2 import ClientConnection, Disconnected

#: Calls under way at a time.
AT_A_TIME = 32
#: A call that has no answer after this time hangs.
SECONDS = 30.0


class Answer(NamedTuple):
    """The status of a call, its details and the bytes of its message; -1: the connection ended, -2: no answer."""

    status: int
    details: str
    data: bytes


ENDED, HANGS = -1, -2


def prefixed(data: bytes) -> bytes:
    """A message as it is in the data of a stream."""
    return b"\0" + len(data).to_bytes(4, "big") + data


class Calls:
    """A connection on which every call goes to ``path``."""

    def __init__(self, address: str, path: str) -> None:
        self._address = address
        self._headers = [
            *((":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "x")),
            *(("te", "trailers"), ("content-type", "application/grpc")),
        ]
        self._connection = self._connect()

    def _connect(self) -> ClientConnection:
        host, _, port = self._address.rpartition(":")
        return ClientConnection(socket.create_connection((host, int(port)), SECONDS), self._headers)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def answers(self, bodies: Sequence[bytes]) -> list[Answer]:
        """The answers to ``bodies``, each of which is the data of one request."""
        found: list[Answer] = []
        for first in range(0, len(bodies), AT_A_TIME):
            found += self._some(bodies[first : first + AT_A_TIME])
        return found

    def _some(self, bodies: Sequence[bytes]) -> list[Answer]:
        connection = self._connection
        streams = [connection.open(body, end=True) for body in bodies]
        data = dict.fromkeys(streams, b"")
        headers: dict[int, dict[str, str]] = {stream: {} for stream in streams}
        left, failed = set(streams), ENDED
        try:
            while left:
                connection.flush()
                writing = [connection.socket] if connection.blocked else []
                ready, writable, _ = select.select([connection.socket], writing, [], SECONDS)
                if not ready and not writable:
                    failed = HANGS
                    raise Disconnected
                for event in connection.receive() if ready else ():
                    data[event.stream] += event.data
                    headers[event.stream] |= dict(event.headers)
                    if event.ended:
                        left.discard(event.stream)
        except Disconnected:
            connection.close()
            self._connection = self._connect()
        return [
            Answer(failed, "", b"")
            if stream in left
            else Answer(
                int(headers[stream].get("grpc-status", ENDED)),
                unquote(headers[stream].get("grpc-message", "")),
                data[stream][5:],
            )
            for stream in streams
        ]
