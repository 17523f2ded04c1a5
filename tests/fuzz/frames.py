"""The bytes of whole connections: good ones whose frames were changed, and frames that were drawn."""

from __future__ import annotations

import random
import socket
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import hpack
from tests.fuzz.grammar import Grammar

from normfold.serving.wire import http2_frames as h2

#: A connection that the server does not close this long after the client's end hangs.
SECONDS = 20.0
KINDS = (*range(10), 0x10, 0xFF)
FLAGS = (0, 1, 4, 5, 8, 0x20, 0x2D, 0xFF)
STREAMS = (0, 1, 1, 1, 3, 3, 5, 2, 7, (1 << 31) - 1, 1 << 31)


@dataclass
class Conversation:
    """What one client sends on one connection."""

    frames: list[bytes] = field(default_factory=list)

    @property
    def data(self) -> bytes:
        """All of it."""
        return h2.PREFACE + b"".join(self.frames)


class Frames:
    """Draws conversations by ``chance``; good ones ask ``requests``, each of which is a path and a message."""

    def __init__(self, chance: random.Random, requests: Sequence[tuple[str, bytes]]) -> None:
        self._chance, self._requests = chance, requests
        self._bytes = Grammar(chance)

    def good(self) -> Conversation:
        """One to four calls, as a client of gRPC sends them."""
        encoder = hpack.Encoder()
        frames = [h2.settings({h2.INITIAL_WINDOW_SIZE: 1 << 20})]
        for number in range(self._chance.randint(1, 4)):
            path, message = self._chance.choice(self._requests)
            stream = 2 * number + 1
            headers = [
                *((":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "x")),
                *(("te", "trailers"), ("content-type", "application/grpc"), ("x-a", "b" * self._chance.randint(0, 40))),
            ]
            body = b"\0" + len(message).to_bytes(4, "big") + message
            cut = self._chance.randrange(len(body))
            frames.append(h2.frame(h2.HEADERS, h2.END_HEADERS, stream, encoder.encode(headers)))
            frames += [h2.frame(h2.DATA, 0, stream, body[:cut]), h2.frame(h2.DATA, h2.END_STREAM, stream, body[cut:])]
        return Conversation(frames)

    def drawn(self) -> bytes:
        """The bytes of a good conversation with one to three things changed."""
        conversation = self.good()
        for _ in range(self._chance.randint(1, 3)):
            self._change(conversation.frames)
        data = conversation.data
        if self._chance.random() < 0.15:
            return self._bytes.broken(data)
        return data[: self._chance.randrange(len(data))] if self._chance.random() < 0.05 else data

    def _change(self, frames: list[bytes]) -> None:
        at, kind = self._chance.randrange(len(frames)), self._chance.randrange(9)
        head, payload = bytearray(frames[at][:9]), frames[at][9:]
        if kind == 0 and len(frames) > 1:
            del frames[at]
        elif kind == 1:
            frames.insert(at, self._chance.choice(frames))
        elif kind == 2:
            frames.append(frames.pop(at))
        elif kind == 3:
            frames.insert(at, self._frame())
        elif kind == 4:
            head[4] = self._chance.choice(FLAGS)
            frames[at] = bytes(head) + payload
        elif kind == 5:
            head[5:9] = (self._chance.choice(STREAMS) & 0xFFFFFFFF).to_bytes(4, "big")
            frames[at] = bytes(head) + payload
        elif kind == 6:
            head[3] = self._chance.choice(KINDS)
            frames[at] = bytes(head) + payload
        elif kind == 7:
            size = max(0, len(payload) + self._chance.choice((-5, -1, 1, 9, 1 << 14, 1 << 20)))
            frames[at] = size.to_bytes(3, "big") + bytes(head[3:]) + payload
        else:
            broken = self._bytes.broken(payload)
            frames[at] = len(broken).to_bytes(3, "big") + bytes(head[3:]) + broken

    def _frame(self) -> bytes:
        size = self._chance.choice((0, 1, 3, 4, 5, 6, 8, 8, 12, 40, 17_000))
        small = self._chance.random() < 0.5
        payload = bytes(size - 1) + b"\1" if small and size else self._chance.randbytes(size)
        kind, flags, stream = (self._chance.choice(values) for values in (KINDS, FLAGS, STREAMS))
        return h2.frame(kind, flags, stream, payload)


def outcome(address: str, data: bytes, seconds: float = SECONDS) -> str:
    """How a connection ends on which a client sends ``data`` and then its end.

    "closed" or "answered N" for N streams that ended with a status; "goaway CODE"; "hangs"; "not HTTP/2: …" where the
    server's bytes are no frames.
    """
    got = bytearray()
    with _connected(address, seconds) as one:
        try:
            one.sendall(data)
            one.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the server closed first
        try:
            while more := one.recv(1 << 16):
                got += more
        except TimeoutError:
            return "hangs"
        except OSError:
            pass
    return described(bytes(got))


def _connected(address: str, seconds: float) -> socket.socket:
    """A connection; for ``seconds`` it is tried again, because a grpcio frontend listens anew after an odd path."""
    host, _, port = address.rpartition(":")
    until = time.monotonic() + seconds
    while True:
        try:
            return socket.create_connection((host, int(port)), seconds)
        except (ConnectionRefusedError, ConnectionResetError):
            if time.monotonic() > until:
                raise
            time.sleep(0.02)


def described(data: bytes) -> str:
    """What the server's ``data`` say, as ``outcome`` has it."""
    at, answered, code = 0, 0, 0
    while at + 9 <= len(data):
        size, kind, flags = int.from_bytes(data[at : at + 3], "big"), data[at + 3], data[at + 4]
        stream = int.from_bytes(data[at + 5 : at + 9], "big")
        payload = data[at + 9 : at + 9 + size]
        if kind > h2.CONTINUATION or size > 1 << 20:
            return f"not HTTP/2: {data[at : at + 20].hex()}"
        if len(payload) < size:
            break  # a connection that is reset may lose the end
        if kind == h2.GOAWAY:
            code = code or int.from_bytes(payload[4:8], "big")
        answered += bool(kind == h2.HEADERS and flags & h2.END_STREAM and stream)
        at += 9 + size
    if code:
        return f"goaway {code}"
    return f"answered {answered}" if answered else "closed"


@dataclass
class Ends:
    """How connections ended, and the bytes of each that hangs or was answered with something else than frames."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


def fuzz_frames(address: str, requests: Sequence[tuple[str, bytes]], cases: int, seed: int = 0) -> Ends:
    """Make ``cases`` connections with drawn bytes."""
    frames, found = Frames(random.Random(seed), requests), Ends()
    for _ in range(cases):
        data = frames.drawn()
        end = outcome(address, data)
        found.counts[end.partition(":")[0]] += 1
        if end == "hangs" or end.startswith("not"):
            found.faults.append(f"{end}: {data.hex()}")
    return found
