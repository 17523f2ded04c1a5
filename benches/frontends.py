"""Each frontend under attack, in bursts and when a worker ends: ``python -m benches.frontends``, some minutes.

Clients are grpcio's, and connections that send the frames they are given. docs/frontends.md has the last table.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import gzip
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import grpc
from benches.machine import machine
from benches.stopped_worker import stopped_worker
from tests.serving.frontends.conftest import Methods
from tests.serving.frontends.raw import Raw, message, request_headers
from tests.serving.frontends.test_rfc9113 import CASES, errors_of

from normfold.serving.frontends import FRONTENDS, frontend
from normfold.serving.frontends.limits import DEFAULT_LIMITS
from normfold.serving.load.processes import resident_bytes
from normfold.serving.process import loops
from normfold.serving.rpc.traffic import Traffic
from normfold.serving.wire import http2_frames as h2

FLOOD_SECONDS = 4.0
LOCAL = ("grpc.use_local_subchannel_pool", 1)


class Full(Methods):
    """The methods, with answers that are really in memory."""

    async def large(self, data: bytes) -> bytes:
        return b"x" * int(data)


async def _serve(name: str) -> None:
    made = frontend(name)(Full().table(), Traffic(), 1 << 22, DEFAULT_LIMITS, None, None)
    await made.start("127.0.0.1:0")
    print(made.address, flush=True)
    await asyncio.Event().wait()


@contextlib.contextmanager
def served(name: str) -> Iterator[tuple[str, int]]:
    """Address and process id of a server with this frontend."""
    command = [sys.executable, "-m", "benches.frontends", name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip(), process.pid
        finally:
            process.kill()


def beside(address: str, attack: Callable[[], None], method: str = "Echo") -> str:
    """The answers to another client during an attack, and its longest wait."""
    ended, waits, failed = threading.Event(), [], 0
    with grpc.insecure_channel(address, [LOCAL]) as channel:
        call = channel.unary_unary(f"/t.T/{method}")
        call(b"x", timeout=20)
        thread = threading.Thread(target=lambda: (attack(), ended.set()))
        thread.start()
        while not ended.is_set():
            begun = time.monotonic()
            try:
                call(b"x", timeout=60)
            except grpc.RpcError:
                failed += 1
            waits.append(time.monotonic() - begun)
        thread.join()
    lost = f", {failed} failed" if failed else ""
    return f"longest wait {1000 * max(waits):,.0f} ms of {len(waits):,} calls{lost}"


def flood(address: str, frames: bytes, streams: int = 0) -> Callable[[], None]:
    """Send ``frames`` again and again, on a new connection whenever the server closes one."""

    def attack() -> None:
        until = time.monotonic() + FLOOD_SECONDS
        while time.monotonic() < until:
            with contextlib.suppress(OSError):
                client = Raw(address)
                for number in range(streams):
                    client.ask(1 + 2 * number, message(b"x"), "Wait")
                while time.monotonic() < until:
                    client.send(frames)

    return attack


def window_updates(address: str, pid: int) -> str:
    """A flood of WINDOW_UPDATE."""
    return beside(address, flood(address, h2.frame(h2.WINDOW_UPDATE, 0, 0, (1).to_bytes(4, "big")) * 5000))


def goaways(address: str, pid: int) -> str:
    """A flood of GOAWAY."""
    return beside(address, flood(address, h2.frame(h2.GOAWAY, 0, 0, bytes(8)) * 4000))


def moved_windows(address: str, pid: int) -> str:
    """SETTINGS that move the windows of 1,000 streams, again and again."""
    pair = h2.settings({h2.INITIAL_WINDOW_SIZE: 1000}) + h2.settings({h2.INITIAL_WINDOW_SIZE: 70_000})
    return beside(address, flood(address, pair * 50, streams=1000))


def bombs(address: str, pid: int) -> str:
    """Eight gzip messages of 250 kB that become 250 MB each."""
    bomb = message(gzip.compress(bytes(250 << 20)), 1)

    def attack() -> None:
        client = Raw(address)
        for number in range(8):
            client.ask(1 + 2 * number, None, grpc_encoding="gzip")
            parts = [bomb[at : at + 16_384] for at in range(0, len(bomb), 16_384)]
            client.send(*(h2.frame(h2.DATA, part is parts[-1], 1 + 2 * number, part) for part in parts))
        client.send(h2.frame(h2.PING, 0, 0, b"the last"))
        with contextlib.suppress(AssertionError, OSError):
            while client.until(h2.PING).payload != b"the last":
                pass
        time.sleep(2)

    return beside(address, attack)


def rfc(address: str, pid: int) -> str:
    """The cases of RFC 9113 and RFC 7541 of tests/serving/frontends/test_rfc9113.py."""
    passed = 0
    for case in CASES:
        client = Raw(address)
        client.socket.settimeout(3)
        try:
            client.send(case.frames(client))
            with contextlib.suppress(ConnectionError):
                client.send(h2.frame(h2.PING, 0, 0, b"the last"))
            found = errors_of(client)
            passed += bool(found and found[-1] in case.errors) if case.errors else not found
        except OSError:
            pass
        finally:
            client.socket.close()
    return f"{passed} of {len(CASES)}"


def untaken(address: str, pid: int) -> str:
    """150 answers of 2 MB that the client does not take."""
    before = sum(resident_bytes([pid]))
    client = Raw(address, {h2.INITIAL_WINDOW_SIZE: 0})
    for number in range(150):
        client.ask(1 + 2 * number, message(b"2000000"), "Large")
    time.sleep(4)
    return f"{(sum(resident_bytes([pid])) - before) / 1e6:,.0f} MB"


def pinged_stream(address: str, pid: int) -> str:
    """A stream of 12,000 answers with a PING for each."""
    client = Raw(address, {h2.INITIAL_WINDOW_SIZE: 1 << 20})
    client.send(h2.frame(h2.WINDOW_UPDATE, 0, 0, (1 << 20).to_bytes(4, "big")))
    client.ask(1, None, "Stream")
    answers = 0
    with contextlib.suppress(OSError, AssertionError):
        for _ in range(12_000):
            client.send(h2.frame(h2.DATA, 0, 1, message(b"x")), h2.frame(h2.PING, 0, 0, bytes(8)))
            client.until(h2.DATA)
            answers += 1
    return f"{answers:,} answers"


def metadata(address: str, pid: int) -> str:
    """70 KB of metadata on one call, beside another on the same connection."""
    client = Raw(address)
    client.ask(1, message(b"10"), "Large")
    with contextlib.suppress(OSError, AssertionError):
        block = client.encoder.encode([*request_headers(), ("x-large", "z" * 90_000)], huffman=False)
        parts = [block[at : at + 16_000] for at in range(0, len(block), 16_000)]
        kinds = [h2.HEADERS, *[h2.CONTINUATION] * (len(parts) - 1)]
        ends = [*[0] * (len(parts) - 1), h2.END_HEADERS]
        client.send(*(h2.frame(kind, end, 3, part) for kind, end, part in zip(kinds, ends, parts, strict=True)))
        client.send(h2.frame(h2.DATA, h2.END_STREAM, 3, message(b"x")))
        while (frame := client.frame()) is not None:
            found = dict(client.decoder.decode(frame.payload)) if frame.kind == h2.HEADERS else {}
            if frame.stream == 1 and "grpc-status" in found:
                return "the other is answered" if found["grpc-status"] == "0" else "the other fails"
    return "the connection ends"


def not_utf8(address: str, pid: int) -> str:
    """Three requests with a path that is not UTF-8, while a client makes calls on connections of their own."""
    headers = [(n.encode(), b"/t.T/\xff" if n == ":path" else v.encode()) for n, v in request_headers()]
    counted: collections.Counter[str] = collections.Counter()
    for number in range(60):
        if number % 20 == 10:
            client = Raw(address)
            client.send(h2.frame(h2.HEADERS, h2.END_HEADERS | h2.END_STREAM, 1, client.encoder.encode(headers)))
        with grpc.insecure_channel(address, [LOCAL, ("number", number)]) as channel:
            try:
                channel.unary_unary("/t.T/Soon")(b"x", timeout=10)
                counted["answered"] += 1
            except grpc.RpcError:
                counted["failed"] += 1
    return f"{counted['answered']} of 60 calls answered"


def burst(address: str, pid: int) -> str:
    """5,000 calls at once on one connection, and calls as those to health on another."""
    found: collections.Counter[str] = collections.Counter()

    def attack() -> None:
        with grpc.insecure_channel(address, [LOCAL]) as channel:
            method = channel.unary_unary("/t.T/Soon")
            calls = [method.future(b"x", timeout=120) for _ in range(5000)]
            found.update(call.code().name for call in calls)

    others = beside(address, attack, "First")
    return f"{', '.join(f'{count:,} {code}' for code, count in found.items())}; health: {others}"


ROWS: dict[str, Callable[[str, int], str]] = {
    "WINDOW_UPDATE flood, 4 s; another client": window_updates,
    "GOAWAY flood, 4 s; another client": goaways,
    "SETTINGS that move the windows of 1,000 streams, 4 s; another client": moved_windows,
    "eight gzip messages of 250 kB that become 250 MB each; another client": bombs,
    "cases of RFC 9113 and RFC 7541": rfc,
    "150 answers of 2 MB that the client does not take: memory": untaken,
    "a stream of 12,000 answers with a PING for each": pinged_stream,
    "70 KB of metadata on one call, another on the same connection": metadata,
    "three requests with a path that is not UTF-8, while others call": not_utf8,
    "5,000 calls at once on one connection": burst,
}


def main() -> None:
    """Measure every row with every frontend and print the table."""
    print(machine())
    print(f"\n| | {' | '.join(f'`{name}`' for name in FRONTENDS)} |\n|---|{'---|' * len(FRONTENDS)}", flush=True)
    for what, measure in ROWS.items():
        cells = []
        for name in FRONTENDS:
            with served(name) as (address, pid):
                cells.append(measure(address, pid))
        print(f"| {what} | {' | '.join(cells)} |", flush=True)
    cells = [stopped_worker(name) for name in FRONTENDS]
    print(f"| SIGTERM to one of two workers, four times, while eight clients call | {' | '.join(cells)} |")


if __name__ == "__main__":
    if sys.argv[1:]:
        loops.run(_serve(sys.argv[1]))
    else:
        main()
