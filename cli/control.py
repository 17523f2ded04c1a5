"""``normfold load``, ``unload`` and ``use``: which models and versions are in service."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from normfold.cli.connection import connection_options, said_of
from normfold.cli.output import told_after
from normfold.cli.seconds import Seconds
from normfold.cli.terminal import message, one_line

if TYPE_CHECKING:
    from normfold.serving.client.client import Client
    from normfold.serving.client.connection import Credentials
    from normfold.serving.errors import Status

Found = TypeVar("Found")

ADDRESS = "127.0.0.1:8001"
#: The extension of a server whose clients may load and unload models.
LOADS = "model_repository"


def _server_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say which server is asked."""
    timeout = click.option(
        "--timeout", type=Seconds(0, min_open=True), default=300.0, show_default=True, help="Seconds."
    )
    address = click.option("--address", "-a", default=ADDRESS, show_default=True, help="host:port, or unix:/path.")
    return address(timeout(connection_options(command)))


@contextmanager
def asking(address: str, timeout: float, credentials: Credentials) -> Iterator[Client]:
    """A client whose errors are those of a command."""
    from normfold.serving.client.client import Client, ClientError

    try:
        with Client(address, timeout=timeout, tls=credentials.tls, token=credentials.token) as client:
            yield client
    except ClientError as error:
        raise click.ClickException(said_of(error, address)) from None
    except ValueError as error:
        raise click.UsageError(str(error)) from None


@click.command(short_help="Load a model, or load it again, on a running server.")
@click.argument("model")
@_server_options
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
            _say(client, model)


@click.command(short_help="Take a model out of service on a running server.")
@click.argument("model")
@_server_options
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
        click.echo(one_line(f"{model} is out of service; back again: {_command('load', model, address=address)}"))


@click.command(short_help="Put one version of a model in service: roll forward, roll back.")
@click.argument("model")
@click.argument("version", metavar="VERSION")
@click.option(
    "--repository",
    "-r",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="The folder of models: the choice is kept in MODEL's config.pbtxt there.",
)
@click.option("--no-load", is_flag=True, help="With --repository: change the file only, and ask no server.")
@_server_options
def use(
    model: str,
    version: str,
    repository: Path | None,
    no_load: bool,
    address: str,
    timeout: float,
    credentials: Credentials,
) -> None:
    """Put VERSION of MODEL in service and take the others out; VERSION is a number, or "latest" for the highest.

    With --repository the choice is kept: version_policy in config.pbtxt is replaced, the rest of the file stays as it
    is, and the server at --address loads the model again. If that fails, the file gets its old content back; where the
    server allows no loads, the file is not touched. Without --repository only the running server changes, until the
    model is loaded again.

    \b
    Examples:
      normfold use surnames 1 --repository repository     roll back to version 1
      normfold use surnames latest --repository repository
      normfold use surnames 2                             the running server only
    """
    number = _number(version)
    if repository is None:
        if no_load or number is None:
            raise click.UsageError(
                f"{'--no-load' if no_load else 'latest'} needs --repository DIR, the server's folder of models"
                + ("" if no_load else "; without it, give a number: normfold models lists them")
            )
        with asking(address, timeout, credentials) as client:
            client.use(model, number)
            with told_after(f"version {number} of {model} is in service"):
                _say(client, model)
        return
    change = _change(repository, model, number, "" if no_load else address)
    if no_load:
        change.write()
        with told_after(f"{change.path} is changed"):
            click.echo(one_line(change.sentence))
        return
    outcome = "is unchanged"
    try:
        with asking(address, timeout, credentials) as client:
            if LOADS not in client.server_metadata().extensions:
                client.load(model)  # refused, with the server's own reason
            change.write()
            outcome = "has its old content again"
            try:
                client.load(model)
            except BaseException as error:
                change.undo()
                if isinstance(error, KeyboardInterrupt):
                    asked = _command("models", address=address)
                    error.add_note(one_line(f"{change.path} has its old content again; what the server did: {asked}"))
                raise
            with told_after(f"{change.path} is changed and {model} is loaded"):
                click.echo(one_line(change.sentence))
                outcome = ""
                _say(client, model)
    except click.UsageError:
        raise
    except click.ClickException as error:
        click.echo(f"Error: {message(error.format_message())}", err=True)
        if not outcome:
            sys.exit(1)
        further = (
            "with --no-load it is changed without asking a server, and a server with --model-control poll finds it"
        )
        if "--require-signature" in error.message:
            then = _command("load", model, address=address)
            further = f"signatures cover it: use --no-load, sign {change.path.parent} again, then {then}"
        click.echo(one_line(f"config.pbtxt {outcome}; {further}"), err=True)
        sys.exit(1)


def _number(version: str) -> int | None:
    from normfold.serving.client.control import checked_number

    if version == "latest":
        return None
    try:
        return checked_number(version)
    except ValueError as error:
        raise click.UsageError(f'{error}, nor "latest"') from None


@dataclass(frozen=True)
class _Change:
    """A change of a config.pbtxt that can be undone. Writing raises ClickException."""

    path: Path
    #: The text now; None where there is no file.
    before: str | None
    after: str
    #: A sentence for the user: the change, and how to undo it.
    sentence: str

    def write(self) -> None:
        self._put(self.after)

    def undo(self) -> None:
        self._put(self.before)

    def _put(self, text: str | None) -> None:
        from normfold.whole_file import write_whole

        try:
            if text is None:
                self.path.unlink(missing_ok=True)
            else:
                write_whole(self.path, text.encode())
        except OSError as error:
            raise click.ClickException(f"{self.path} cannot be written: {error.strerror or error}") from None


def _change(repository: Path, model: str, number: int | None, address: str) -> _Change:
    """The change that puts ``number`` of ``model`` in service, None for the highest. Raises ClickException.

    ``address``: of the server that is asked to load it; "" if none is.
    """
    from normfold.serving.catalog import config
    from normfold.serving.catalog.repository import Repository
    from normfold.serving.catalog.version_policy import described, with_policy
    from normfold.serving.errors import ServingError
    from normfold.serving.wording import near

    try:
        models = Repository(repository).models()
        folder = models.get(model)
        if folder is None or folder.path == repository:
            there = near(model, models) or f"; there are {', '.join(models)}"
            raise click.ClickException(f"{repository} is no repository with a model {model!r}{there}")
        if number is not None and number not in folder.versions():
            there = ", ".join(map(str, folder.versions())) or "none"
            raise click.ClickException(f"{model} has no version {number}; there are {there}")
        before = folder.config_text()
        text = with_policy(before or "", None if number is None else [number])
        was, now = (described(config.parse(each)) for each in (before or "", text))
    except (ServingError, OSError) as error:
        raise click.ClickException(str(error)) from None
    back = _argument(was)
    words = ["use", model, back, "--repository", str(repository), *([] if address else ["--no-load"])]
    undo = f"; back: {_command(*words, address=address)}" if back else ""
    path = folder.path / "config.pbtxt"
    return _Change(path, before, text, f"{path}: {now} (before: {was}){undo}")


def _command(*words: str, address: str) -> str:
    """A command of normfold as a shell takes it; the address is written unless the command takes it anyway."""
    at = [] if address in ("", ADDRESS) else ["--address", address]
    return shlex.join(["normfold", *words, *at])


def _argument(policy: str) -> str:
    """The argument of ``use`` that gives this policy again; empty where none does."""
    if policy == "the highest version":
        return "latest"
    word, _, number = policy.partition(" ")
    return number if word == "version" and number.isdecimal() else ""


def _say(client: Client, model: str) -> None:
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
