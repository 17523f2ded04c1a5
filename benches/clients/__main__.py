"""Compare our clients with tritonclient: the same server, the same model, in turns.

    python -m benches.clients            about three minutes; writes RESULTS.md beside this file
    python -m benches.clients --quick    the same in half a minute, to see that it works

Each client is a process of its own that stays; each round asks all of them, and begins with another one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benches.aims import unreached
from benches.clients.asking import ASYNC, BLOCKING
from benches.machine import machine
from benches.ports import free_ports
from benches.serving.networks import publish, tiny
from benches.serving.roster import CONFIG, ask_grpc, serve
from benches.serving.running import running

from normfold.serving.load.rounds import Ratio, turns
from normfold.whole_file import write_whole

HERE = Path(__file__).resolve().parent

#: A program that asks one thing: from the start of Python to the answer.
_OURS = """
import sys
import numpy as np
from normfold import Client
with Client(sys.argv[1], transport={transport!r}) as client:
    print(client.infer("tiny", {{"x": np.zeros((1, 1, 32), np.float32)}})["y"].shape)
"""
_TRITON = """
import sys
import numpy as np
import tritonclient.grpc as triton
client = triton.InferenceServerClient(sys.argv[1])
tensor = triton.InferInput("x", [1, 1, 32], "FP32")
tensor.set_data_from_numpy(np.zeros((1, 1, 32), np.float32))
print(client.infer("tiny", [tensor]).as_numpy("y").shape)
"""
SCRIPTS = {
    "Client": ["-c", _OURS.format(transport="http2")],
    "Client, grpcio": ["-c", _OURS.format(transport="grpcio")],
    "tritonclient": ["-c", _TRITON],
    "numpy alone": ["-c", "import numpy"],
    "normfold healthcheck": ["-m", "normfold", "healthcheck", "--address"],
}

Rounds = dict[str, list[dict[str, float]]]


def asked(address: str, names: list[str], in_flight: int, seconds: float, rounds: int) -> Rounds:
    """Return the figures of each client in each round."""
    found: Rounds = {name: [] for name in names}
    with contextlib.ExitStack() as stack:
        clients = {}
        for name in names:
            command = [sys.executable, "-m", "benches.clients.asking", name, address]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            clients[name] = stack.enter_context(process)
        for number in range(rounds):
            for name in turns(names, number):
                print(f"  {name}, {in_flight} in flight, round {number + 1} of {rounds}", file=sys.stderr)
                process = clients[name]
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write(f"{in_flight} {seconds}\n")
                process.stdin.flush()
                found[name].append(json.loads(process.stdout.readline()))
        for process in clients.values():
            assert process.stdin is not None
            process.stdin.close()
    return found


def scripts(address: str, rounds: int) -> Rounds:
    """Return wall and CPU time of each script in each round, in ms; modules are compiled, as installed ones are."""
    found: Rounds = {name: [] for name in SCRIPTS}
    compiled = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    for number in range(-1, rounds):
        for name in turns(list(SCRIPTS), max(number, 0)):
            before, begun = os.times(), time.perf_counter()
            command = [sys.executable, *SCRIPTS[name], address]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=compiled)
            wall, after = time.perf_counter() - begun, os.times()
            cpu = after.children_user + after.children_system - before.children_user - before.children_system
            if number >= 0:  # the round before has compiled what was not
                found[name].append({"wall_ms": wall * 1e3, "cpu_ms": cpu * 1e3})
    return found


def ratio(found: Rounds, mine: str, base: str, figure: str) -> Ratio:
    """Return ``figure`` of one client over that of another, round by round."""
    return Ratio.of((row[figure] for row in found[mine]), (row[figure] for row in found[base]))


def table(found: Rounds, base: str, figures: dict[str, str]) -> str:
    """Return a table of medians, with the ratio of each figure to that of ``base``."""
    heads = [*figures.values(), *(f"{text.split(',')[0]} over {base}" for text in figures.values())]
    lines = [f"| client | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for name, rows in found.items():
        cells = []
        for figure in figures:
            values = sorted(row[figure] for row in rows)
            cells.append(f"{values[len(values) // 2]:,.0f} ({values[0]:,.0f} to {values[-1]:,.0f})")
        cells += [str(ratio(found, name, base, figure)) for figure in figures]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def verdict(found: Ratio, most: float) -> str:
    """Return whether an aim was reached: in every round, by the median, or not."""
    if found.median > most:
        return "no"
    return "yes" if found.high <= most else "by the median, not in every round"


def report(one: Rounds, many: Rounds, started: Rounds, seconds: float, when: str) -> str:
    """Return RESULTS.md."""
    aims: list[tuple[str, Ratio, float, str]] = [
        (
            "`Client.infer`, p50 at 1 in flight, over tritonclient",
            ratio(one, "Client", "tritonclient", "p50_us"),
            0.4,
            "the time of the server and the way to it and back are in both; of the client's own CPU time "
            f"it takes {ratio(one, 'Client', 'tritonclient', 'cpu_us').median:.2f} ×.",
        ),
        (
            "`AsyncClient.infer`, CPU for a call at 16 in flight, over tritonclient.aio",
            ratio(many, "AsyncClient", "tritonclient.aio", "cpu_us"),
            0.3,
            "asyncio's own loop takes most of it; uvloop as the loop was tried, and brought nothing.",
        ),
        (
            "a script's imports and first answer, CPU, over tritonclient",
            ratio(started, "Client", "tritonclient", "cpu_ms"),
            0.5,
            f"to import NumPy alone takes {ratio(started, 'numpy alone', 'tritonclient', 'cpu_ms').median:.2f} ×, "
            "and a client that takes and gives arrays needs it. grpcio is not imported.",
        ),
    ]
    rows = [f"| {name}: at most {most} × | {found} | {verdict(found, most)} |" for name, found, most, _ in aims]
    said = [(name, verdict(found, most) == "yes", why) for name, found, most, why in aims]
    rows += unreached("What bounds those that are not reached in every round:", said)
    versions = ", ".join(
        f"{name} {version(name)}" for name in ("grpcio", "tritonclient", "numpy", "protobuf", "uvloop")
    )
    return f"""# Clients, side by side

Written by `python -m benches.clients`. {machine()} {versions}. {when}.

One server, `normfold serve --frontend http2`, with `tiny` (one convolution, FP32[1,1,32] to FP32[1,10]). Each client is
a process of its own. They ask one at a time, in slices of {seconds:g} s, in turns; each round begins with another one.
Figures are medians over the rounds, in parentheses the least and the largest; ratios are taken within a round. Client
and server share the CPUs. CPU time is user and system time of the client's process, for everything from array to array.

| aim | measured | reached |
|---|---|---|
{chr(10).join(rows)}

## One call at a time

{table(one, "tritonclient", {"p50_us": "p50, µs", "cpu_us": "CPU, µs/call"})}

## 16 calls at a time

{table(many, "tritonclient.aio", {"cpu_us": "CPU, µs/call", "p50_us": "p50, µs"})}

## A script that asks one thing

From the start of Python to its end: imports, one inference (ours asks for the model's metadata first), printing.
`numpy alone` imports NumPy and asks nothing; it is a part of every other row.

{table(started, "tritonclient", {"cpu_ms": "CPU, ms", "wall_ms": "wall, ms"})}
"""


def main() -> int:
    """Measure, write the report, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benches.clients", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="short slices; the figures are not worth keeping")
    parser.add_argument("--seconds", type=float, default=1.0, help="a slice, default 1")
    parser.add_argument("--rounds", type=int, default=7, help="default 7")
    parser.add_argument("--out", type=Path, default=HERE / "RESULTS.md")
    given = parser.parse_args()
    seconds, rounds = (0.2, 3) if given.quick else (given.seconds, given.rounds)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        root, port = Path(folder), free_ports(1)[0]
        publish(tiny(), root / "repository" / "tiny", CONFIG)
        command = serve(root / "repository", port, "--frontend", "http2")
        with running("http2", command, port, ask_grpc, root) as server:
            results["one"] = asked(server.address, list(BLOCKING), 1, seconds, rounds)
            results["many"] = asked(server.address, list(ASYNC), 16, seconds, rounds)
            results["started"] = scripts(server.address, rounds)
    text = report(**results, seconds=seconds, when=time.strftime("%Y-%m-%d"))
    write_whole(given.out, text.encode())
    print(f"wrote {given.out}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
