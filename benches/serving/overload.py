"""More requests than a server can answer: goodput, the wait of what it accepts, health and memory meanwhile."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from benches.serving.networks import busy, publish
from benches.serving.roster import serve
from benches.serving.running import Running, free_ports, running

from normfold.protos import health
from normfold.serving.client.calls import infer_request
from normfold.serving.frontends import FRONTENDS as TRANSPORTS
from normfold.serving.load import processes
from normfold.serving.load.calls import UnaryCalls
from normfold.serving.load.generator import Load, run

Figures = dict[str, Any]

#: Multiples of the capacity that are offered.
TIMES = (1, 2, 5, 10)
#: The deadline of every call, in seconds, and the connections that they come on in turn.
DEADLINE, CONNECTIONS = 1.0, 16
#: Calls in flight that find the capacity, and those of 256 KB that are kept in flight.
IN_FLIGHT, LARGE_IN_FLIGHT = 32, 512
#: Samples of a row; 65,536 of them are 256 KB.
LENGTH, LARGE_LENGTH = 512, 1 << 16

CONFIG = """
max_batch_size: 8 dynamic_batching {}
input { name: "x" data_type: TYPE_FP32 dims: [1, -1] }
output { name: "y" data_type: TYPE_FP32 dims: [64] }
"""


@dataclass
class Watched:
    """What was seen beside the load: the waits for health, and the memory."""

    health_ms: list[float] = field(default_factory=list)
    failures: int = 0
    resident_bytes: list[int] = field(default_factory=list)


@contextlib.contextmanager
def watched(server: Running) -> Iterator[Watched]:
    """Ask for health every 20 ms, on a connection of its own, and look at the memory."""
    found, done = Watched(), threading.Event()

    def watch() -> None:
        with grpc.insecure_channel(server.address) as channel:
            check = channel.unary_unary(
                "/grpc.health.v1.Health/Check",
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=health.HealthCheckResponse.FromString,
            )
            while not done.wait(0.02):
                begun = time.perf_counter()
                try:
                    check(health.HealthCheckRequest(), timeout=10)
                except grpc.RpcError:
                    found.failures += 1
                found.health_ms.append((time.perf_counter() - begun) * 1e3)
                found.resident_bytes.append(sum(processes.resident_bytes([server.pid])))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()


def overload(seconds: float, work: Path) -> Figures:
    """Each frontend at 1, 2, 5 and 10 times what it answers with 32 calls in flight; then messages of 256 KB."""
    rows, large = [], []
    repository = work / "overload" / "repository"
    publish(busy(), repository / "busy", CONFIG)
    for transport in TRANSPORTS:
        port = free_ports(1)[0]
        command = serve(repository, port, "--frontend", transport, "--metrics-listen", "off")
        with running(f"normfold, {transport}", command, port, lambda address: _calls(address, LENGTH), work) as server:
            peak = _peak(server, seconds)
            for times in TIMES:
                rows.append(_row(server, peak, times, seconds))
                print(f"  {rows[-1]}", file=sys.stderr)
            large.append(_large(server, seconds))
            print(f"  {large[-1]}", file=sys.stderr)
    return {"rows": rows, "large": large, "failed": {}}


def _calls(address: str, length: int) -> UnaryCalls:
    x = np.random.default_rng(0).standard_normal((1, 1, length)).astype(np.float32)
    message = infer_request("busy", {"x": x}, None, "", "").SerializeToString()
    return UnaryCalls(address, [message], connections=CONNECTIONS, timeout=DEADLINE)


def _peak(server: Running, seconds: float) -> float:
    calls = _calls(server.address, LENGTH)
    try:
        return run(calls, Load(IN_FLIGHT), seconds).per_second
    finally:
        calls.close()


def _row(server: Running, peak: float, times: int, seconds: float) -> Figures:
    calls = _calls(server.address, LENGTH)
    try:
        with watched(server) as seen:
            part = run(calls, Load(rate=times * peak), seconds, server.cpu_seconds)
    finally:
        calls.close()
    return {
        "server": server.name,
        "times": times,
        "peak": peak,
        "goodput": part.answered / seconds,
        "cpu_ms": (part.cpu_seconds or 0.0) * 1e3 / max(part.answered, 1),
        "p50_ms": part.milliseconds(50),
        "p99_ms": part.milliseconds(99),
        "errors": dict(part.errors),
        **_seen(seen),
    }


def _large(server: Running, seconds: float) -> Figures:
    """Messages of 256 KB, more of them in flight than the server may hold; and its memory before, meanwhile, after."""
    before = sum(processes.resident_bytes([server.pid]))
    calls = _calls(server.address, LARGE_LENGTH)
    try:
        with watched(server) as seen:
            part = run(calls, Load(LARGE_IN_FLIGHT), seconds)
    finally:
        calls.close()
    time.sleep(3)
    after = sum(processes.resident_bytes([server.pid]))
    found = {"server": server.name, "answered": part.answered, "errors": dict(part.errors), **_seen(seen)}
    return {**found, "before_bytes": before, "after_bytes": after}


def _seen(seen: Watched) -> Figures:
    waits = sorted(seen.health_ms) or [0.0]
    return {
        "health_p99_ms": waits[int(len(waits) * 0.99)],
        "health_most_ms": waits[-1],
        "health_failures": seen.failures,
        "most_bytes": max(seen.resident_bytes, default=0),
    }


def section(figures: Figures) -> str:
    """Return the tables for RESULTS.md."""
    lines = [
        "| offered | server | goodput, /s | goodput over peak | CPU, ms/answer | p50, ms | p99, ms "
        "| refused, late, other | health p99, most, ms | RSS, MB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [_line(row, _best(figures, row["server"])) for row in figures["rows"]]
    lines += [
        "",
        f"Messages of 256 KB, {LARGE_IN_FLIGHT} in flight:",
        "",
        "| server | answered | refused, late, other | RSS before, most, 3 s after, MB | health p99, most, ms |",
        "|---|---|---|---|---|",
    ]
    lines += [_large_line(row) for row in figures["large"]]
    head = (
        f"Open loop: calls with a deadline of {DEADLINE:g} s on {CONNECTIONS} connections at a multiple of what the "
        f"server answers with {IN_FLIGHT} in flight. Goodput counts answers within the deadline; its peak is the best "
        "of the server's rows, the capacity included. Latencies are of answered calls, from the moment at which a call "
        "was meant to be sent. Health is asked every 20 ms on a connection of its own. CPU is that of the server for "
        "each answer: refusals are in it."
    )
    return f"## Overload\n\n{head}\n\n" + "\n".join(lines)


def _line(row: Figures, best: float) -> str:
    return (
        f"| {row['times']} x {row['peak']:,.0f}/s | {row['server']} | {row['goodput']:,.0f} "
        f"| {row['goodput'] / max(best, 1e-9):.2f} | {row['cpu_ms']:.2f} | {row['p50_ms']:.0f} | {row['p99_ms']:.0f} "
        f"| {_errors(row['errors'])} | {_waits(row)} | {row['most_bytes'] / 1e6:.0f} |"
    )


def _large_line(row: Figures) -> str:
    sizes = ", ".join(f"{row[key] / 1e6:.0f}" for key in ("before_bytes", "most_bytes", "after_bytes"))
    return f"| {row['server']} | {row['answered']:,} | {_errors(row['errors'])} | {sizes} | {_waits(row)} |"


def _waits(row: Figures) -> str:
    return f"{row['health_p99_ms']:.0f}, {row['health_most_ms']:.0f}"


def _best(figures: Figures, server: str) -> float:
    return max(max(row["goodput"], row["peak"]) for row in figures["rows"] if row["server"] == server)


def _errors(errors: dict[str, int]) -> str:
    refused, late = errors.get("RESOURCE_EXHAUSTED", 0), errors.get("DEADLINE_EXCEEDED", 0)
    return f"{refused:,}, {late:,}, {sum(errors.values()) - refused - late:,}"
