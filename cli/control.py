"""``normfold load`` and ``unload``: which models are in service."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import click

from normfold.cli.connection import connection_options, said_of
from normfold.cli.option_groups import option_group
from normfold.cli.output import told_after
from normfold.cli.seconds import Seconds
from normfold.cli.terminal import one_line

if TYPE_CHECKING:
    from normfold.serving.client.client import Client
    from normfold.serving.client.connection import Credentials
    from normfold.serving.errors import Status

Found = TypeVar("Found")

ADDRESS = "127.0.0.1:8001"
#: The extension of a server whose clients may load and unload models.
LOADS = "model_repository"


#: The options that say which server is asked.
server_options = option_group(
    click.option("--address", "-a", default=ADDRESS, show_default=True, help="host:port, or unix:/path."),
    click.option("--timeout", type=Seconds(0, min_open=True), default=300.0, show_default=True, help="Seconds."),
    connection_options,
)


@contextmanager
def asking(
    address: str, timeout: float, credentials: Credentials, metadata: Mapping[str, str | bytes] | None = None
) -> Iterator[Client]:
    """A client whose errors are those of a command."""
    from normfold.serving.client.client import Client, ClientError

    try:
        tls, token = credentials.tls, credentials.token
        with Client(address, timeout=timeout, tls=tls, token=token, metadata=metadata) as client:
            yield client
    except ClientError as error:
        raise click.ClickException(said_of(error, address)) from None
    except ValueError as error:
        raise click.UsageError(str(error)) from None


@click.command(short_help="Load a model, or load it again, on a running server.")
@click.argument("model")
@server_options
def load(model: str, address: str, timeout: float, credentials: Credentials) -> None:
    """Have a server load MODEL from its repository, or load it again.

    The old versions answer until the new ones are warm, and go on if the new ones fail. The server must allow it
    (--model-control explicit, the default on a loopback address).

    \b
    Exit code: 0 it is in service, 1 not.

    \b
    Examples:
      normfold load surnames
      normfold load surnames --address 10.0.0.5:8001 --token-file token
    """
    with asking(address, timeout, credentials) as client:
        client.load(model)
        with told_after(f"{model} is loaded"):
            say_versions(client, model)


@click.command(short_help="Take a model out of service on a running server.")
@click.argument("model")
@server_options
def unload(model: str, address: str, timeout: float, credentials: Credentials) -> None:
    """Have a server take MODEL out of service; requests that it has are still answered.

    \b
    Examples:
      normfold unload surnames
    """
    with asking(address, timeout, credentials) as client:
        if (said := without(client, model)) is not None:
            raise click.ClickException(said)
        client.unload(model)
    with told_after(f"{model} is out of service"):
        click.echo(one_line(f"{model} is out of service; back again: {command_line('load', model, address=address)}"))


def command_line(*words: str, address: str) -> str:
    """A command of normfold as a shell takes it; the address is written unless the command takes it anyway."""
    at = [] if address in ("", ADDRESS) else ["--address", address]
    return shlex.join(["normfold", *words, *at])


def say_versions(client: Client, model: str) -> None:
    """Print the versions of ``model`` that are in service: asked of the model, as a token for one model may do that."""
    ready = _unless_denied(lambda: client.model_metadata(model).versions)
    if ready is None:
        said = f"{model} is in service; this token may not ask in which versions: it lacks the scope read"
        click.echo(one_line(said))
        return
    click.echo(one_line(f"{model}: version{'s' if len(ready) != 1 else ''} {', '.join(ready) or 'none'} in service"))


def without(client: Client, model: str) -> str | None:
    """A sentence that the server has no such model, but others; None: it has the model, or does not say what it has."""
    from normfold.serving.errors import Status

    known = _unless_denied(lambda: {state.model for state in client.models()}, Status.UNIMPLEMENTED)
    if known is None or model in known:
        return None
    return f"the server has no model {model!r}; it has {', '.join(sorted(known)) or 'none'}"


def _unless_denied(ask: Callable[[], Found], *more: Status) -> Found | None:
    """The result of ``ask``; None for the status PERMISSION_DENIED, and for ``more``. Raises ClientError for others."""
    from normfold.serving.client.client import ClientError
    from normfold.serving.errors import Status

    try:
        return ask()
    except ClientError as error:
        if error.code not in (Status.PERMISSION_DENIED, *more):
            raise
        return None
