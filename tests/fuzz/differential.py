"""The same drawn bytes to both frontends: what can be sent in many ways has the same status and data from both."""

from __future__ import annotations

import base64
import gzip
import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

import hpack
from tests.serving.frontends.raw import Raw, message

from normfold.protos import health as pb
from normfold.serving.wire import http2_frames as h2

PING = h2.frame(h2.PING, 0, 0, b"12345678")
#: The parts of a case that decide where a frontend may differ.
Features = set[str]


@dataclass
class Case:
    """The bytes of a connection with one request on stream 1, and what is special about it."""

    data: bytes = b""
    features: Features = field(default_factory=set)


#: A difference that is right: the feature, the outcome of http2, that of grpcio ("*": any), and the reason.
DIFFERENCES: tuple[tuple[str, str, str, str], ...] = (
    ("padding", "*", "reset 1", "gRPC's library takes no DATA frame with padding, RFC 9113, 6.1, allows it"),
    ("no method", "12", "13", "two mistakes, a path and a timeout: http2 names the path, grpcio the timeout"),
    ("no method", "12", "4", "the same, and the timeout is over at once"),
    *(
        (f"a flipped bit in {encoding}", "13", "13", "grpcio drops the answer before a message that cannot be inflated")
        for encoding in ("gzip", "deflate")
    ),
    ("pings", "*", "goaway 11", "gRPC's library ends a connection with a third PING within 10 s"),
)


class Requests:
    """Draws cases by ``chance``: the methods of the frontends' tests, asked in all ways that are allowed."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance

    def drawn(self) -> Case:
        """One case."""
        case = Case()
        method = self._pick("Echo", "Echo", "Stream", "Stream", "Numbers", "Fail", "Soon", "Nothing")
        headers = self._headers(method, case.features)
        body = self._body(method, dict(headers), case.features)
        frames = [h2.PREFACE, h2.settings({h2.INITIAL_WINDOW_SIZE: 1 << 20} if self._often(0.5) else {})]
        frames += self._head(headers)
        frames += self._data(body, case.features)
        if sum(frame == PING for frame in frames) > 2:
            case.features.add("pings")
        case.data = b"".join(frames)
        return case

    def _pick(self, *values: str) -> str:
        return self._chance.choice(values)

    def _often(self, share: float) -> bool:
        return self._chance.random() < share

    def _headers(self, method: str, features: Features) -> list[tuple[str, str]]:
        path = f"/t.T/{method}"
        if method == "Nothing":
            features.add("no method")
            path = self._pick(
                "/t.T/Nothing", "/t.T/", "/t.T", "/", "/t.U/Echo", "/t.T/Echo/", "//t.T/Echo", "/t.T/echo"
            )
        headers = [(":method", "POST"), (":scheme", self._pick("http", "http", "https")), (":path", path)]
        headers += [(":authority", self._pick("x", "localhost:1", "a.b"))]
        more = [("te", "trailers"), ("content-type", self._pick("application/grpc", "application/grpc+proto"))]
        more += [("grpc-encoding", self._pick("identity", "gzip", "deflate"))] if self._often(0.4) else []
        more += [("grpc-accept-encoding", self._pick("identity", "identity,gzip", "x"))] if self._often(0.3) else []
        if self._often(0.3):
            more += [("grpc-timeout", self._pick("20S", "99999999H", "1H", "00030S", "60000m", "0S", "1x", "", "-1S"))]
        if self._often(0.3):
            more += [("user-agent", self._pick("grpc-go/1.80", "", "a" * 200))]
        for _ in range(self._chance.choice((0, 0, 1, 3, 20))):
            if self._often(0.3):
                value = base64.b64encode(self._chance.randbytes(self._chance.randint(0, 40))).decode()
                more += [("x-b-bin", value.rstrip("=") if self._often(0.5) else value)]
            else:
                more += [(self._pick("x-a", "x_c", "x.d", "x"), self._pick("", "1", "b c", "~" * 100, "a,b", '"'))]
        self._chance.shuffle(more)
        return headers + more

    def _body(self, method: str, headers: dict[str, str], features: Features) -> bytes:
        count = 1 if method in ("Echo", "Numbers", "Fail", "Soon") else self._chance.randint(0, 4)
        if method != "Nothing" and self._often(0.05):
            count += 1
        body = b""
        for _ in range(count):
            content = self._chance.randbytes(self._chance.choice((0, 1, 5, 100, 3000)))
            if method == "Numbers":
                content = pb.HealthCheckRequest(service=str(self._chance.randint(0, 4))).SerializeToString()
            if method == "Fail":
                content = self._pick("plain", "two\nlines", "é and %", "").encode()
            body += self._message(content, headers.get("grpc-encoding", ""), features)
        return body

    def _message(self, content: bytes, encoding: str, features: Features) -> bytes:
        pack = {"gzip": gzip.compress, "deflate": zlib.compress}.get(encoding)
        if pack is None or self._often(0.4):
            return message(content)
        packed = pack(content)
        if self._often(0.2):
            at = self._chance.randrange(len(packed))
            packed = packed[:at] + bytes([packed[at] ^ 1 << self._chance.randrange(8)]) + packed[at + 1 :]
            features.add(f"a flipped bit in {encoding}")
        return message(packed, 1)

    def _head(self, headers: list[tuple[str, str]]) -> list[bytes]:
        block = hpack.Encoder().encode(headers, huffman=self._often(0.5))
        flags, before = 0, b""
        if self._often(0.2):
            flags, before = h2.WITH_PRIORITY, b"\0\0\0\3\7"
        cut = self._chance.randrange(len(block)) if self._often(0.3) else len(block)
        if cut == len(block):
            return [h2.frame(h2.HEADERS, flags | h2.END_HEADERS, 1, before + block), *self._between()]
        first = h2.frame(h2.HEADERS, flags, 1, before + block[:cut])
        return [first, h2.frame(h2.CONTINUATION, h2.END_HEADERS, 1, block[cut:]), *self._between()]

    def _data(self, body: bytes, features: Features) -> list[bytes]:
        frames = []
        cuts = sorted(self._chance.randrange(len(body) + 1) for _ in range(self._chance.choice((0, 0, 1, 3))))
        parts = [body[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(body)], strict=True)]
        for number, part in enumerate(parts):
            last = number == len(parts) - 1
            apart = last and self._often(0.3)  # the end in a frame of its own
            flags = h2.END_STREAM if last and not apart else 0
            if self._often(0.2):
                features.add("padding")
                pad = self._chance.randint(0, 20)
                frames.append(h2.frame(h2.DATA, flags | h2.PADDED, 1, bytes([pad]) + part + bytes(pad)))
            else:
                frames.append(h2.frame(h2.DATA, flags, 1, part))
            frames += [] if last else self._between()
            frames += [h2.frame(h2.DATA, h2.END_STREAM, 1, b"")] if apart else []
        return frames

    def _between(self) -> list[bytes]:
        """Frames that mean nothing to the call."""
        kinds = (
            PING,
            h2.frame(h2.WINDOW_UPDATE, 0, 0, b"\0\0\1\0"),
            h2.frame(h2.WINDOW_UPDATE, 0, 1, b"\0\0\1\0"),
            h2.frame(h2.PRIORITY, 0, 1, b"\0\0\0\3\7"),
            h2.frame(0x16, 0xFF, 0, b"?"),
            h2.frame(h2.SETTINGS, 0, 0, b""),
        )
        return [self._chance.choice(kinds) for _ in range(self._chance.choice((0, 0, 0, 1, 2)))]


def outcome(address: str, data: bytes, seconds: float = 20.0) -> tuple[str, str, bytes]:
    """The status of the call, or the way in which it ends without one, its details, and its data."""
    client = Raw(address, greet=False)
    client.socket.settimeout(seconds)
    client.send(data)
    got, found = b"", dict[str, str]()
    try:
        while (frame := client.frame()) is not None:
            if frame.kind == h2.GOAWAY:
                return f"goaway {int.from_bytes(frame.payload[4:8], 'big')}", "", got
            if frame.stream != 1:
                continue
            if frame.kind == h2.RST_STREAM:
                return f"reset {int.from_bytes(frame.payload, 'big')}", "", got
            if frame.kind == h2.DATA:
                got += frame.payload
            elif frame.kind == h2.HEADERS:
                found |= dict(client.decoder.decode(frame.payload))
                if frame.flags & h2.END_STREAM:
                    status = found.get("grpc-status", f"http {found[':status']}")
                    return status, found.get("grpc-message", ""), got
    except TimeoutError:
        return "nothing", "", got
    finally:
        client.socket.close()
    return "closed", "", got


def compared(
    http2: str, grpcio: str, cases: int, seed: int, note: Callable[[str], None] = print
) -> tuple[dict[str, int], list[str]]:
    """How often each difference of the table occurred, and a line for each difference that is not there."""
    requests = Requests(random.Random(seed))
    known, faults = dict[str, int](), list[str]()
    for _ in range(cases):
        case = requests.drawn()
        ours, theirs = (outcome(address, case.data) for address in (http2, grpcio))
        if ours[0] == theirs[0] and ours[2] == theirs[2]:
            continue
        reason = why(case.features, ours[0], theirs[0])
        if reason:
            known[reason] = known.get(reason, 0) + 1
        else:
            faults.append(f"http2 {ours[:2]}, grpcio {theirs[:2]}, {sorted(case.features)}: {case.data.hex()}")
    return known, faults


def why(features: Features, ours: str, theirs: str) -> str:
    """The reason of a difference, from the table; "" for one that is not there."""
    for feature, first, second, reason in DIFFERENCES:
        if feature in features and first in ("*", ours) and second in ("*", theirs):
            return reason
    return ""
