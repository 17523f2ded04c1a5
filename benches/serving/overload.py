"""More requests than a server can answer: goodput, the wait of what it accepts, health and memory meanwhile.

The load comes from h2load, which is written in C: a client in Python could not offer ten times the capacity. Server and
clients have cores of their own, as on two machines. The clients' cores never rest: cores share parts of one processor,
and a run takes longer beside a busy core, so the capacity is measured beside one, too. What was answered, refused and
late the server's metrics tell; a second client with one request in flight measures how long an accepted one takes.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from benches.ports import free_ports
from benches.serving import h2load
from benches.serving.networks import busy, publish
from benches.serving.roster import serve
from benches.serving.running import Running, running
from prometheus_client.parser import text_string_to_metric_families

from normfold.protos import health
from normfold.serving.client.calls import infer_request
from normfold.serving.frontends import FRONTENDS as TRANSPORTS
from normfold.serving.load import processes
from normfold.serving.load.calls import UnaryCalls

Figures = dict[str, Any]

#: Multiples of the capacity that are offered.
TIMES = (1, 2, 5, 10)
#: The deadline of every call, in seconds, and the connections that they come on.
DEADLINE, CONNECTIONS = 1, 16
#: Calls in flight that find the capacity, the most of an open loop, and those of 256 KB that are kept in flight.
IN_FLIGHT, MOST_IN_FLIGHT, LARGE_IN_FLIGHT = 32, 4000, 512
#: Samples of a row, which set how long it takes; and those of a row of 256 KB.
LENGTHS, LARGE_LENGTH = {"some 0.5 ms a row": 512, "some 5 ms a row": 6144}, 1 << 16

CONFIG = """
max_batch_size: 8 dynamic_batching {}
input { name: "x" data_type: TYPE_FP32 dims: [1, -1] }
output { name: "y" data_type: TYPE_FP32 dims: [64] }
"""


@dataclass
class Watched:
    """What was seen beside the load: the waits for health and for one answer at a time, and the memory."""

    health_ms: list[float] = field(default_factory=list)
    answer_ms: list[float] = field(default_factory=list)
    failures: int = 0
    resident_bytes: list[int] = field(default_factory=list)


@contextlib.contextmanager
def watched(server: Running, message: bytes) -> Iterator[Watched]:
    """Ask for health, and for an answer to ``message``, every 20 ms on connections of their own; note the memory."""
    found, done = Watched(), threading.Event()

    def watch(path: str, request: bytes, waits: list[float], count: bool) -> None:
        with grpc.insecure_channel(server.address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            ask = channel.unary_unary(path)
            while not done.wait(0.02):
                begun = time.perf_counter()
                try:
                    ask(request, timeout=DEADLINE)
                    waits.append((time.perf_counter() - begun) * 1e3)
                except grpc.RpcError:
                    found.failures += count
                if count:
                    found.resident_bytes.append(sum(processes.resident_bytes([server.pid])))

    check = health.HealthCheckRequest().SerializeToString()
    threads = [
        threading.Thread(target=watch, args=("/grpc.health.v1.Health/Check", check, found.health_ms, True)),
        threading.Thread(target=watch, args=(f"/{h2load.INFER}", message, found.answer_ms, False)),
    ]
    for thread in threads:
        thread.start()
    try:
        yield found
    finally:
        done.set()
        for thread in threads:
            thread.join()


def overload(seconds: float, work: Path) -> Figures:
    """Each frontend at 1, 2, 5 and 10 times what it answers with 32 calls in flight; then messages of 256 KB."""
    h2load.check_present("h2load")
    rows, large = [], []
    folder = work / "overload"
    publish(busy(), folder / "repository" / "busy", CONFIG)
    for transport in TRANSPORTS:
        port, metrics = free_ports(2)
        options = ("--frontend", transport, "--metrics-listen", f"127.0.0.1:{metrics}")
        command = serve(folder / "repository", port, *options)
        with _restless(), _apart(), running(f"normfold, {transport}", command, port, _ready, folder) as server:
            os.sched_setaffinity(0, _cores()[1])
            for what, length in LENGTHS.items():
                load = _Load(server, metrics, _message(length), folder / "body")
                before = load.capacity(seconds)
                for times in TIMES:
                    found = load.watched(seconds, MOST_IN_FLIGHT, times * before)
                    offered, before = before, load.capacity(seconds)
                    same = {"server": server.name, "what": what, "times": times, "peak": max(offered, before)}
                    rows.append(same | {"offered": offered} | found)
                    print(f"  {rows[-1]}", file=sys.stderr)
            large.append(_large(_Load(server, metrics, _message(LARGE_LENGTH), folder / "body"), seconds))
            print(f"  {large[-1]}", file=sys.stderr)
    return {"rows": rows, "large": large, "failed": {}}


@contextlib.contextmanager
def _apart() -> Iterator[None]:
    """Give what is started in the block the cores of servers; at the end everything may use all again."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, _cores()[0])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def _restless() -> Iterator[None]:
    """Keep the cores of clients busy with a loop that everything else there comes before."""
    loops = []
    try:
        for core in _cores()[1]:
            loops.append(subprocess.Popen(["nice", "-n", "19", sys.executable, "-c", "while True: pass"]))
            os.sched_setaffinity(loops[-1].pid, {core})
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


@cache
def _cores() -> tuple[set[int], set[int]]:
    """The cores of servers, and those of clients: a quarter of all, and at least one."""
    cores = sorted(os.sched_getaffinity(0))
    clients = max(1, len(cores) // 4)
    return set(cores[:-clients] or cores), set(cores[-clients:])


def _ready(address: str) -> UnaryCalls:
    return UnaryCalls(address, [_message(min(LENGTHS.values()))])


def _message(length: int) -> bytes:
    x = np.random.default_rng(0).standard_normal((1, 1, length)).astype(np.float32)
    return infer_request("busy", {"x": x}, None, "", "").SerializeToString()


class _Load:
    """Calls with one message from h2load."""

    def __init__(self, server: Running, metrics: int, message: bytes, body: Path) -> None:
        self.server, self._metrics, self._message, self._body = server, metrics, message, body
        h2load.write_body(message, body)

    def run(self, seconds: float, in_flight: int, rate: float | None = None) -> Figures:
        """Offer ``rate`` calls a second, or keep ``in_flight`` under way; the calls by their end, and the CPU time."""
        before, cpu = self._counted(), self.server.cpu_seconds() or 0.0
        what = h2load.infer(self.server.address, self._body, DEADLINE)
        h2load.start(what, seconds, CONNECTIONS, in_flight, rate).communicate()
        time.sleep(DEADLINE + 0.5)  # what is still under way ends
        ended = {name: count - before.get(name, 0) for name, count in self._counted().items()}
        return {"answered": ended.pop("OK"), "errors": ended, "cpu": (self.server.cpu_seconds() or 0.0) - cpu}

    def capacity(self, seconds: float) -> float:
        """The answers a second with IN_FLIGHT calls under way."""
        return float(self.run(seconds, IN_FLIGHT)["answered"] / seconds)

    def watched(self, seconds: float, in_flight: int, rate: float | None = None) -> Figures:
        """The same, with what was seen beside it."""
        with watched(self.server, self._message) as seen:
            found = self.run(seconds, in_flight, rate)
        healths, answers = sorted(seen.health_ms) or [0.0], sorted(seen.answer_ms) or [0.0]
        return {
            "seconds": seconds,
            **found,
            "p50_ms": answers[len(answers) // 2],
            "p99_ms": answers[int(len(answers) * 0.99)],
            "health_p99_ms": healths[int(len(healths) * 0.99)],
            "health_most_ms": healths[-1],
            "health_failures": seen.failures,
            "most_bytes": max(seen.resident_bytes, default=0),
        }

    def _counted(self) -> dict[str, float]:
        """The calls of ModelInfer by their status."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._metrics}/metrics", timeout=30) as answer:
            text = answer.read().decode()
        found = {"OK": 0.0}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name.removesuffix("_total") == "nv_inference_request_success":
                    found["OK"] += sample.value
                elif sample.name == "normfold_call_failures_total" and sample.labels["method"].endswith("/ModelInfer"):
                    found[sample.labels["status"]] = sample.value
        return found


def _large(load: _Load, seconds: float) -> Figures:
    """Messages of 256 KB, more of them in flight than the server may hold; and its memory before, meanwhile, after."""
    before = sum(processes.resident_bytes([load.server.pid]))
    found = load.watched(seconds, LARGE_IN_FLIGHT)
    time.sleep(3)
    after = sum(processes.resident_bytes([load.server.pid]))
    return {"server": load.server.name, **found, "before_bytes": before, "after_bytes": after}


def section(figures: Figures) -> str:
    """Return the tables for RESULTS.md."""
    lines = [
        "| request | offered | server | goodput, /s | goodput over peak | CPU, ms/answer | p50, p99, ms "
        "| refused, late, other | health p99, most, ms | RSS, MB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [_line(row) for row in figures["rows"]]
    lines += [
        "",
        f"Messages of 256 KB, {LARGE_IN_FLIGHT} in flight:",
        "",
        "| server | answered | refused, late, other | RSS before, most, 3 s after, MB | health p99, most, ms |",
        "|---|---|---|---|---|",
    ]
    lines += [_large_line(row) for row in figures["large"]]
    head = (
        f"Open loop: calls with a deadline of {DEADLINE} s on {CONNECTIONS} connections from h2load, at a multiple of "
        f"what the server answers with {IN_FLIGHT} in flight. Goodput counts answers within the deadline; its peak is "
        "the capacity, the higher of two that were measured just before and just after the load. The server has cores "
        "of its own "
        f"({len(_cores()[0])} of {len(_cores()[0] | _cores()[1])}), which run the model and refuse: at 10 times the "
        "capacity, the time for nine refusals is missing for each answer. The clients' cores never rest, also while "
        "the capacity is measured: a run takes up to a seventh longer beside a busy core. p50 and p99 are those of a "
        "client of its own that asks one thing at a time, answers only. Health is asked every 20 ms on a connection "
        "of its own. CPU is that of the server for each answer: refusals are in it."
    )
    return f"## Overload\n\n{head}\n\n" + "\n".join(lines)


def _line(row: Figures) -> str:
    goodput = row["answered"] / row["seconds"]
    return (
        f"| {row['what']} | {row['times']} x {row['offered']:,.0f}/s | {row['server']} | {goodput:,.0f} "
        f"| {share_of_peak(row):.2f} | {row['cpu'] * 1e3 / max(row['answered'], 1):.2f} "
        f"| {row['p50_ms']:.0f}, {row['p99_ms']:.0f} | {_errors(row['errors'])} | {_waits(row)} "
        f"| {row['most_bytes'] / 1e6:.0f} |"
    )


def _large_line(row: Figures) -> str:
    sizes = ", ".join(f"{row[key] / 1e6:.0f}" for key in ("before_bytes", "most_bytes", "after_bytes"))
    return f"| {row['server']} | {row['answered']:,.0f} | {_errors(row['errors'])} | {sizes} | {_waits(row)} |"


def _waits(row: Figures) -> str:
    return f"{row['health_p99_ms']:.0f}, {row['health_most_ms']:.0f}"


def share_of_peak(row: Figures) -> float:
    """The answers a second over the capacity, the higher of those that were measured just before and just after."""
    return float(row["answered"] / row["seconds"] / max(row["peak"], 1e-9))


def _errors(errors: dict[str, float]) -> str:
    refused, late = errors.get("RESOURCE_EXHAUSTED", 0), errors.get("DEADLINE_EXCEEDED", 0)
    return f"{refused:,.0f}, {late:,.0f}, {sum(errors.values()) - refused - late:,.0f}"
