"""``normfold models``: the models of a running server, or of a repository on disk."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from normfold.cli.connection import asks_no_server, connection_options
from normfold.cli.control import ADDRESS, asking
from normfold.cli.needs import needing
from normfold.cli.output import json_of
from normfold.cli.seconds import Seconds

if TYPE_CHECKING:
    from rich.table import Table

    from normfold.serving.catalog.repository import ModelFolder
    from normfold.serving.client.client import Client
    from normfold.serving.client.connection import Credentials
    from normfold.serving.wire.proved_sizes import ProvedSizes


@dataclass(frozen=True)
class ListedVersion:
    """One version of a model. A field is None where a repository, or a server of another make, does not have it."""

    model: str
    version: str
    #: "READY", "LOADING", "UNAVAILABLE" from a server; "in service" or "not in service" from a repository.
    state: str
    reason: str = ""
    inputs: tuple[str, ...] = ()
    device: str | None = None
    #: What became of the BatchNorms, in the export's words.
    batchnorms: str | None = None
    answered: int | None = None
    failed: int | None = None
    waiting: int | None = None
    p50_seconds: float | None = None
    p99_seconds: float | None = None


@click.command(short_help="List models, versions, their states and counters.")
@click.option("--repository", "-r", type=click.Path(path_type=Path, exists=True), help="List this one, on disk.")
@click.option("--address", "-a", default=ADDRESS, show_default=True, help="The server: host:port, or unix:/path.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--watch", is_flag=True, help="Print again every second, until Ctrl-C.")
@click.option("--timeout", type=Seconds(0, min_open=True), default=10.0, show_default=True, help="Seconds.")
@connection_options
@needing(
    asks_no_server(
        "repository",
        lambda values: values["repository"] is None,
        "with --repository: no server is asked",
        "address",
        "timeout",
    )
)
def models(
    repository: Path | None, address: str, as_json: bool, watch: bool, timeout: float, credentials: Credentials
) -> None:
    """List the models of a running server: versions, states with reasons, inputs with the sizes that were proved,
    devices, what became of the BatchNorms, requests, failures, latencies. With --repository, those on disk.

    The latencies are of the time in the server since it started; between two powers of two they are estimated.

    \b
    Examples:
      normfold models
      normfold models --watch
      normfold models --repository repository --json
    """

    def rows() -> list[ListedVersion]:
        if repository is not None:
            return list(_on_disk(repository))
        with asking(address, timeout, credentials) as client:
            return list(_served(client))

    try:
        _show(rows(), as_json)
        while watch:
            time.sleep(1)
            if not as_json:
                click.clear()  # only on a terminal
            _show(rows(), as_json)
    except KeyboardInterrupt:
        if not watch:
            raise
        click.echo()


def _served(client: Client) -> Iterator[ListedVersion]:
    from normfold.serving.client.errors import ClientError
    from normfold.serving.client.sizes import proved_sizes
    from normfold.serving.wire.proved_sizes import BATCHNORMS

    try:
        counted = {(one.model, one.version): one for one in client.counters()}
    except ClientError:  # another server of the protocol
        counted = {}
    for state in client.models():
        row = ListedVersion(state.model, state.version, state.state or "not loaded", state.reason)
        if not state.ready:
            yield row
            continue
        try:
            metadata = client.model_metadata(state.model, state.version)
        except ValueError:  # another server of the protocol, whose version is no number
            yield row
            continue
        sizes = proved_sizes(metadata)
        row = replace(
            row,
            inputs=tuple(_input(str(tensor), tensor.name, sizes) for tensor in metadata.inputs),
            batchnorms=metadata.properties.get(BATCHNORMS),
        )
        if (one := counted.get((state.model, state.version))) is not None:
            row = replace(
                row,
                device=one.device,
                answered=one.answered,
                failed=one.failed,
                waiting=one.waiting,
                p50_seconds=one.p50_seconds,
                p99_seconds=one.p99_seconds,
            )
        yield row


def _input(text: str, name: str, sizes: ProvedSizes | None) -> str:
    """An input with the ranges of its dimensions: "x FP32[N,77,L], L from 8"."""
    if sizes is None or name not in sizes.inputs:
        return text
    dims = sizes.inputs[name]
    shape = f"{text.partition('[')[0]}[{','.join(map(str, dims))}]"
    ranges = [f"{dim} {_range(sizes, dim)}" for dim in dict.fromkeys(dims) if isinstance(dim, str)]
    return ", ".join([shape, *(text for text in ranges if not text.endswith(" from 1"))])


def _range(sizes: ProvedSizes, dim: str) -> str:
    one = sizes.dimensions[dim]
    text = f"from {one.low}" if one.high is None else f"{one.low} to {one.high}"
    return text if one.step == 1 else f"{text} in steps of {one.step}"


def _on_disk(path: Path) -> Iterator[ListedVersion]:
    from normfold.serving.catalog import config
    from normfold.serving.catalog.repository import Repository
    from normfold.serving.errors import ServingError

    try:
        repository = Repository(path)
    except ServingError as error:
        raise click.ClickException(str(error)) from None
    for name, folder in repository.models().items():
        try:
            settings = config.parse(folder.config_text() or "")
            config.check(settings, name)
            numbers = folder.versions()
            served = config.versions_in_service(settings, numbers)
        except ServingError as error:
            yield ListedVersion(name, "", "not readable", str(error))
            continue
        for number in numbers:
            state = "in service" if number in served else "not in service"
            try:
                inputs, batchnorms = _facts(folder, number, settings.default_model_filename or "model.onnx")
            except ServingError as error:
                yield ListedVersion(name, str(number), "not readable", str(error))
                continue
            yield ListedVersion(name, str(number), state, inputs=inputs, batchnorms=batchnorms)
        if not numbers:
            yield ListedVersion(name, "", "not in service", "no version")


def _facts(folder: ModelFolder, number: int, filename: str) -> tuple[tuple[str, ...], str | None]:
    """The facts in a model file: its inputs, and what became of the BatchNorms. Raises LoadError."""
    from google.protobuf.message import DecodeError

    from normfold.protos.onnx_file import ModelProto
    from normfold.serving.errors import LoadError
    from normfold.serving.wire.proved_sizes import BATCHNORMS, PROVED, parse

    try:
        file = ModelProto.FromString(folder.read_model(number, filename))
        facts = {entry.key: entry.value for entry in file.metadata_props}
        sizes = parse(facts[PROVED]) if PROVED in facts else None
    except (DecodeError, ValueError) as error:
        raise LoadError(f"{filename} cannot be read: {error}") from None
    names = list(sizes.inputs) if sizes is not None else [each.name for each in file.graph.input]
    return tuple(_input(name, name, sizes) for name in names), facts.get(BATCHNORMS)


def _show(rows: list[ListedVersion], as_json: bool) -> None:
    if as_json:
        click.echo(json_of([asdict(row) for row in rows]))
        return
    from normfold.cli.plain_console import LONGEST_LINE, PlainConsole

    console = PlainConsole(highlight=False)
    if not console.is_terminal:
        console.width = LONGEST_LINE  # no line is broken, so that other programs find what they search for
    if not rows:
        console.print("no models")
        return
    console.print_table(_table(rows))
    for row in rows:
        batchnorms = f"BatchNorms {row.batchnorms}" if row.batchnorms else ""
        if facts := "; ".join(text for text in (row.reason, *row.inputs, batchnorms) if text):
            console.print(f"{f'{row.model} {row.version}'.rstrip()}: {facts}", markup=False)


def _table(rows: list[ListedVersion]) -> Table:
    from rich import box
    from rich.table import Table

    columns = {
        "model": [row.model for row in rows],
        "version": [row.version for row in rows],
        "state": [row.state for row in rows],
        "device": [row.device or "" for row in rows],
        "answered": ["" if row.answered is None else f"{row.answered:,}" for row in rows],
        "failed": ["" if row.failed is None else f"{row.failed:,}" for row in rows],
        "p50": [_seconds(row.p50_seconds) for row in rows],
        "p99": [_seconds(row.p99_seconds) for row in rows],
    }
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    shown = {title: cells for title, cells in columns.items() if any(cells)}
    for title in shown:
        number = title in ("version", "answered", "failed", "p50", "p99")
        table.add_column(title, justify="right" if number else "left")
    for cells in zip(*shown.values(), strict=True):
        table.add_row(*(cell.replace("[", "\\[") for cell in cells))
    return table


def _seconds(value: float | None) -> str:
    """Two digits: the server counts latencies in buckets, each twice as wide as the one before."""
    if value is None:
        return ""
    times, unit = (1e6, "µs") if value < 1e-3 else (1e3, "ms") if value < 1 else (1.0, "s")
    return f"{float(f'{value * times:.2g}'):g} {unit}"
