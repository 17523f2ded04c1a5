"""How long a served network takes to answer, and what that costs the server.

Measured: the time from handing arrays to the client until the answer is there as an array, on one machine over the
loopback interface, with a closed loop: N requests are in flight at any time, each worker sends its next request when
its last one is answered. Against: the same onnxruntime session settings run in this process, on the same input, one run
after the other; the difference is what serving costs. A closed loop slows down with the server, so its latencies say
what N patient clients see and not what happens under an arrival rate that does not care.

Percentiles are exact (nearest rank over every request, no histogram); the requests of the warm-up are not among them.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from normfold.serving.client.client import AsyncClient
from normfold.serving.runtime.devices import Device
from normfold.serving.runtime.session import Session
from normfold.serving.runtime.settings import SessionSettings

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Latencies:
    """What one run saw. Times of single requests are in milliseconds."""

    #: Requests measured, and those sent before to warm up.
    count: int
    warm_up: int
    #: Requests on their way at any time.
    in_flight: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    #: Wall time of the measured part, and requests a second in it.
    seconds: float
    per_second: float
    #: CPU time of the server process for each request; None where the process is not known, or not on Linux.
    server_cpu_ms: float | None = None


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the nearest-rank percentile of sorted values: the least one that ``share`` of them do not exceed."""
    if not ordered or not 0 < share <= 1:
        raise ValueError(f"needs values and a share in (0, 1], got {len(ordered)} values and {share}")
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)]


def summary(
    seconds_each: Sequence[float], wall_seconds: float, in_flight: int, warm_up: int, server_cpu_seconds: float | None
) -> Latencies:
    """Return the run as a value; ``seconds_each`` holds the latency of every measured request, in any order."""
    ordered = sorted(seconds_each)
    count = len(ordered)
    return Latencies(
        count=count,
        warm_up=warm_up,
        in_flight=in_flight,
        p50_ms=percentile(ordered, 0.5) * 1e3,
        p90_ms=percentile(ordered, 0.9) * 1e3,
        p99_ms=percentile(ordered, 0.99) * 1e3,
        p999_ms=percentile(ordered, 0.999) * 1e3,
        max_ms=ordered[-1] * 1e3,
        seconds=wall_seconds,
        per_second=count / wall_seconds,
        server_cpu_ms=None if server_cpu_seconds is None else server_cpu_seconds / count * 1e3,
    )


async def closed_loop(
    ask: Callable[[], Awaitable[object]], in_flight: int, count: int, warm_up: int, pid: int | None = None
) -> Latencies:
    """Await ``ask`` ``warm_up`` and then ``count`` times, ``in_flight`` at once, and return what the latter took.

    ``pid``: the server's process, of which the CPU time is read. An exception of ``ask`` ends the run and is raised.
    """
    await _rounds(ask, in_flight, warm_up)
    cpu, started = cpu_seconds(pid), time.perf_counter()
    times = await _rounds(ask, in_flight, count)
    wall, cpu_after = time.perf_counter() - started, cpu_seconds(pid)
    used = None if cpu is None or cpu_after is None else cpu_after - cpu
    return summary(times, wall, in_flight, warm_up, used)


async def _rounds(ask: Callable[[], Awaitable[object]], in_flight: int, count: int) -> list[float]:
    times: list[float] = []
    tickets = iter(range(count))

    async def worker() -> None:
        for _ in tickets:
            started = time.perf_counter()
            await ask()
            times.append(time.perf_counter() - started)

    async with asyncio.TaskGroup() as group:
        for _ in range(in_flight):
            group.create_task(worker())
    return times


async def over_grpc(
    address: str, model: str, x: Array, in_flight: int, count: int, warm_up: int, pid: int | None = None
) -> tuple[Latencies, list[Array]]:
    """Ask a server with input ``x`` again and again on one connection; return the latencies and every answer."""
    answers: list[Array] = []
    async with AsyncClient(address) as client:

        async def ask() -> None:
            answers.append(next(iter((await client.infer(model, {"x": x})).values())))

        latencies = await closed_loop(ask, in_flight, count, warm_up, pid)
    return latencies, answers


def in_process(model_file: Path, x: Array, count: int, warm_up: int) -> tuple[Latencies, Array]:
    """Run the model in this process, on one thread as a server does a small one; return latencies and the answer."""
    session = Session(model_file.read_bytes(), Device("cpu"), SessionSettings())
    feeds, outputs = {"x": x}, [session.outputs[0].name]
    for _ in range(warm_up):
        session.run(feeds, outputs)
    times: list[float] = []
    begun = time.perf_counter()
    for _ in range(count):
        started = time.perf_counter()
        (answer,) = session.run(feeds, outputs)
        times.append(time.perf_counter() - started)
    return summary(times, time.perf_counter() - begun, 1, warm_up, None), answer


def cpu_seconds(pid: int | None) -> float | None:
    """Return user and system CPU time of a process so far, in steps of a clock tick (mostly 10 ms); None if unknown."""
    if pid is None:
        return None
    try:
        # The second field is the command in parentheses, which may hold anything; utime and stime are fields 14 and 15.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
