"""Good conversations of HTTP/2, however they are cut into frames and reads: every call is answered right."""

from __future__ import annotations

import asyncio
import os
import random

import hpack
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.serving.frontends.conftest import MOST_BYTES, Methods
from tests.serving.frontends.raw import NoSocket, message, request_headers

from normfold.serving.frontends.http2.call import Service
from normfold.serving.frontends.http2.connection import ServerConnection
from normfold.serving.frontends.http2.connection_places import ConnectionPlaces
from normfold.serving.frontends.http2.holding import Holding
from normfold.serving.frontends.http2.requests import Requests
from normfold.serving.frontends.limits import DEFAULT_LIMITS
from normfold.serving.rpc.traffic import Traffic
from normfold.serving.wire import http2_frames as h2

#: The largest window of a connection.
WIDE = h2.frame(h2.WINDOW_UPDATE, 0, 0, (h2.LARGEST_WINDOW - h2.DEFAULT_WINDOW).to_bytes(4, "big"))
PAD = 7


def cuts(chance: random.Random, size: int, most: int) -> list[int]:
    """Where to cut ``size`` bytes into at most ``most`` pieces: often near an end."""
    places = [chance.choice([1, size - 1, chance.randint(1, size)]) for _ in range(chance.randrange(most))]
    return sorted({place for place in places if 0 < place < size})


def pieces(data: bytes, places: list[int]) -> list[bytes]:
    return [data[begin:end] for begin, end in zip([0, *places], [*places, len(data)], strict=True)]


def headers(chance: random.Random, encoder: hpack.Encoder, number: int, method: str) -> bytes:
    """The headers of a call in one block, which may be long, in one frame or more."""
    more = {f"x-{n}": "v" * chance.choice([1, 50, 1500, 3000]) for n in range(chance.randrange(4))}
    block = encoder.encode(request_headers(method, **more), huffman=chance.random() < 0.3)
    parts = pieces(block, cuts(chance, len(block), 4))
    parts = [part[at : at + h2.DEFAULT_FRAME] for part in parts for at in range(0, len(part), h2.DEFAULT_FRAME)]
    first, *rest = parts
    flags = 0 if rest else h2.END_HEADERS
    if chance.random() < 0.2:
        flags, first = flags | h2.PADDED, bytes([PAD]) + first + bytes(PAD)
    frames = [h2.frame(h2.HEADERS, flags, number, first)]
    for at, part in enumerate(rest, 1):
        frames.append(h2.frame(h2.CONTINUATION, h2.END_HEADERS * (at == len(rest)), number, part))
    return b"".join(frames)


def body(chance: random.Random, number: int, data: bytes) -> list[bytes]:
    """The data of a call in frames, the last of which ends the request; it may be empty."""
    parts = pieces(data, cuts(chance, len(data), 5)) + [b""] * (chance.random() < 0.2)
    frames = []
    for at, part in enumerate(parts, 1):
        flags = h2.END_STREAM * (at == len(parts))
        if chance.random() < 0.2:
            flags, part = flags | h2.PADDED, bytes([PAD]) + part + bytes(PAD)
        frames.append(h2.frame(h2.DATA, flags, number, part))
    return frames


def conversation(chance: random.Random, table: bool) -> tuple[bytes, dict[int, bytes]]:
    """The frames of some calls, mixed, and the data of each answer by the number of its stream."""
    encoder = hpack.Encoder()
    if not table:
        encoder.header_table_size = 0
    wanted: dict[int, bytes] = {}
    begin: list[tuple[int, str]] = []
    out = [h2.PREFACE, h2.settings({h2.INITIAL_WINDOW_SIZE: 1 << 30}), WIDE]
    for number in range(1, 2 * chance.randint(1, 8), 2):
        method = chance.choice(["Echo", "Soon", "Stream", "Iterate"])
        count = chance.randint(1, 5) if method in ("Stream", "Iterate") else 1
        sent = b"".join(message(chance.randbytes(chance.choice([0, 3, 700]))) for _ in range(count))
        wanted[number] = sent
        begin.append((number, method))
    opened: dict[int, list[bytes]] = {}
    while begin or opened:
        if begin and (not opened or chance.random() < 0.5):
            number, method = begin.pop(0)
            out.append(headers(chance, encoder, number, method))
            opened[number] = body(chance, number, wanted[number])
        else:
            number = chance.choice(list(opened))
            out.append(opened[number].pop(0))
            if not opened[number]:
                del opened[number]
        if chance.random() < 0.1:
            out.append(h2.frame(h2.PING, 0, 0, bytes(8)))
    return b"".join(out), wanted


async def answered(data: list[bytes]) -> dict[int, tuple[bytes, str]]:
    """What a server answers that reads ``data`` one after the other: data and status by the number of the stream."""
    service = Service(Requests(Methods().table()), Traffic(), MOST_BYTES, DEFAULT_LIMITS, Holding(1 << 30))
    connection, socket = ServerConnection(service, ConnectionPlaces(1)), NoSocket()
    connection.connection_made(socket)
    for part in data:
        connection.data_received(part)
        while connection._behind:
            await asyncio.sleep(0)
    while connection.calls:
        await asyncio.sleep(0.001)
    await asyncio.sleep(0)
    found: dict[int, bytes] = {}
    statuses: dict[int, str] = {}
    decoder = hpack.Decoder()
    for frame in socket.frames():
        assert frame.kind not in (h2.GOAWAY, h2.RST_STREAM), frame
        if frame.kind == h2.DATA:
            found[frame.stream] = found.get(frame.stream, b"") + frame.payload
        elif frame.kind == h2.HEADERS and "grpc-status" in (read := dict(decoder.decode(frame.payload))):
            statuses[frame.stream] = read["grpc-status"]
    assert (service.traffic.in_flight, service.holding.bytes) == (0, connection._counted)
    return {number: (found.get(number, b""), status) for number, status in statuses.items()}


@settings(max_examples=int(os.environ.get("NORMFOLD_EXAMPLES", "150")), deadline=None)
@given(st.integers(0, 1 << 40), st.booleans(), st.sampled_from([1, 3, 30]))
def test_a_conversation_is_answered_however_it_is_cut(seed, table, reads):
    chance = random.Random(seed)
    data, wanted = conversation(chance, table)
    got = asyncio.run(answered(pieces(data, cuts(chance, len(data), reads))))
    assert got == {number: (sent, "0") for number, sent in wanted.items()}
