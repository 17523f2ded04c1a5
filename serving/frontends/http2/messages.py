"""gRPC's messages in the data of a stream: one byte (1: compressed), four bytes for the size, the message."""

from __future__ import annotations

import zlib

from normfold.serving.errors import Status

PREFIX_BYTES = 5

#: The name of each compression in grpc-encoding, and zlib's number of bits for it; 0: none.
ENCODINGS = {b"identity": 0, b"deflate": zlib.MAX_WBITS, b"gzip": zlib.MAX_WBITS | 16}


class Misframed(Exception):
    """The data are not messages, or a message is too large; ``status`` is the status of the call."""

    def __init__(self, status: Status, details: str) -> None:
        super().__init__(details)
        self.status = status


class MessageReader:
    """Makes messages of the data of a stream, which come in pieces of any size."""

    def __init__(self, encoding: bytes, most_bytes: int) -> None:
        """``encoding`` is one of ENCODINGS; a message has at most ``most_bytes``, compressed and not."""
        self._bits, self._most = ENCODINGS[encoding], most_bytes
        self._parts: list[bytes] = []
        self._have, self._need = 0, PREFIX_BYTES
        #: The first byte of the message that has begun; None: its prefix is not complete yet.
        self._compressed: int | None = None

    @property
    def within(self) -> bool:
        """Whether a message has begun and not ended."""
        return self._have > 0 or self._compressed is not None

    @property
    def missing(self) -> int:
        """The bytes that must still come: of the message that has begun, or of the next prefix."""
        return self._need - self._have

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that end in ``data``. Raises Misframed."""
        self._parts.append(data)
        self._have += len(data)
        if self._have < self._need:
            return []
        data = b"".join(self._parts) if len(self._parts) > 1 else data
        messages = []
        at, end = 0, len(data)
        while end - at >= self._need:
            begin, at = at, at + self._need
            if self._compressed is not None:
                messages.append(self._message(self._compressed, data[begin:at]))
                self._compressed, self._need = None, PREFIX_BYTES
            else:  # a large message is joined of its parts without the prefix, so that it is not copied again
                self._compressed, self._need = data[begin], int.from_bytes(data[begin + 1 : at], "big")
                if self._need > self._most:
                    raise _too_large(str(self._need), self._most)
        self._have = end - at
        self._parts = [data[at:]] if self._have else []
        return messages

    def _message(self, compressed: int, data: bytes) -> bytes:
        if not compressed:
            return data
        if compressed > 1 or not self._bits:
            raise Misframed(Status.INTERNAL, f"a message's first byte is {compressed}, without grpc-encoding")
        inflater = zlib.decompressobj(self._bits)
        try:
            plain = inflater.decompress(data, self._most + 1)
        except zlib.error as error:
            raise Misframed(Status.INTERNAL, f"a message cannot be decompressed: {error}") from None
        if len(plain) > self._most:
            raise _too_large("more", self._most)
        if not inflater.eof:
            raise Misframed(Status.INTERNAL, "a compressed message ends too early")
        return plain


def _too_large(size: str, most: int) -> Misframed:
    return Misframed(Status.RESOURCE_EXHAUSTED, f"Received message larger than max ({size} vs. {most})")
