"""Clients that are slow, that vanish, and that send as much as they can, while good clients ask."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tests.reliability.load import Load
from tests.reliability.outcomes import Outcomes
from tests.reliability.servers import ServerProcess
from tests.serving.frontends.raw import Raw, message
from tests.waiting import wait_until

from normfold.protos import grpc_service as pb
from normfold.serving.load.processes import tree
from normfold.serving.wire import http2_frames as h2

PATH = "/inference.GRPCInferenceService/ModelInfer"
Harm = Callable[[str, random.Random], None]


def request(rows: int) -> bytes:
    """A message that asks for ``rows`` rows."""
    x = np.ones((rows, 4), np.float32)
    wanted = pb.ModelInferRequest(model_name="good", raw_input_contents=[x.tobytes()])
    wanted.inputs.add(name="x", datatype="FP32", shape=x.shape)
    return message(wanted.SerializeToString())


def connected(address: str, settings: dict[int, int] | None = None, greet: bool = True) -> Raw:
    """A connection whose sends give up after a few seconds."""
    raw = Raw(address, settings, greet)
    raw.socket.settimeout(5)
    return raw


def ask(raw: Raw, stream: int, data: bytes | None) -> None:
    """A request for an inference; None: only its headers."""
    raw.ask(stream, data, **{":path": PATH})


def vanish(raw: Raw) -> None:
    """Close with a reset of TCP, as the kernel does for a process that was killed."""
    raw.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    raw.socket.close()


def drip(address: str, chance: random.Random) -> None:
    """A request byte by byte, never whole."""
    raw = connected(address)
    ask(raw, 1, None)
    for byte in request(2)[: chance.randint(5, 60)]:
        raw.send(h2.frame(h2.DATA, 0, 1, bytes([byte])))
        time.sleep(0.002)
    vanish(raw)


def never_reads(address: str, chance: random.Random) -> None:
    """Large answers that nobody takes."""
    raw = connected(address, {h2.INITIAL_WINDOW_SIZE: h2.LARGEST_WINDOW})
    for number in range(20):
        ask(raw, 2 * number + 1, request(2000))
    time.sleep(0.05 + 0.1 * chance.random())
    vanish(raw)


def leaves_with_a_request_open(address: str, chance: random.Random) -> None:
    """Headers, and perhaps a part of the message, and then nothing."""
    raw = connected(address)
    ask(raw, 1, None)
    whole = request(9000)
    raw.send(h2.frame(h2.DATA, 0, 1, whole[: chance.randrange(8000)]))
    vanish(raw)


def leaves_within_a_frame(address: str, chance: random.Random) -> None:
    """A frame that is not whole."""
    raw = connected(address)
    raw.send(h2.frame(chance.randrange(10), 0, 1, bytes(8000))[: chance.randint(1, 5000)])
    vanish(raw)


def leaves_before_the_answer(address: str, chance: random.Random) -> None:
    """Whole requests, whose answers find nobody."""
    raw = connected(address)
    for number in range(chance.randint(1, 30)):
        ask(raw, 2 * number + 1, request(chance.choice((1, 8, 500))))
    vanish(raw)


def cancels(address: str, chance: random.Random) -> None:
    """Requests that are reset at once or a little later."""
    raw = connected(address)
    for number in range(50):
        ask(raw, 2 * number + 1, request(1))
        if chance.random() < 0.8:
            raw.send(h2.frame(h2.RST_STREAM, 0, 2 * number + 1, (8).to_bytes(4, "big")))
    raw.socket.close()


def is_silent(address: str, chance: random.Random) -> None:
    """A connection without a word."""
    with contextlib.closing(connected(address, greet=chance.random() < 0.5).socket):
        time.sleep(0.05)


def flood(*frames: bytes, times: int) -> Harm:
    """``frames``, ``times`` times on one connection, as fast as the server takes them."""

    def harm(address: str, chance: random.Random) -> None:
        raw = connected(address)
        block = b"".join(frames) * 100
        for _ in range(times // 100):
            raw.send(block)
        raw.socket.close()

    return harm


def empty_data(address: str, chance: random.Random) -> None:
    """A request whose data never come, in frames without end."""
    raw = connected(address)
    ask(raw, 1, None)
    for _ in range(200):
        raw.send(h2.frame(h2.DATA, 0, 1) * 100)
    raw.socket.close()


def moving_windows(address: str, chance: random.Random) -> None:
    """Answers that wait for windows, which SETTINGS make larger and smaller."""
    raw = connected(address, {h2.INITIAL_WINDOW_SIZE: 0})
    for number in range(100):
        ask(raw, 2 * number + 1, request(8))
    for window in range(0, 2000, 2):
        raw.send(*(h2.settings({h2.INITIAL_WINDOW_SIZE: size}) for size in (window + 1, window)))
    raw.socket.close()


def resets(address: str, chance: random.Random) -> None:
    """Streams that are opened and reset at once (CVE-2023-44487)."""
    raw = connected(address)
    for first in range(1, 4000, 200):
        frames = []
        for stream in range(first, first + 200, 2):
            block = raw.encoder.encode(HEADERS)
            frames += [h2.frame(h2.HEADERS, h2.END_HEADERS, stream, block)]
            frames += [h2.frame(h2.RST_STREAM, 0, stream, (8).to_bytes(4, "big"))]
        raw.send(*frames)
    raw.socket.close()


HEADERS = [
    *((":method", "POST"), (":scheme", "http"), (":path", PATH), (":authority", "x")),
    *(("te", "trailers"), ("content-type", "application/grpc")),
]


def large_headers(address: str, chance: random.Random) -> None:
    """A header of 64 KiB, and then a header block without end (CONTINUATION flood)."""
    raw = connected(address)
    block = raw.encoder.encode([*HEADERS, ("x-large", "a" * (1 << 16))], huffman=False)
    parts = [block[at : at + 16_000] for at in range(0, len(block), 16_000)]
    raw.send(h2.frame(h2.HEADERS, 0, 1, parts[0]))
    for part in parts[1:]:
        raw.send(h2.frame(h2.CONTINUATION, 0, 1, part))
    for _ in range(1000):
        raw.send(h2.frame(h2.CONTINUATION, 0, 1, b"\x40\x01a\x01b"))
    raw.socket.close()


def noise(address: str, chance: random.Random) -> None:
    """Bytes that are nothing, with or without the preface."""
    raw = connected(address, greet=chance.random() < 0.5)
    raw.send(chance.randbytes(chance.randint(1, 20_000)))
    raw.socket.close()


def many_connections(address: str, chance: random.Random) -> None:
    """200 connections at a time."""
    with contextlib.ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(contextlib.closing(connected(address).socket))


SLOW_AND_VANISHING: tuple[Harm, ...] = (
    *(drip, never_reads, leaves_with_a_request_open, leaves_within_a_frame),
    *(leaves_before_the_answer, cancels, is_silent),
)
FLOODS: tuple[Harm, ...] = (
    flood(h2.frame(h2.PING, 0, 0, bytes(8)), times=20_000),
    flood(h2.frame(h2.SETTINGS, 0, 0, b""), times=20_000),
    flood(h2.frame(h2.WINDOW_UPDATE, 0, 0, (1).to_bytes(4, "big")), times=20_000),
    flood(h2.frame(h2.PRIORITY, 0, 1, bytes(4) + b"\1"), times=20_000),
    flood(h2.frame(h2.GOAWAY, 0, 0, bytes(8)), times=20_000),
    flood(h2.frame(0x16, 0, 0, bytes(8)), times=20_000),
    *(empty_data, moving_windows, resets, large_headers, noise, many_connections),
)


def harmed(server: ServerProcess, kinds: tuple[Harm, ...], times: int, seed: int = 0) -> Outcomes:
    """Good clients ask while each of ``kinds`` does its harm ``times`` times.

    Raises AssertionError when the server does not close what it opened for them.
    """
    chance = random.Random(seed)
    before = files(server)
    with Load(server.address) as load:
        for _ in range(times):
            for kind in kinds:
                with contextlib.suppress(OSError):  # the server closed first
                    kind(server.address, chance)
                load.wait_for(5)
        load.wait_for(20)
    wait_until(lambda: files(server) <= before)
    return load.outcomes


def files(server: ServerProcess) -> int:
    """Open files of the server and of the processes below it."""
    return sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in tree([server.pid]))
