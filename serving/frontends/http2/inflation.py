"""Compressed messages: inflated in steps, those that take long on a thread; what grows out of proportion is refused."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from normfold.serving.errors import Status
from normfold.serving.frontends.http2.limits import CallFault

#: The name of each compression in grpc-encoding, and zlib's number of bits for it; 0: none.
ENCODINGS = {b"identity": 0, b"deflate": zlib.MAX_WBITS, b"gzip": zlib.MAX_WBITS | 16}

#: Inflated on the event loop, in bytes: that takes less time than asking a thread.
INLINE_BYTES = 1 << 17
#: Inflated by a thread before the call is looked at again, in bytes.
STEP_BYTES = 1 << 22
#: Compressed bytes given to zlib at a time; it copies those that it does not use.
_PIECE_BYTES = 1 << 16

#: A message of more than LARGE_BYTES may be at most this many times larger than its compressed form.
MOST_RATIO = 100
LARGE_BYTES = 16 << 20

#: Its threads are started when they are needed.
THREADS = ThreadPoolExecutor(2, "normfold-inflate")


class Inflation:
    """One compressed message, and what is inflated of it. Its length is that of the compressed data."""

    def __init__(self, data: bytes, bits: int, most_bytes: int) -> None:
        self._data, self._at, self._most = memoryview(data), 0, most_bytes
        self._inflater = zlib.decompressobj(bits)
        self._parts: list[bytes] = []
        #: The inflated bytes so far.
        self.size = 0

    def __len__(self) -> int:
        return len(self._data)

    def start(self) -> bytes | None:
        """The message, if it has at most INLINE_BYTES; None: ``rest`` gives it. Raises CallFault."""
        return self._step(INLINE_BYTES)

    async def rest(self, held: Callable[[int], object]) -> bytes:
        """The message; ``held`` is called with the bytes in memory after each step. Raises CallFault."""
        loop = asyncio.get_running_loop()
        while (message := await loop.run_in_executor(THREADS, self._step, STEP_BYTES)) is None:
            held(len(self) + self.size)
        return message

    def _step(self, most: int) -> bytes | None:
        """Inflate up to ``most`` bytes; the whole message once it ends. Raises CallFault."""
        inflater = self._inflater
        while most > 0 and not inflater.eof:
            piece: bytes | memoryview = inflater.unconsumed_tail
            if not piece:
                piece = self._data[self._at : self._at + _PIECE_BYTES]
                self._at += len(piece)
            try:
                plain = inflater.decompress(piece, most)
            except zlib.error as error:
                raise CallFault(Status.INTERNAL, f"a message cannot be decompressed: {error}") from None
            if not plain and not piece:
                raise CallFault(Status.INTERNAL, "a compressed message ends too early")
            self._parts.append(plain)
            self.size += len(plain)
            most -= len(plain)
        if self.size > self._most:
            raise too_large("more", self._most)
        if self.size > max(LARGE_BYTES, MOST_RATIO * len(self)):
            raise CallFault(Status.RESOURCE_EXHAUSTED, f"a message is more than {MOST_RATIO} times its compressed size")
        if not inflater.eof:
            return None
        if inflater.unused_data or self._at < len(self):
            raise CallFault(Status.INTERNAL, "Decompression failed due to not all input consumed")
        return b"".join(self._parts)


def too_large(size: str, most: int) -> CallFault:
    """The refusal of a message with more than ``most`` bytes."""
    return CallFault(Status.RESOURCE_EXHAUSTED, f"Received message larger than max ({size} vs. {most})")
