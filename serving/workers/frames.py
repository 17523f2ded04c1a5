"""How messages travel between supervisor and worker: frames on a socket.

A frame is the length of a JSON object in four bytes, the object, and byte strings. The object has the class of the
message ("kind"), its fields, and the lengths of the byte strings ("sizes"), which are its fields of type bytes.

The files of a model that a client loads pass through here, and may have hundreds of megabytes. They are sent and
received in pieces, so that both event loops answer others meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections import deque
from types import UnionType
from typing import Any, Generic, TypeVar, get_args

from normfold.serving.process import typed_json
from normfold.serving.workers.messages import ToSupervisor, ToWorker

_LENGTH = struct.Struct("<I")

#: The largest piece that is sent or received at once, in bytes.
PIECE_BYTES = 1 << 20
#: Time for the other end to read what was sent at last, and to close.
LAST_SECONDS = 2.0

Sent = TypeVar("Sent")
Received = TypeVar("Received")


class Link(Generic[Sent, Received]):
    """One end of the connection between supervisor and worker; it sends ``Sent`` and receives ``Received``."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, received: UnionType) -> None:
        self._reader, self._writer = reader, writer
        self._kinds: dict[str, type[Received]] = {kind.__name__: kind for kind in get_args(received)}
        #: The parts of frames that wait while a large one is sent.
        self._waiting: deque[bytes] = deque()
        self._sending: asyncio.Task[None] | None = None

    def send(self, message: Sent) -> None:
        """Send a message. If the other end has closed, nothing happens: ``receive`` reports that."""
        if self._writer.is_closing():  # uvloop raises RuntimeError then
            return
        parts: list[bytes] = []
        fields = typed_json.to_values(message, parts)
        head = {"kind": type(message).__name__, "sizes": [len(part) for part in parts], "fields": fields}
        data = json.dumps(head).encode()
        frame = [_LENGTH.pack(len(data)), data, *parts]
        if not self._waiting and sum(map(len, frame)) <= PIECE_BYTES:
            self._writer.writelines(frame)
            return
        self._waiting += frame
        if self._sending is None:
            self._sending = asyncio.get_running_loop().create_task(self._send_waiting())

    async def _send_waiting(self) -> None:
        """Send what waits, piece by piece, as the other end takes it."""
        try:
            while self._waiting:
                part = memoryview(self._waiting[0])
                for at in range(0, len(part), PIECE_BYTES):
                    if self._writer.is_closing():
                        raise ConnectionResetError
                    self._writer.write(part[at : at + PIECE_BYTES])
                    await self._writer.drain()
                self._waiting.popleft()
        except ConnectionError:
            self._waiting.clear()
        finally:
            self._sending = None

    async def receive(self) -> Received | None:
        """The next message; None once the other end has closed."""
        try:
            (length,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
            head: dict[str, Any] = json.loads(await self._reader.readexactly(length))
            parts = [await self._part(size) for size in head["sizes"]]
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        return typed_json.from_values(self._kinds[head["kind"]], head["fields"], parts)

    async def _part(self, size: int) -> bytes:
        """The next ``size`` bytes. Raises IncompleteReadError, or ConnectionError."""
        if size <= PIECE_BYTES:
            return await self._reader.readexactly(size)
        left = range(size, 0, -PIECE_BYTES)
        pieces = [await self._reader.readexactly(min(each, PIECE_BYTES)) for each in left]
        return await asyncio.to_thread(b"".join, pieces)

    async def finish(self) -> None:
        """Send everything that is still queued, and close this end once the other has read it and closes, too.

        If this end closed first, a message from the other end would make the system drop what that end has not read.
        """
        if self._sending is not None:
            await self._sending
        with contextlib.suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(LAST_SECONDS):
                if not self._writer.is_closing():
                    self._writer.write_eof()
                    while await self._reader.read(PIECE_BYTES):
                        pass
        await self.close()

    async def close(self) -> None:
        """Send everything that is still queued, and close this end."""
        if self._sending is not None:
            await self._sending
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()


SupervisorEnd = Link[ToWorker, ToSupervisor]
WorkerEnd = Link[ToSupervisor, ToWorker]


async def supervisor_end(sock: socket.socket) -> SupervisorEnd:
    """The supervisor's end of a connection, on ``sock``."""
    return SupervisorEnd(*await asyncio.open_connection(sock=sock), ToSupervisor)


async def worker_end(sock: socket.socket) -> WorkerEnd:
    """A worker's end of a connection, on ``sock``."""
    return WorkerEnd(*await asyncio.open_connection(sock=sock), ToWorker)
