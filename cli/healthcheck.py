"""``normfold healthcheck``: whether a server is ready, as an exit code for probes."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from normfold.cli.connection import connection_options
from normfold.cli.control import asking, without
from normfold.cli.needs import Need, needing
from normfold.cli.seconds import Seconds
from normfold.cli.terminal import one_line

if TYPE_CHECKING:
    from normfold.serving.client.connection import Credentials


@click.command(short_help="Say by the exit code whether a server is ready.")
@click.option(
    "--address",
    "-a",
    default="127.0.0.1:8001",
    show_default=True,
    help="host:port, unix:/path, or http://host:port of the metrics port, which needs neither TLS nor a token.",
)
@click.option("--model", "-m", default="", help="Ask for this model instead of the whole server.")
@click.option("--version", default="", help="With --model: this version of it. Default: any.")
@click.option("--timeout", type=Seconds(0, min_open=True), default=2.0, show_default=True, help="Seconds.")
@connection_options
@needing(
    Need(
        ("token_file",),
        "address",
        lambda values: not _is_url(values["address"]),
        "with http://: the metrics port needs no token",
    )
)
def healthcheck(address: str, model: str, version: str, timeout: float, credentials: Credentials) -> None:
    """Ask a server whether it is ready; for a container's health check and for scripts.

    \b
    Exit code: 0 ready, 1 not ready or no answer, 2 a wrong command.

    \b
    Examples:
      normfold healthcheck
      normfold healthcheck --address 10.0.0.5:8001 --model surnames
      normfold healthcheck --address http://127.0.0.1:8002
      until normfold healthcheck; do sleep 1; done
    """
    if version and not model:
        raise click.UsageError("--version needs --model")
    what = f"model {model}{f' version {version}' if version else ''}" if model else "the server"
    over_http = _is_url(address)
    ask = _over_http if over_http else _over_grpc
    try:
        ready = ask(address, model, version, timeout, credentials)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    asked = "" if over_http else f" --address {address}"
    why = "" if ready else f"; for the reason: normfold models{asked}"
    click.echo(one_line(f"{what} is {'ready' if ready else 'not ready'}{why}"))
    sys.exit(0 if ready else 1)


def _is_url(address: str) -> bool:
    return address.lower().startswith(("http://", "https://"))


def _over_grpc(address: str, model: str, version: str, timeout: float, credentials: Credentials) -> bool:
    with asking(address, timeout, credentials) as client:
        ready = client.is_model_ready(model, version) if model else client.is_ready()
        if model and not ready and (said := without(client, model)) is not None:
            raise click.ClickException(said)
        return ready


def _over_http(url: str, model: str, version: str, timeout: float, credentials: Credentials) -> bool:
    from normfold.cli.http_health import is_ready  # without the client, and so without NumPy

    if credentials.tls is not None:
        raise ValueError(f"--address {url}: the metrics port has no TLS; leave out --tls and --tls-…")
    try:
        return is_ready(url, model, version, timeout)
    except OSError as error:
        raise click.ClickException(str(error)) from None
