"""A short model beside a long one, and many connections beside one."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
from benches.ports import free_ports
from benches.serving import h2load
from benches.serving.networks import busy, publish, tiny
from benches.serving.roster import CONFIG, serve
from benches.serving.running import running

from normfold.serving.client.calls import infer_request
from normfold.serving.frontends import FRONTENDS
from normfold.serving.load.calls import UnaryCalls
from normfold.serving.load.generator import Load, run
from normfold.serving.load.rounds import Ratio

Figures = dict[str, Any]

#: Samples of a row of the long model, which takes some 20 ms on one core.
LENGTH = 12_288
#: Connections with one request in flight each, beside one connection with as many.
CONNECTIONS = 64


def beside(seconds: float, rounds: int, work: Path) -> Figures:
    """Latency of a short model alone, and while a long one runs all the time; and connections of several workers."""
    h2load.check_present("h2load")
    folder = work / "beside"
    publish(tiny(), folder / "repository" / "tiny", CONFIG)
    publish(busy(), folder / "repository" / "busy")
    body = h2load.write_body(_message("busy", np.zeros((1, 1, LENGTH), np.float32)), folder / "body")
    short = _message("tiny", np.zeros((1, 1, 32), np.float32))
    small = h2load.write_body(short, folder / "small")
    rows = []
    for frontend in FRONTENDS:
        for workers in (1, 2):
            (port,) = free_ports(1)
            options = ("--frontend", frontend, "--workers", str(workers), "--metrics-listen", "off")
            command = serve(folder / "repository", port, *options)
            name = f"normfold, {frontend}"
            with running(name, command, port, lambda a: UnaryCalls(a, [short]), folder) as server:
                found = []
                for number in range(rounds):
                    print(f"  {name}, {workers} workers, round {number + 1} of {rounds}", file=sys.stderr)
                    if workers == 1:
                        found.append(_latencies(server.address, short, body, seconds / rounds))
                    else:
                        found.append(_connections(server.address, small, seconds / rounds))
                rows.append({"server": name, "workers": workers, "rounds": found})
    return {"rows": rows, "failed": {}}


def _message(model: str, x: np.ndarray) -> bytes:
    return infer_request(model, {"x": x}, None, "", "").SerializeToString()


def _latencies(address: str, message: bytes, body: Path, seconds: float) -> tuple[float, float]:
    """The 99th percentile in ms of the short model, alone and while the long one runs."""
    with contextlib.closing(UnaryCalls(address, [message])) as calls:
        alone = run(calls, Load(1), seconds).milliseconds(99)
        other = h2load.start(h2load.infer(address, body), seconds + 2, 1, 1)
        try:
            run(calls, Load(1), 0.5)
            with_other = run(calls, Load(1), seconds).milliseconds(99)
        finally:
            h2load.succeeded(other)
    return alone, with_other


def _connections(address: str, body: Path, seconds: float) -> tuple[float, float]:
    """Requests a second on one connection, and on many, with as many in flight; h2load takes little of the cores."""
    what, whole = h2load.infer(address, body), max(1, round(seconds))
    found = [
        h2load.succeeded(h2load.start(what, whole, connections, CONNECTIONS)) / whole
        for connections in (1, CONNECTIONS)
    ]
    return found[0], found[1]


def section(figures: Figures) -> str:
    """Return the table for RESULTS.md."""
    lines = ["| server | what | alone or one | beside or many | ratio |", "|---|---|---|---|---|"]
    for row in figures["rows"]:
        first, second = zip(*row["rounds"], strict=True)
        if row["workers"] == 1:
            what, form = "p99 of `tiny` alone, and while a 20 ms model runs, ms", "{:.2f}"
        else:
            what, form = f"requests/s on 1 connection × {CONNECTIONS}, and {CONNECTIONS} × 1, 2 workers", "{:,.0f}"
        over = Ratio(tuple(b / a for a, b in row["rounds"]))
        one, other = form.format(np.median(first)), form.format(np.median(second))
        lines.append(f"| {row['server']} | {what} | {one} | {other} | {over} |")
    return "## Beside each other\n\n" + "\n".join(lines)
