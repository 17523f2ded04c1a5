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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from rich.console import Console
from rich.table import Table

from normfold import __version__
from normfold.serving.process.cpus import available_cpus

from . import networks
from .harness import Latencies, in_process, over_grpc

COLUMNS = ("network", "batch", "in flight", "p50", "p90", "p99", "p99.9", "per s", "server CPU")


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    network: str
    batch: int
    #: "in process" or "gRPC".
    where: str
    latencies: Latencies


def rows(
    repository: Path, address: str, pid: int, batches: list[int], in_flights: list[int], count: int, warm_up: int
) -> Iterator[Row]:
    """Yield a row for each network, batch and number in flight, as soon as it is measured.

    Raises ValueError where a served answer is not what the same file answers in this process.
    """
    for model in networks.MODELS:
        for batch in batches:
            x = networks.inputs(model, batch)
            latencies, expected = in_process(repository / model / "1" / "model.onnx", x, count, warm_up)
            yield Row(model, batch, "in process", latencies)
            for in_flight in in_flights:
                latencies, answers = asyncio.run(over_grpc(address, model, x, in_flight, count, warm_up, pid))
                check(model, answers, expected)
                yield Row(model, batch, "gRPC", latencies)


def check(model: str, answers: list[Any], expected: Any) -> None:
    """Raise ValueError where an answer is further from the one of this process than the order of float32 sums explains.

    A server may run several requests as one batch, for which onnxruntime can choose another kernel.
    """
    allowed = 2.0**-16 * float(np.abs(expected).max())
    for answer in answers:
        if answer.shape != expected.shape or not float(np.abs(answer - expected).max()) <= allowed:
            raise ValueError(f"{model}: the server answers otherwise than the same file in this process")


def cells(row: Row) -> list[str]:
    """Return the row as the table's text."""
    one = row.latencies
    where = str(one.in_flight) if row.where == "gRPC" else row.where
    cpu = "" if one.server_cpu_ms is None else f"{one.server_cpu_ms:.2f}"
    times = [f"{value:.2f}" for value in (one.p50_ms, one.p90_ms, one.p99_ms, one.p999_ms)]
    return [row.network, str(row.batch), where, *times, f"{one.per_second:,.0f}", cpu]


def machine() -> dict[str, Any]:
    """Return what the numbers depend on besides the code."""
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                cpu = line.partition(":")[2].strip()
                break
    return {
        "cpu": cpu,
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
    parser.add_argument("--requests", type=int, default=1000, metavar="N", help="measured for each row, default 1000")
    parser.add_argument("--warm-up", type=int, default=100, metavar="N", help="not measured, before each row: 100")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure here, too")
    given = parser.parse_args()
    if min(*given.batch, *given.in_flight, given.requests) < 1 or given.warm_up < 0:
        parser.error("--batch, --in-flight and --requests take numbers from 1, --warm-up from 0")
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
        for row in rows(repository, address, pid, given.batch, given.in_flight, given.requests, given.warm_up):
            measured.append(row)
            table.add_row(*cells(row))
            status.update(" ".join(cells(row)))
    about = machine()
    console.print(table)
    console.print(
        f"times in ms, CPU for each request; {given.requests} requests a row after {given.warm_up} to warm up; "
        f"client and server share {about['cpus']} CPUs ({about['cpu']}); "
        f"Python {about['python']}, onnxruntime {about['onnxruntime']}"
    )
    if given.json:
        content = {"machine": about, "rows": [asdict(row) for row in measured]}
        beside = given.json.with_name(f".{given.json.name}.part")
        beside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        beside.replace(given.json)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
