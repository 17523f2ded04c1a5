"""Print latency and throughput of both trained networks: ``python -m tests.latency`` (``make bench``)."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import platform
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from rich.console import Console
from rich.table import Table

from normfold import __version__
from normfold.processor import processor_name
from normfold.serving.load.generator import RAMP_SECONDS, Slice
from normfold.serving.process.cpus import available_cpus
from normfold.whole_file import write_whole

from . import networks
from .harness import SessionCalls, answers, measure, served_calls

PERCENTILES = (50, 90, 99, 99.9)
COLUMNS = ("network", "batch", "in flight", "p50", "p90", "p99", "p99.9", "per s", "server CPU")


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    network: str
    batch: int
    #: "in process" or "gRPC".
    where: str
    in_flight: int
    measured: Slice

    def figures(self) -> dict[str, Any]:
        """Return the row as JSON holds it; the CPU time of the server is None if it is not known."""
        one = self.measured
        return {
            "network": self.network,
            "batch": self.batch,
            "where": self.where,
            "in_flight": self.in_flight,
            "answered": one.answered,
            "seconds": one.seconds,
            "per_second": one.per_second,
            **{f"p{percent:g}_ms": one.milliseconds(percent) for percent in PERCENTILES},
            "max_ms": one.milliseconds(100),
            "server_cpu_ms": None if one.cpu_us is None else one.cpu_us / 1e3,
        }


def rows(
    repository: Path, address: str, pid: int, batches: list[int], in_flights: list[int], seconds: float
) -> Iterator[Row]:
    """Yield a row for each network, batch and number in flight, as soon as it is measured.

    Raises ValueError if a request fails, or if the server's answer is not that of the same file in this process.
    """
    for model in networks.MODELS:
        for batch in batches:
            x = networks.inputs(model, batch)
            alone = SessionCalls(repository / model / "1" / "model.onnx", x)
            yield Row(model, batch, "in process", 1, measure(alone, 1, seconds))
            for in_flight in in_flights:
                check(model, asyncio.run(answers(address, model, x, in_flight)), alone.answer)
                served = measure(served_calls(address, model, x), in_flight, seconds, pid)
                yield Row(model, batch, "gRPC", in_flight, served)


def check(model: str, answers: list[Any], expected: Any) -> None:
    """Raise ValueError if an answer differs from that of this process by more than float32 rounding explains.

    A server may run several requests as one batch, for which onnxruntime can choose another kernel, with another order
    of sums.
    """
    allowed = 2.0**-16 * float(np.abs(expected).max())
    for answer in answers:
        if answer.shape != expected.shape or not float(np.abs(answer - expected).max()) <= allowed:
            raise ValueError(f"{model}: the server answers otherwise than the same file in this process")


def cells(row: Row) -> list[str]:
    """Return the row as the table's text."""
    one = row.measured
    where = str(row.in_flight) if row.where == "gRPC" else row.where
    cpu = "" if one.cpu_us is None else f"{one.cpu_us / 1e3:.2f}"
    times = [f"{one.milliseconds(percent):.2f}" if one.answered else "" for percent in PERCENTILES]
    return [row.network, str(row.batch), where, *times, f"{one.per_second:,.0f}", cpu]


def machine() -> dict[str, Any]:
    """Return what the figures depend on besides the code."""
    return {
        "cpu": processor_name(),
        "cpus": available_cpus(),
        "python": platform.python_version(),
        "onnxruntime": onnxruntime.__version__,
        "normfold": __version__,
    }


def main() -> int:
    """Measure, print a table and write JSON if asked; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.latency", description=__doc__)
    parser.add_argument("--repository", type=Path, help="an exported one; default: both networks are exported now")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32], metavar="N")
    parser.add_argument("--in-flight", type=int, nargs="+", default=[1, 4, 16], metavar="N")
    parser.add_argument("--seconds", type=float, default=2.0, help="measured for each row, default 2")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure to this file, too")
    given = parser.parse_args()
    if min(*given.batch, *given.in_flight) < 1 or not given.seconds > 0:
        parser.error("--batch and --in-flight take numbers from 1, --seconds a positive number")
    console = Console(highlight=False, soft_wrap=True)
    with contextlib.ExitStack() as stack:
        repository = given.repository
        if repository is None:
            repository = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="normfold-latency-")))
            with console.status("export both networks"):
                networks.export_both(repository)
        address, pid = stack.enter_context(networks.served(repository))
        status = stack.enter_context(console.status("measure"))
        table, measured = Table(box=None, padding=(0, 1, 0, 0)), []
        for column in COLUMNS:
            table.add_column(column, no_wrap=True, justify="left" if column in COLUMNS[:3] else "right")
        for row in rows(repository, address, pid, given.batch, given.in_flight, given.seconds):
            measured.append(row)
            table.add_row(*cells(row))
            status.update(" ".join(cells(row)))
    about = machine()
    console.print(table)
    console.print(
        f"times in ms, CPU for each request; {given.seconds:g} s a row after {RAMP_SECONDS:g} s to warm up; "
        f"client and server share {about['cpus']} CPUs ({about['cpu']}); "
        f"Python {about['python']}, onnxruntime {about['onnxruntime']}"
    )
    if given.json:
        content = {"machine": about, "rows": [row.figures() for row in measured]}
        write_whole(given.json, (json.dumps(content, indent=1) + "\n").encode())
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
