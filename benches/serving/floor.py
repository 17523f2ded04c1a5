"""What a request costs at least: a C server of HTTP/2 that sends a file, and the bare run in process."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from benches.ports import free_ports
from benches.serving import h2load
from benches.serving.networks import publish, tiny
from benches.serving.roster import CONFIG, Command, serve
from benches.serving.running import Running, running

from normfold.serving.client.calls import infer_request
from normfold.serving.frontends import FRONTENDS
from normfold.serving.load.calls import UnaryCalls
from normfold.serving.load.rounds import Ratio

Figures = dict[str, Any]

#: Bytes of the file: as many as an answer of the tiny model.
ANSWER_BYTES = 66
IN_FLIGHT = (1, 16, 64)
FLOOR = "nghttpd"


class _Http(UnaryCalls):
    """Only whether the file server takes connections: it speaks no gRPC."""

    def send(self, number: int) -> None:
        self._number = number

    def wait(self, seconds: float) -> list[tuple[int, str]]:
        return [(self._number, "OK")]


def floor(seconds: float, rounds: int, work: Path) -> Figures:
    """CPU time of nghttpd and of our frontends for a request of h2load, and that of the run alone."""
    h2load.check_present("h2load", "nghttpd")
    folder = work / "floor"
    publish(tiny(), folder / "repository" / "tiny", CONFIG)
    (folder / "www").mkdir(exist_ok=True)
    (folder / "www" / "file").write_bytes(bytes(ANSWER_BYTES))
    message = infer_request("tiny", {"x": np.zeros((1, 1, 32), np.float32)}, None, "", "").SerializeToString()
    body = h2load.write_body(message, folder / "body")
    rows: dict[tuple[str, int], list[float]] = {}
    file_port, *ports = free_ports(1 + len(FRONTENDS))
    files = Command(["nghttpd", "--no-tls", "-d", str(folder / "www"), str(file_port)])
    asked = [(FLOOR, files, file_port, lambda a: _Http(a, [b""]))]
    for frontend, port in zip(FRONTENDS, ports, strict=True):
        command = serve(folder / "repository", port, "--frontend", frontend, "--metrics-listen", "off")
        asked.append((f"normfold, {frontend}", command, port, lambda a: UnaryCalls(a, [message])))
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(running(*one, folder)) for one in asked]
        for number in range(rounds):
            for server in servers:
                for in_flight in IN_FLIGHT:
                    print(f"  {server.name}, {in_flight}, round {number + 1} of {rounds}", file=sys.stderr)
                    what = h2load.infer(server.address, body) if server.name != FLOOR else _file(server)
                    rows.setdefault((server.name, in_flight), []).append(_cpu_us(server, what, in_flight, seconds))
            rows.setdefault(("run", 0), []).append(_run_us(seconds / 4))
    table = [{"server": name, "in_flight": load, "cpu_us": found} for (name, load), found in rows.items()]
    return {"rows": table, "failed": {}}


def _file(server: Running) -> list[str]:
    return [f"http://{server.address}/file"]


def _cpu_us(server: Running, what: list[str], in_flight: int, seconds: float) -> float:
    """The CPU time for a request, in microseconds."""
    before = server.cpu_seconds() or 0.0
    answered = h2load.succeeded(h2load.start(what, max(1, seconds), 1, in_flight))
    return ((server.cpu_seconds() or 0.0) - before) * 1e6 / answered


def _run_us(seconds: float) -> float:
    """The CPU time of one run with bound input and output, in microseconds."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(tiny().SerializeToString(), options, providers=["CPUExecutionProvider"])
    bound = session.io_binding()
    bound.bind_cpu_input(session.get_inputs()[0].name, np.zeros((1, 1, 32), np.float32))
    bound.bind_output(session.get_outputs()[0].name)
    session.run_with_iobinding(bound)
    count, begun, until = 0, time.process_time(), time.monotonic() + seconds
    while time.monotonic() < until:
        for _ in range(100):
            session.run_with_iobinding(bound)
        count += 100
    return (time.process_time() - begun) * 1e6 / count


def over_floor(figures: Figures, server: str, in_flight: int) -> Ratio:
    """Return the CPU time of a request over that of nghttpd's and the bare run, round by round."""
    found = {(row["server"], row["in_flight"]): row["cpu_us"] for row in figures["rows"]}
    floors = [floor + run for floor, run in zip(found[FLOOR, in_flight], found["run", 0], strict=True)]
    return Ratio.of(found[server, in_flight], floors)


def section(figures: Figures) -> str:
    """Return the table for RESULTS.md."""
    found = {(row["server"], row["in_flight"]): row["cpu_us"] for row in figures["rows"]}
    runs = found["run", 0]
    lines = [
        f"`nghttpd` sends a file of {ANSWER_BYTES} bytes; the run alone takes {np.median(runs):.1f} µs. h2load is the "
        "client of all.",
        "",
        "| in flight | server | CPU, µs/request | over nghttpd + run |",
        "|---|---|---|---|",
    ]
    for (name, in_flight), mine in found.items():
        if name == "run":
            continue
        over = "" if name == FLOOR else str(over_floor(figures, name, in_flight))
        spread = f"{np.median(mine):.0f} ({min(mine):.0f} to {max(mine):.0f})"
        lines.append(f"| {in_flight} | {name} | {spread} | {over} |")
    return "## The floor\n\n" + "\n".join(lines)
