"""``normfold healthcheck``: whether a server is ready, as an exit code for probes."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from normfold.cli.connection import connection_options

if TYPE_CHECKING:
    from normfold.serving.client.connection import Credentials


@click.command(short_help="Say by the exit code whether a server is ready.")
@click.option("--address", "-a", default="127.0.0.1:8001", show_default=True, help="host:port, or unix:/path.")
@click.option("--model", "-m", default="", help="Ask for this model instead of the whole server.")
@click.option("--version", default="", help="With --model: this version of it. Default: any.")
@click.option("--timeout", type=click.FloatRange(0, min_open=True), default=2.0, show_default=True, help="Seconds.")
@connection_options
def healthcheck(address: str, model: str, version: str, timeout: float, credentials: Credentials) -> None:
    """Ask a server whether it is ready; for a container's health check and for scripts.

    \b
    Exit code: 0 ready, 1 not ready or no answer, 2 a wrong command.

    \b
    Examples:
      normfold healthcheck
      normfold healthcheck --address 10.0.0.5:8001 --model surnames
      until normfold healthcheck; do sleep 1; done
    """
    from normfold.serving.client.client import Client, ClientError

    if version and not model:
        raise click.UsageError("--version needs --model")
    what = f"model {model}{f' version {version}' if version else ''}" if model else "the server"
    try:
        with Client(address, timeout=timeout, tls=credentials.tls, token=credentials.token) as client:
            ready = client.is_model_ready(model, version) if model else client.is_ready()
    except ClientError as error:
        raise click.ClickException(str(error)) from None
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    why = "" if ready else f"; for the reason: normfold models --address {address}"
    click.echo(f"{what} is {'ready' if ready else 'not ready'}{why}")
    sys.exit(0 if ready else 1)
