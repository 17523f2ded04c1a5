"""``normfold bench`` measures servers under load: latency, throughput and CPU time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from normfold.cli.connection import connection_options, said_of
from normfold.cli.output import json_of
from normfold.cli.seconds import Seconds
from normfold.cli.target_file import check_target
from normfold.cli.terminal import one_line
from normfold.counting import counted

if TYPE_CHECKING:
    from normfold.serving.client.connection import Credentials
    from normfold.serving.load.generator import Load
    from normfold.serving.load.rounds import Target

#: Exit codes besides 0 (measured, every request answered) and 2 (a wrong command).
NOT_MEASURED, SOME_FAILED, INTERRUPTED = 1, 3, 130


class Numbers(click.ParamType):  # type: ignore[type-arg]  # click 8.1 has no type of the value here
    """Positive numbers, separated by commas."""

    name = "numbers"

    def __init__(self, kind: type[int] | type[float]) -> None:
        self.kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[float]:
        """The numbers in ``value``."""
        try:
            found = [self.kind(part) for part in str(value).split(",")]
        except ValueError:
            found = []
        if not found or not all(0 < number <= 1e6 for number in found):
            example = "1,4,16,64" if self.kind is int else "100,1000"
            self.fail(f"{value!r} is not a list of numbers from 1 to 1000000, such as {example}", param, ctx)
        return list(dict.fromkeys(found))


@click.command(short_help="Measure servers under load: latency, throughput, CPU.")
@click.argument("addresses", nargs=-1, required=True, metavar="ADDRESS...")
@click.option(
    "--model",
    "-m",
    "models",
    multiple=True,
    required=True,
    help="The model to ask. Repeat for a mix of models, asked in turn.",
)
@click.option(
    "--in-flight",
    type=Numbers(int),
    help="Closed loop: requests in flight at any time. Default 1,4,16,64 unless --rate is given.",
)
@click.option("--rate", type=Numbers(float), help="Open loop: requests a second, sent whether or not answers come.")
@click.option(
    "--seconds", type=Seconds(0.2, 3600), default=5.0, show_default=True, help="Time for each load and server."
)
@click.option(
    "--rounds",
    type=click.IntRange(1, 1000),
    default=5,
    show_default=True,
    help="Number of slices that the seconds are divided into.",
)
@click.option(
    "--shape",
    "shapes",
    multiple=True,
    metavar="NAME=1,1,32",
    help="The shape of an input whose sizes the model leaves open.",
)
@click.option(
    "--input",
    "-i",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Read inputs by name from this .npz file.",
)
@click.option("--stream", is_flag=True, help="Send messages of ModelStreamInfer instead of unary calls.")
@click.option(
    "--connections",
    type=click.IntRange(1, 1024),
    default=1,
    show_default=True,
    help="Connections to each server, used in turn.",
)
@connection_options
@click.option("--timeout", type=Seconds(0, min_open=True), default=60.0, show_default=True, help="Seconds.")
@click.option(
    "--server-pid",
    "pids",
    type=int,
    multiple=True,
    help="The server's process, whose CPU time is measured; one for each address.",
)
@click.option(
    "--label",
    "labels",
    multiple=True,
    help="What to call a server in tables and drawing, instead of its address; one for each, in their order.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Draw latency against throughput into this .svg, .png or .html file.",
)
def bench(
    addresses: tuple[str, ...],
    models: tuple[str, ...],
    in_flight: list[int] | None,
    rate: list[float] | None,
    seconds: float,
    rounds: int,
    shapes: tuple[str, ...],
    file: Path | None,
    stream: bool,
    connections: int,
    timeout: float,
    pids: tuple[int, ...],
    labels: tuple[str, ...],
    as_json: bool,
    out: Path | None,
    credentials: Credentials,
) -> None:
    """Load each ADDRESS with requests for a model, and report latency, throughput and CPU time.

    ADDRESS is host:port or unix:/path of any server of the Open Inference Protocol. Several are measured in turns,
    slice by slice, and compared with the first.

    \b
    Examples:
      normfold bench 127.0.0.1:8001 --model surnames
      normfold bench 127.0.0.1:8001 --model surnames --shape x=8,42,20 --in-flight 1,16 --out report.svg
      normfold bench 127.0.0.1:8001 127.0.0.1:9001 --model surnames --rate 100,500,1000 --json
      normfold bench unix:/run/normfold.sock --model a --model b --input inputs.npz

    --in-flight keeps this number of requests in flight. --rate sends requests at even intervals whatever the server
    does, and counts each latency from the moment at which the request was meant to be sent.

    Exit code: 0 every request was answered, 1 nothing could be measured, 2 a wrong command, 3 some requests failed, 130
    interrupted (what was measured until then is printed).
    """
    from normfold.cli import benching
    from normfold.cli.plain_console import PlainConsole
    from normfold.serving.load.generator import Load
    from normfold.serving.load.rounds import measure

    if out is not None:
        _check_picture(out)
    if len(set(addresses)) < len(addresses):
        raise click.UsageError("an address is given twice")
    servers = counted(len(addresses), "address", "addresses")
    if pids and len(pids) != len(addresses):
        raise click.UsageError(f"--server-pid is given {counted(len(pids), 'time')} for {servers}; give one each")
    if labels and len(set(labels)) != len(addresses):
        raise click.UsageError(f"--label gives {counted(len(set(labels)), 'name')} for {servers}; give one each")
    if seconds / rounds < 0.1:
        raise click.UsageError(
            f"--seconds {seconds:g} in {counted(rounds, 'round')} are slices below 0.1 s; give more seconds"
        )
    loads = [Load(in_flight=n) for n in in_flight or ([] if rate else [1, 4, 16, 64])]
    loads += [Load(rate=r) for r in rate or []]
    settings = benching.Settings(models, shapes, file, stream, connections, timeout)
    targets = [
        _target(address, settings, pids[index] if pids else None, credentials)
        for index, address in enumerate(addresses)
    ]
    for one, label in zip(targets, labels, strict=False):
        one.name = label
    code = 0
    errors = PlainConsole(stderr=True, highlight=False, soft_wrap=True)
    try:
        with errors.status("measure") as status:
            for what in measure(targets, loads, seconds, rounds):
                status.update(what)
    except KeyboardInterrupt:
        code = INTERRUPTED
        errors.print("interrupted; this is what was measured")
    except ConnectionError as error:
        code = NOT_MEASURED
        errors.print(f"Error: {error}; this is what was measured", style="red")
    finally:
        for target in targets:
            target.calls.close()
    if as_json:
        click.echo(json_of(benching.as_json(targets, loads, settings, addresses), indent=1))
    else:
        benching.print_table(targets, loads)
    if out is not None and any(target.slices for target in targets):
        _draw(out, targets, loads, settings)
    failed = sum(target.total(load).errors.total() for target in targets for load in loads)
    raise SystemExit(code or (SOME_FAILED if failed else 0))


def _target(address: str, settings: Any, pid: int | None, credentials: Credentials) -> Target:
    from normfold.cli import benching
    from normfold.serving.client.errors import ClientError

    try:
        return benching.target(address, settings, pid, credentials)
    except ClientError as error:
        raise click.ClickException(f"{address}: {said_of(error, address)}") from None
    except ConnectionError as error:
        raise click.ClickException(f"{address}: {error}") from None
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def _check_picture(out: Path) -> None:
    """Refuse a picture that could not be drawn, before anything is measured."""
    if out.suffix not in (".svg", ".png", ".html"):
        raise click.UsageError(f"--out {out} must end in .svg, .png or .html")
    check_target("--out", out)
    if out.suffix == ".png":
        from normfold.cli.png import png

        try:
            png("<svg xmlns='http://www.w3.org/2000/svg' width='1' height='1'/>")
        except ModuleNotFoundError:
            cure = f"pip install 'normfold[png]', or write {out.with_suffix('.svg')}"
            raise click.UsageError(f"--out {out} needs the package resvg_py: {cure}") from None
        except LookupError as error:
            cure = f"install one, for example fonts-dejavu-core, or write {out.with_suffix('.svg')}"
            raise click.UsageError(f"--out {out}: {error}; {cure}") from None


def _draw(out: Path, targets: list[Target], loads: list[Load], settings: Any) -> None:
    import datetime

    from normfold.cli import bench_picture
    from normfold.cli.png import png
    from normfold.processor import processor_name
    from normfold.serving.process.cpus import available_cpus
    from normfold.whole_file import written_whole

    about = f"Client: {counted(available_cpus(), 'CPU')} ({processor_name()}); {datetime.date.today()}"
    page = bench_picture.page if out.suffix == ".html" else bench_picture.drawing
    text = page(targets, loads, settings.title(), about)
    try:
        with written_whole(out) as file:
            file.write(png(text) if out.suffix == ".png" else text.encode())
    except OSError as error:
        raise click.ClickException(f"{out} cannot be written: {error.strerror}") from None
    click.echo(one_line(f"wrote {out}"), err=True)
