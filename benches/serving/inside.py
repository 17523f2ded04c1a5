"""What a request costs inside the server: from the bytes of its frames to the bytes of its answer, without a socket.

    python -m benches.serving.inside

One connection of the http2 frontend is given frames as a socket would give them. The model is ``tiny``; its bare run is
measured in the same rounds. The best of many rounds is printed: what else the machine does only makes a round longer.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path

import hpack
import numpy as np
from benches.machine import machine
from benches.serving.networks import publish, tiny
from benches.serving.roster import CONFIG

from normfold.serving.client.calls import infer_request
from normfold.serving.frontends.http2.connection import ServerConnection
from normfold.serving.frontends.http2.connection_places import ConnectionPlaces
from normfold.serving.server import Server
from normfold.serving.settings import ServerConfig
from normfold.serving.wire import http2_frames as h2

ROUNDS = 1000
#: Requests that one read of the socket brings.
AT_ONCE = (1, 4, 16)
_HEADERS = {
    ":method": "POST",
    ":scheme": "http",
    ":path": "/inference.GRPCInferenceService/ModelInfer",
    ":authority": "localhost",
    "content-type": "application/grpc",
    "te": "trailers",
}


class NoSocket(asyncio.Transport):
    """Takes whatever is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Count the bytes."""
        self.written += len(data)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Nothing is ever buffered."""

    def get_write_buffer_size(self) -> int:
        """The bytes that wait: none."""
        return 0

    def is_closing(self) -> bool:
        """It stays open."""
        return False

    def pause_reading(self) -> None:
        """Nothing is read."""

    def resume_reading(self) -> None:
        """Nothing is read."""


async def microseconds(repository: Path, rounds: int = ROUNDS) -> dict[str, float]:
    """The best time for each request in microseconds, by the number of requests in a read; and that of the bare run."""
    publish(tiny(), repository / "tiny", CONFIG)
    server = Server(ServerConfig(repository=repository, listen="127.0.0.1:0", metrics_listen="off"))
    await server.start()
    try:
        return await _measured(server, _opened(server), rounds)
    finally:
        await server.shut_down()


def _opened(server: Server) -> tuple[ServerConnection, NoSocket]:
    service = server._frontend._service
    connection, socket = ServerConnection(service, ConnectionPlaces(1)), NoSocket()
    connection.connection_made(socket)
    windows = h2.frame(h2.WINDOW_UPDATE, 0, 0, (h2.LARGEST_WINDOW - h2.DEFAULT_WINDOW).to_bytes(4, "big"))
    connection.data_received(h2.PREFACE + h2.settings({h2.HEADER_TABLE_SIZE: 0}) + windows)
    return connection, socket


async def _measured(server: Server, opened: tuple[ServerConnection, NoSocket], rounds: int) -> dict[str, float]:
    connection, socket = opened
    x = np.zeros((1, 1, 32), np.float32)
    message = infer_request("tiny", {"x": x}, None, "", "").SerializeToString()
    body = b"\0" + len(message).to_bytes(4, "big") + message
    encoder = hpack.Encoder()
    encoder.header_table_size = 0
    block = [encoder.encode([hpack.NeverIndexedHeaderTuple(*pair) for pair in _HEADERS.items()]) for _ in "12"][1]
    session = server.catalog.find("tiny", "").session
    best = dict.fromkeys([*map(str, AT_ONCE), "bare run"], float("inf"))
    number = 1

    def spent(name: str, begun: float, times: int) -> None:
        best[name] = min(best[name], (time.perf_counter() - begun) / times * 1e6)

    for _ in range(rounds):
        for many in AT_ONCE:
            frames = b""
            for _ in range(many):
                frames += h2.frame(h2.HEADERS, h2.END_HEADERS, number, block)
                frames += h2.frame(h2.DATA, h2.END_STREAM, number, body)
                number += 2
            before, begun = socket.written, time.perf_counter()
            connection.data_received(frames)
            if not connection.calls and socket.written > before:  # all answered at once, on the event loop
                spent(str(many), begun, many)
            while connection.calls or connection._behind:  # the first ones are not, nor those that were interrupted
                await asyncio.sleep(0.001)
        begun = time.perf_counter()
        session.run({"x": x}, ["y"])
        spent("bare run", begun, 1)
    return best


def main() -> None:
    """Print the figures."""
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(microseconds(Path(folder)))
    run = found.pop("bare run")
    print(machine(), f"A bare run of the model takes {run:.1f} us.")
    for many, took in found.items():
        print(f"{many:>2} in a read: {took:.1f} us for each request, {took - run:.1f} us more than the bare run")


if __name__ == "__main__":
    main()
