"""gRPC's messages in the data of a stream: one byte (1: compressed), four bytes for the size, the message."""

from __future__ import annotations

from normfold.serving.errors import Status
from normfold.serving.frontends.http2.inflation import ENCODINGS, Inflation, too_large
from normfold.serving.frontends.http2.joining import INLINE_BYTES, Joining, Later
from normfold.serving.frontends.http2.limits import CallFault

PREFIX_BYTES = 5

#: Memory for each part of a message, or each message that waits, beside its bytes.
PART_BYTES = 64
#: Messages that are cut out of the data at a time.
MOST_MESSAGES = 512


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
        """Whether a message has begun, and not all of it has come."""
        return (self._have > 0 or self._compressed is not None) and not self.more

    @property
    def more(self) -> bool:
        """Whether more of the messages that have come are to be cut out: ``feed`` must be called again."""
        return self._have >= self._need

    @property
    def missing(self) -> int:
        """The bytes that must still come: of the message that has begun, or of the next prefix."""
        return self._need - self._have

    @property
    def held(self) -> int:
        """The memory of the message that has begun, in bytes."""
        return self._have + PART_BYTES * len(self._parts)

    def feed(self, data: bytes) -> list[bytes | Later]:
        """The messages that end in ``data``: compressed ones as they came, large ones in parts. Raises CallFault.

        Not many more than MOST_MESSAGES at a time: with ``more`` call it again, with b"" if nothing more has come.
        """
        if data:
            self._parts.append(data)
            self._have += len(data)
        if self._have < self._need:
            return []
        messages: list[bytes | Later] = []
        if self._compressed == 0 and self._need > INLINE_BYTES and len(self._parts) > 1:
            *parts, last = self._parts
            at = len(last) - (self._have - self._need)
            messages.append(Joining([*parts, last[:at]]))
            data = last[at:]
            self._compressed, self._need = None, PREFIX_BYTES
        else:
            data = b"".join(self._parts)
        at, end = 0, len(data)
        while end - at >= self._need and len(messages) < MOST_MESSAGES:
            begin, at = at, at + self._need
            if self._compressed is not None:
                messages.append(self._message(self._compressed, data[begin:at]))
                self._compressed, self._need = None, PREFIX_BYTES
            else:  # a large message is joined of its parts without the prefix, so that it is not copied again
                self._compressed, self._need = data[begin], int.from_bytes(data[begin + 1 : at], "big")
                if self._need > self._most:
                    raise too_large(str(self._need), self._most)
        self._have = end - at
        self._parts = [data[at:]] if self._have else []
        return messages

    def _message(self, compressed: int, data: bytes) -> bytes | Later:
        if not compressed or not data:
            return data
        if compressed > 1 or not self._bits:
            raise CallFault(Status.INTERNAL, f"a message's first byte is {compressed}, without grpc-encoding")
        return Inflation(data, self._bits, self._most)
