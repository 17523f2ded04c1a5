"""The requests of ``normfold bench``, and its measurements as a table and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from normfold import __version__
from normfold.array_file import DAMAGED, open_array_file, why_unread
from normfold.cli.plain_console import PlainConsole
from normfold.counting import counted
from normfold.protos import grpc_service as pb
from normfold.serving.client.client import Client, ClientError
from normfold.serving.client.connection import Credentials
from normfold.serving.client.errors import advised
from normfold.serving.load import processes
from normfold.serving.load.calls import NO_CREDENTIALS, StreamCalls, UnaryCalls
from normfold.serving.load.generator import Load, Slice
from normfold.serving.load.pool import host_and_port
from normfold.serving.load.question import request_bytes
from normfold.serving.load.rounds import Target, ratio

PERCENTILES = (50, 90, 99, 99.9)
#: The width of the table in characters, if it is not printed to a terminal.
WIDTH = 160


@dataclass(frozen=True)
class Settings:
    """The settings that all requests of a run share."""

    models: tuple[str, ...]
    shapes: tuple[str, ...]
    file: Path | None
    stream: bool
    connections: int
    timeout: float

    def title(self) -> str:
        """Models and kind of calls, in one line."""
        how = "stream" if self.stream else "unary"
        return f"{' and '.join(self.models)}, {how} calls over {counted(self.connections, 'connection')}"


def target(address: str, settings: Settings, pid: int | None, credentials: Credentials = NO_CREDENTIALS) -> Target:
    """The server at ``address``, after it answered every request of the mix once.

    Raises ClientError, ConnectionError or ValueError.
    """
    if not address.startswith("unix:"):
        host_and_port(address)
    shapes = dict(_shape(text) for text in settings.shapes)
    given = {} if settings.file is None else _arrays(settings.file)
    messages = []
    with Client(address, timeout=settings.timeout, tls=credentials.tls, token=credentials.token) as client:
        for model in settings.models:
            metadata = client.model_metadata(model)
            names = {tensor.name for tensor in metadata.inputs}
            if len(settings.models) > 1:  # not every model needs to have every name
                messages.append(request_bytes(metadata, _of(shapes, names), _of(given, names)))
            else:
                messages.append(request_bytes(metadata, shapes, given))
            request = pb.ModelInferRequest.FromString(messages[-1])
            try:
                client.call("ModelInfer", request, pb.ModelInferResponse)
            except ClientError as error:
                raise advised(error, request, metadata) from None
    calls = (
        StreamCalls(address, messages, connections=settings.connections, credentials=credentials)
        if settings.stream
        else UnaryCalls(
            address, messages, connections=settings.connections, timeout=settings.timeout, credentials=credentials
        )
    )
    roots = processes.listeners(address) if pid is None else [pid]
    if pid is not None and processes.cpu_seconds(roots) is None:
        raise ValueError(f"--server-pid {pid}: there is no such process here")
    return Target(address, calls, partial(processes.cpu_seconds, roots))


def _of(values: dict[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name in names}


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    name, _, sizes = text.partition("=")
    try:
        found = tuple(int(size) for size in sizes.strip("[]").split(",") if size)
        if not name or "=" not in text or min(found, default=0) < 0:
            raise ValueError
    except ValueError:
        raise ValueError(f"--shape {text!r} is not NAME=SIZES, such as x=1,1,32") from None
    return name, found


def _arrays(file: Path) -> dict[str, Any]:
    try:
        loaded = open_array_file(file)
        if isinstance(loaded, np.ndarray):
            raise ValueError("it holds one array without a name; write np.savez(file, NAME=array)")
        with loaded:
            return {name: np.asarray(loaded[name]) for name in loaded.files}
    except OSError as error:
        raise ValueError(f"--input {file} cannot be read: {error.strerror or error}") from None
    except DAMAGED as error:
        raise ValueError(f"--input {file} is not an .npz file of arrays by name: {why_unread(error)}") from None


def print_table(targets: Sequence[Target], loads: Sequence[Load]) -> None:
    """Print a row for each load and server, and the ratio of each further server's figures to the first server's."""
    console = PlainConsole(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = WIDTH
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("load", *(["server"] if len(targets) > 1 else [])):
        table.add_column(column, no_wrap=True)
    columns = ["p50", "p90", "p99", "p99.9", "max", "per s", "CPU us", "failed"]
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for load in loads:
        for one in targets:
            if load in one.slices:
                table.add_row(str(load), *([one.name] if len(targets) > 1 else []), *_cells(one.total(load)))
    console.print_table(table)
    console.print(
        "latencies in ms; loads are requests in flight or requests a second; CPU: of the server, for each request"
    )
    for one in targets:
        for status, count in sorted(sum((one.total(load).errors for load in loads), Counter[str]()).items()):
            console.print(f"{one.name}: {counted(count, 'request')} failed with {status}", style="red")
    if len(targets) > 1:
        console.print(f"\nover {targets[0].name}, median of the rounds (least to largest):")
        console.print_table(_ratios(targets, loads))


def _cells(total: Slice) -> list[str]:
    times = [f"{total.milliseconds(p):.2f}" if total.latencies.count else "" for p in (*PERCENTILES, 100)]
    cpu = "" if total.cpu_us is None else f"{total.cpu_us:.0f}"
    return [*times, f"{total.per_second:,.0f}", cpu, f"{total.errors.total():,}"]


def _ratios(targets: Sequence[Target], loads: Sequence[Load]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("load", "server", "p50", "p99", "per s", "CPU"):
        table.add_column(column, no_wrap=True)
    for load in loads:
        for one in targets[1:]:
            figures = [
                ratio(one, targets[0], load, lambda part: part.milliseconds(50)),
                ratio(one, targets[0], load, lambda part: part.milliseconds(99)),
                ratio(one, targets[0], load, lambda part: part.per_second),
                ratio(one, targets[0], load, lambda part: part.cpu_us),
            ]
            table.add_row(str(load), one.name, *("" if each is None else str(each) for each in figures))
    return table


def as_json(
    targets: Sequence[Target], loads: Sequence[Load], settings: Settings, addresses: Sequence[str]
) -> dict[str, Any]:
    """All measurements, for programs; latencies in ms, CPU time in microseconds for each request."""
    return {
        "normfold": __version__,
        "asked": {key: str(value) if isinstance(value, Path) else value for key, value in asdict(settings).items()},
        "servers": [
            {
                "address": address,
                "label": one.name,
                "loads": [_figures(load, one) for load in loads if load in one.slices],
            }
            for one, address in zip(targets, addresses, strict=True)
        ],
    }


def _figures(load: Load, one: Target) -> dict[str, Any]:
    total = one.total(load)
    return {
        **({"rate": load.rate} if load.rate else {"in_flight": load.in_flight}),
        **_summary(total),
        "rounds": [_summary(part) for part in one.slices[load]],
        "histogram_ns": total.latencies.buckets(),
    }


def _summary(total: Slice) -> dict[str, Any]:
    measured = total.latencies.count > 0
    return {
        "answered": total.answered,
        "errors": dict(total.errors),
        "seconds": total.seconds,
        "per_second": total.per_second,
        "mean_ms": total.latencies.mean() / 1e6 if measured else None,
        **{f"p{p:g}_ms": total.milliseconds(p) if measured else None for p in PERCENTILES},
        "max_ms": total.milliseconds(100) if measured else None,
        "server_cpu_us": total.cpu_us,
    }
