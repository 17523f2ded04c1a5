"""What supervisor and worker say to each other: frames of a JSON object and any number of byte strings behind it.

The bytes are messages of the protocol as they came from the client; the supervisor never looks into them. A frame is
the length of the JSON in four bytes, the JSON, and the byte strings, whose lengths stand in the JSON under "sizes".
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from typing import Any, NamedTuple

_LENGTH = struct.Struct("<I")


class Frame(NamedTuple):
    """One thing said."""

    #: What it is.
    kind: str
    #: Its fields.
    fields: dict[str, Any]
    parts: list[bytes]


class Link:
    """One end of the connection between supervisor and worker."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def over(cls, sock: socket.socket) -> Link:
        """The end that is ``sock``."""
        return cls(*await asyncio.open_connection(sock=sock))

    def say(self, kind: str, *parts: bytes, **fields: Any) -> None:
        """Send a frame. Where the other end has gone nothing happens: whoever reads from it hears of that."""
        head = json.dumps({"kind": kind, "sizes": [len(part) for part in parts], **fields}).encode()
        self._writer.writelines([_LENGTH.pack(len(head)), head, *parts])

    async def hear(self) -> Frame | None:
        """The next frame; None once the other end has gone."""
        try:
            (length,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
            fields = json.loads(await self._reader.readexactly(length))
            parts = [await self._reader.readexactly(size) for size in fields.pop("sizes")]
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        return Frame(fields.pop("kind"), fields, parts)

    async def close(self) -> None:
        """Send what is still to be sent, and hang up."""
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()
