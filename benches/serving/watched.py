"""The cost of being watched: one small model with metrics off, with metrics, and with the access log, 16 in flight.

    python -m benches.serving.watched [--seconds 20] [--rounds 20]

All servers run at the same time and are loaded in turns, so that each round has a difference to the server without
metrics in the same round. The server with metrics is read once a second, as Prometheus would read it more seldom. The
counters are kept also without a port, so their cost is measured in this process: the time of one call of
``Statistics.answered_at_once``, which counts a planned request. Prints a table for docs/metrics.md.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
import threading
import timeit
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from benches.interleaved import interleaved
from benches.machine import machine
from benches.ports import free_ports
from benches.serving.networks import publish, tiny
from benches.serving.roster import CONFIG, serve
from benches.serving.running import Running, running

from normfold.serving.client.calls import infer_request
from normfold.serving.frontends import FRONTENDS
from normfold.serving.load.calls import UnaryCalls
from normfold.serving.load.generator import Load
from normfold.serving.load.rounds import Target, measure
from normfold.serving.scheduling.statistics import Statistics

LOAD = Load(in_flight=16)
#: Time between two reads of the metrics, in seconds.
READ_SECONDS = 1.0
#: Calls of the counting function in one turn.
CALLS = 10_000

#: What is watched, and the options of its server; "{metrics}" is its port for metrics. The first is the base.
KINDS = {
    "no metrics": ("--metrics-listen", "off"),
    "no metrics, again": ("--metrics-listen", "off"),
    "metrics, read once a second": ("--metrics-listen", "127.0.0.1:{metrics}"),
    "access log of errors": ("--metrics-listen", "off", "--access-log", "errors"),
    "access log of all calls": ("--metrics-listen", "off", "--access-log", "all"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="for each server")
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        found = compare(Path(folder), stack, options.seconds, options.rounds)
    print("| server | CPU, µs/request | more than without metrics, µs: median (quartiles) |\n|---|---|---|")
    for name, cpu, more in found:
        print(f"| {name} | {cpu:.1f} | {more} |")
    print(f"\nCounting one request: {counting(options.rounds)} µs.\n\n{machine()}")


def compare(work: Path, stack: contextlib.ExitStack, seconds: float, rounds: int) -> list[tuple[str, float, str]]:
    """Return a row for each server: its name, its CPU time for a request, and the difference to its base."""
    publish(tiny(), work / "repository" / "tiny", CONFIG)
    message = infer_request("tiny", {"x": np.zeros((1, 1, 32), np.float32)}, None).SerializeToString()
    targets = []
    for frontend in FRONTENDS:
        for kind, given in KINDS.items():
            port, metrics = free_ports(2)
            name = f"{frontend}, {kind}"
            words = [word.format(metrics=metrics) for word in given]
            command = serve(work / "repository", port, "--frontend", frontend, *words)
            (home := work / name.replace(" ", "-")).mkdir()
            server = stack.enter_context(running(name, command, port, lambda a: UnaryCalls(a, [message]), home))
            targets.append(target(server, message))
            if "{metrics}" in given[1]:
                stack.enter_context(read(metrics))
    for what in measure(targets, [LOAD], seconds, rounds):
        print(f"  {what}", file=sys.stderr)
    found = []
    for number, one in enumerate(targets):
        one.calls.close()
        base = targets[number - number % len(KINDS)]
        more = "" if one is base else spread(differences(one, base))
        found.append((one.name, one.total(LOAD).cpu_us or 0.0, more))
    return found


def target(server: Running, message: bytes) -> Target:
    """Return ``server`` under the load of one connection."""
    return Target(server.name, UnaryCalls(server.address, [message]), server.cpu_seconds)


@contextlib.contextmanager
def read(port: int) -> Iterator[None]:
    """Read the metrics at ``port`` again and again until the block ends."""
    ended = threading.Event()

    def reading() -> None:
        while not ended.wait(READ_SECONDS):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
                answer.read()

    thread = threading.Thread(target=reading)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def differences(one: Target, base: Target) -> list[float]:
    """Return the CPU time for a request that ``one`` takes more than ``base``, in µs, round by round."""
    pairs = zip(one.slices[LOAD], base.slices[LOAD], strict=True)
    return [(mine.cpu_us or 0.0) - (other.cpu_us or 0.0) for mine, other in pairs]


def spread(figures: Sequence[float], digits: int = 1) -> str:
    """Return the median with the quartiles; needs two figures."""
    low, middle, high = statistics.quantiles(figures, n=4, method="inclusive")
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def counting(rounds: int) -> str:
    """Return the time to count one planned request, without that of a call that does nothing, in µs."""
    counters = Statistics()

    def nothing(rows: int, started: int, read: int, ran: int, ended: int) -> None:
        pass

    times = interleaved(
        {
            "counted": lambda: timeit.repeat(
                lambda: counters.answered_at_once(1, 0, 2000, 30_000, 32_000), number=CALLS, repeat=1
            ),
            "nothing": lambda: timeit.repeat(lambda: nothing(1, 0, 2000, 30_000, 32_000), number=CALLS, repeat=1),
        },
        rounds,
        1.0,
    )
    found = [1e3 * (one - other) / CALLS for one, other in zip(times["counted"], times["nothing"], strict=True)]
    return spread(found, 2)


if __name__ == "__main__":
    main()
