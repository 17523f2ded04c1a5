"""The same short runs on the event loop and on threads: which of the two is faster, by the length of the run.

``normfold.serving.scheduling.inline.INLINE_SECONDS`` is decided by this.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from benches.ports import free_ports
from benches.serving import h2load, overload
from benches.serving.networks import busy, publish
from benches.serving.ratios import ratio
from benches.serving.roster import PROGRAMS, serve
from benches.serving.running import Running, running

from normfold.serving.client.calls import infer_request
from normfold.serving.load.calls import UnaryCalls

Figures = dict[str, Any]

#: Samples of a row, which set how long its run takes, and calls in flight.
LENGTHS, IN_FLIGHT = (24, 64, 128, 256, 400), (1, 16)
#: The bounds below which runs stay on the event loop, in seconds: all of these runs, and none.
BOUNDS = {"event loop": 1.0, "threads": 1e-9}


def detour(seconds: float, rounds: int, work: Path) -> Figures:
    """A row for each number of the server's CPUs, length, calls in flight and place of the run."""
    h2load.check_present("h2load")
    folder = work / "detour"
    publish(busy(), folder / "repository" / "busy", overload.CONFIG)
    session = onnxruntime.InferenceSession(busy().SerializeToString(), _one_thread())
    cores, rows = sorted(os.sched_getaffinity(0)), []
    for cpus in (1, 2):
        with contextlib.ExitStack() as stack:
            servers = {place: stack.enter_context(_server(place, set(cores[:cpus]), folder)) for place in BOUNDS}
            os.sched_setaffinity(0, {cores[-1]})
            stack.callback(os.sched_setaffinity, 0, cores)
            for length in LENGTHS:
                run_us = _run_us(session, length)
                body = h2load.write_body(_message(length), folder / "body")
                for in_flight in IN_FLIGHT:
                    found: dict[str, list[Figures]] = {place: [] for place in servers}
                    for server in servers.values():
                        _asked(server, body, 1, in_flight)  # where the run belongs is learned
                    for _ in range(rounds):
                        for place, server in servers.items():
                            found[place].append(_asked(server, body, max(1, round(seconds / rounds)), in_flight))
                    common = {
                        "cpus": cpus,
                        "length": length,
                        "run_us": run_us,
                        "in_flight": in_flight,
                    }
                    rows += [common | {"place": place, "rounds": each} for place, each in found.items()]
                    print(f"  {rows[-2:]}", file=sys.stderr)
    return {"rows": rows, "failed": {}}


@contextlib.contextmanager
def _server(place: str, cores: set[int], folder: Path) -> Iterator[Running]:
    (port,) = free_ports(1)
    command = serve(folder / "repository", port, "--workers", "1", "--metrics-listen", "off")
    at = command.arguments.index("serve")
    program = [sys.executable, str(PROGRAMS / "loop_or_threads.py"), str(BOUNDS[place])]
    (home := folder / place.replace(" ", "-")).mkdir(parents=True, exist_ok=True)
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        command = replace(command, arguments=program + command.arguments[at:])
        ask = lambda address: UnaryCalls(address, [_message(LENGTHS[0])])  # noqa: E731
        with running(f"normfold, {place}", command, port, ask, home) as server:
            os.sched_setaffinity(0, before)
            yield server
    finally:
        os.sched_setaffinity(0, before)


def _asked(server: Running, body: Path, seconds: int, in_flight: int) -> Figures:
    before = server.cpu_seconds() or 0.0
    answered = h2load.succeeded(h2load.start(h2load.infer(server.address, body), seconds, 1, in_flight))
    cpu = (server.cpu_seconds() or 0.0) - before
    return {"per_second": answered / seconds, "cpu_us": cpu / max(answered, 1) * 1e6}


def _message(length: int) -> bytes:
    x = np.zeros((1, 1, length), np.float32)
    return infer_request("busy", {"x": x}, None, "", "").SerializeToString()


def _one_thread() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return options


def _run_us(session: onnxruntime.InferenceSession, length: int) -> float:
    """The median time of a run by itself, in microseconds."""
    x, times = np.zeros((1, 1, length), np.float32), []
    for _ in range(300):
        begun = time.perf_counter()
        session.run(None, {"x": x})
        times.append(time.perf_counter() - begun)
    return statistics.median(times) * 1e6


def section(figures: Figures) -> str:
    """Return the table for RESULTS.md."""
    lines = [
        "| CPUs | a run alone, µs | in flight | requests/s on threads, on the loop | CPU, µs/request "
        "| requests/s, loop over threads | CPU, loop over threads |",
        "|---|---|---|---|---|---|---|",
    ]
    pairs = zip(figures["rows"][::2], figures["rows"][1::2], strict=True)
    for loop, threads in pairs:
        middle = {key: [statistics.median(each[key] for each in row["rounds"]) for row in (threads, loop)]
                  for key in ("per_second", "cpu_us")}  # fmt: skip
        rates, cpu = middle["per_second"], middle["cpu_us"]
        lines.append(
            f"| {loop['cpus']} | {loop['run_us']:.0f} | {loop['in_flight']} | {rates[0]:,.0f}, {rates[1]:,.0f} "
            f"| {cpu[0]:.0f}, {cpu[1]:.0f} | {ratio(loop, threads, 'per_second')} | {ratio(loop, threads, 'cpu_us')} |"
        )
    head = (
        "Two servers of the same model: one runs everything on its event loop, the other everything on threads, where "
        "requests that wait share a run. One worker each, one connection of h2load, which has the last CPU."
    )
    return f"## Short runs: on the event loop or on threads\n\n{head}\n\n" + "\n".join(lines)
