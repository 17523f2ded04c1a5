"""``normfold serve``: a model repository over gRPC."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from normfold.cli.needs import needing
from normfold.cli.serve_access import access_options
from normfold.cli.serve_connections import connection_options
from normfold.cli.serve_limits import limit_options
from normfold.cli.serve_needs import NEEDS
from normfold.cli.serve_repository import config_of, copy_here, path_or_url
from normfold.cli.terminal import one_line
from normfold.serving.frontends import FRONTENDS

if TYPE_CHECKING:
    from normfold.serving.process.writer_thread import WriterThread
    from normfold.serving.server import Server
    from normfold.serving.settings import ServerConfig
    from normfold.serving.workers.supervisor import Started

#: Options that are not fields of ServerConfig, and the reason.
NO_FIELDS = {"workers": "it is the number of servers, each of which has the same config"}


def _switch(values: Mapping[str, bool]) -> Callable[[click.Context, click.Parameter, str | None], bool | None]:
    """A callback that turns one of two words into True or False; None where the option is not given."""
    return lambda context, parameter, word: None if word is None else values[word]


# Each option has the name and the default of a field of ServerConfig.
@click.command(short_help="Serve a model repository over gRPC.")
@click.option(
    "--repository",
    "-r",
    callback=path_or_url,
    metavar="PATH|URL",
    required=True,
    help="A folder of models, one model's folder, or one .onnx file; here, or on s3://, gs:// or hf://.",
)
@click.option(
    "--listen", default="127.0.0.1:8001", show_default=True, help="host:port (port 0: any free one), unix:/path."
)
@access_options
@click.option(
    "--metrics-listen",
    help="host:port for metrics and health over HTTP (/metrics, /livez, /readyz), or off. Default: 127.0.0.1:8002 if "
    "it is free and --listen has neither port 0 nor a unix socket.",
)
@click.option(
    "--frontend",
    type=click.Choice(FRONTENDS),
    default=FRONTENDS[0],
    show_default=True,
    help="The transport: our own HTTP/2, or grpcio, which takes 4 to 12 times its CPU time for a small model.",
)
@click.option(
    "--device",
    default="cpu",
    show_default=True,
    help="cpu, cuda, cuda:N, tensorrt, tensorrt:N, or auto (the GPU if there is one).",
)
@click.option(
    "--threads",
    type=click.IntRange(0, 1024),
    default=0,
    help="Threads of one run. Default: as measured when a model is loaded.",
)
@click.option(
    "--tune/--no-tune",
    default=True,
    show_default=True,
    help="Measure how many threads a run should have, and remember it; without, models below 4 MiB get one thread, "
    "others all CPUs.",
)
@click.option(
    "--workers",
    type=click.IntRange(1, 256),
    help="Processes that serve together. Default: one for each CPU, at most 4; one with a GPU or a unix socket.",
)
@click.option("--name", "model_name", help="The name of a single model, instead of that of its folder or file.")
@click.option("--server-name", default="normfold", show_default=True, help="The name of the server in ServerMetadata.")
@click.option(
    "--strict-readiness/--no-strict-readiness",
    default=True,
    show_default=True,
    help="Not ready while a model that should be in service has no version that answers.",
)
@click.option(
    "--model-control",
    type=click.Choice(["explicit", "none", "poll"]),
    help="Who changes what is in service: clients, nobody, or the files of the repository, which are looked at. "
    "Default: explicit on a loopback address, else none.",
)
@click.option(
    "--poll-seconds",
    type=click.FloatRange(0.1),
    default=5.0,
    show_default=True,
    help="With --model-control poll: the time between two looks.",
)
@click.option(
    "--load",
    type=click.Choice(["eagerly", "lazily"]),
    default="eagerly",
    show_default=True,
    help="When models are loaded: at the start, or each by its first request, which waits for it.",
)
@click.option("--load-model", "load_models", multiple=True, help="Load only this model at the start (repeat for more).")
@click.option(
    "--allow-unproved-sizes",
    is_flag=True,
    help="Also answer requests of sizes that the model's export did not prove.",
)
@click.option(
    "--shared-memory",
    type=click.Choice(["on", "off"]),
    callback=_switch({"on": True, "off": False}),
    help="Whether clients may use POSIX shared memory. Default: on on a loopback address, else off.",
)
@connection_options
@limit_options
@click.option(
    "--trace-file", type=click.Path(path_type=Path), help="Write traces here when TraceSetting turns them on."
)
@click.option(
    "--grace-seconds",
    type=float,
    default=30.0,
    show_default=True,
    help="Longest wait for requests under way at the end.",
)
@click.option(
    "--drain-delay",
    "drain_delay_seconds",
    type=click.FloatRange(0),
    default=0.0,
    show_default=True,
    help="Seconds at the end in which health reports NOT_SERVING but new requests are still answered.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="The least important lines written to stderr; clients can change it with LogSettings.",
)
@click.option(
    "--log-format",
    type=click.Choice(["text", "json", "auto"]),
    default="text",
    show_default=True,
    help="Lines for people, or a JSON object on each line; auto: JSON unless stderr is a terminal.",
)
@click.option(
    "--access-log",
    type=click.Choice(["off", "errors", "all"]),
    default="off",
    show_default=True,
    help="A line in the log for each call that fails, or for every call.",
)
@needing(*NEEDS)
def serve(workers: int | None, **options: object) -> None:
    """Serve a model repository over gRPC until Ctrl-C or SIGTERM.

    \b
    A repository is laid out as for Triton:
      repository/surnames/config.pbtxt        optional
      repository/surnames/1/model.onnx

    \b
    Examples:
      normfold serve --repository repository
      normfold serve --repository model.onnx --name surnames
      normfold serve --repository repository --listen 0.0.0.0:8001 --tls-cert cert.pem --tls-key key.pem
      normfold serve --repository s3://bucket/models --model-control poll

    Any client of the Open Inference Protocol can ask it: normfold infer, tritonclient, grpcurl, KServe.
    """
    import faulthandler
    import os

    from normfold.serving.errors import StartError
    from normfold.serving.process import standard_files, writer_thread
    from normfold.serving.process.address import UNIX
    from normfold.serving.process.cpus import default_workers

    _end_at_signals()
    standard_files.open_missing()
    errors = writer_thread.standard_error()
    out = writer_thread.WriterThread(sys.stdout, after=errors)
    faulthandler.enable()  # a crash of a library is no silent end
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # before grpc is imported: our messages cover what it would print
    try:
        config = config_of(options)
        if workers is None:
            workers = default_workers(config.device, config.listen)
        elif workers > 1 and config.listen.startswith(UNIX):
            hint = "listen on host:port, or leave --workers out"
            raise click.ClickException(f"--workers {workers}: a unix socket is served by one worker; {hint}")
        copy_here(config)
        answered = _serve_alone(config, out, errors) if workers == 1 else _serve_together(config, workers, out, errors)
    except StartError as error:
        errors.write(f"Error: {one_line(str(error))}\n")
        sys.exit(error.exit_code)
    if answered:
        out.write("stopped\n")
    else:
        errors.write(f"Error: stopped with requests unanswered after {config.grace_seconds:g} s\n")
    writer_thread.finish()
    os._exit(0 if answered else 1)  # a model that still runs or loads cannot be interrupted


def _end_at_signals() -> None:
    """End with 0 at SIGTERM or Ctrl-C while libraries are imported; the event loop's own handlers replace this.

    SIGHUP asks for a look at the repository, which is still to come.
    """
    import contextlib
    import os
    import signal

    def end(number: int, frame: object) -> None:
        with contextlib.suppress(OSError):
            os.write(1, b"stopped\n")
        os._exit(0)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    signal.signal(signal.SIGHUP, lambda number, frame: None)


def _serve_alone(config: ServerConfig, out: WriterThread, errors: WriterThread) -> bool:
    """Serve in this process; whether all requests were answered at the end. Raises StartError."""
    from normfold.serving import server
    from normfold.serving.process import loops
    from normfold.serving.process.logs import LogSettings
    from normfold.serving.rpc.caller import trace_id

    def announce(server: Server) -> None:
        ready = server.catalog.ready(server.config.strict_readiness)
        _announce(out, server.models(), server.address, "", ready, server.metrics_address)

    logs = LogSettings(config.log_level)
    logs.install(errors, config.log_format, trace_id=trace_id)
    return loops.run(server.serve(config, logs, announce))


def _serve_together(config: ServerConfig, workers: int, out: WriterThread, errors: WriterThread) -> bool:
    """Serve in ``workers`` processes below this one; whether all requests were answered. Raises WorkersError."""
    import asyncio
    import logging

    from normfold.serving.process.log_lines import formatter
    from normfold.serving.workers.supervisor import Supervisor

    def announce(started: Started) -> None:
        _announce(out, started.models, started.address, f", {started.workers} workers", started.ready, started.metrics)

    handler = logging.StreamHandler(errors)
    handler.setFormatter(formatter(config.log_format, errors, {"log_format": "default"}))
    logging.getLogger("normfold").addHandler(handler)
    return asyncio.run(Supervisor(config, workers).run(announce))


def _announce(
    out: WriterThread, models: Sequence[tuple[str, bool]], address: str, workers: str, ready: bool, metrics: str
) -> None:
    """Print the models, the device of each, and the addresses that the server listens on."""
    from normfold.serving.infer.otlp import destination

    why = "not every model was loaded" if models else "the repository holds no NAME/1/model.onnx yet"
    state = "ready" if ready else f"not ready: {why} (--no-strict-readiness accepts that)"
    for line, loaded in models:
        shown = f"  {one_line(line)}"
        out.write(f"{shown if loaded or not out.isatty() else click.style(shown, fg='red')}\n")
    if metrics:
        out.write(f"metrics on http://{metrics}/metrics, health on /livez and /readyz\n")
    if traces := destination():
        out.write(f"traces go to {one_line(traces)}\n")
    out.write(f"listening on {one_line(address)} (gRPC){workers}, {state}\n")
