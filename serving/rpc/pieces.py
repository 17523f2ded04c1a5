"""A large serialized message that is not joined: its numbers stay in the arrays of the run until they are sent."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable


class Pieces:
    """A serialized message as the pieces that make it, in their order; who needs ``bytes`` joins it by ``bytes()``."""

    __slots__ = ("_size", "parts")

    def __init__(self, parts: Iterable[bytes | memoryview]) -> None:
        """``parts``: first bytes, whole fields that say what the message is; then numbers as memoryviews of single
        bytes, and what is between and behind them.
        """
        self.parts = tuple(parts)
        self._size = sum(map(len, self.parts))

    def __len__(self) -> int:
        return self._size

    def __bytes__(self) -> bytes:
        return b"".join(self.parts)

    async def joined(self) -> bytes:
        """The message in one piece: copied on another thread, because that takes a millisecond for 4 MB."""
        return await asyncio.to_thread(bytes, self)

    def within(self, before: bytes, behind: bytes) -> Pieces:
        """The message between two other ones."""
        first, *rest = self.parts
        return Pieces((before + bytes(first), *rest, behind))


#: A serialized message to a client.
Answer = bytes | Pieces
