"""``normfold use``: which version of a model is in service, now and after the next load."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from normfold.cli.control import LOADS, asking, command_line, say_versions, server_options
from normfold.cli.output import told_after
from normfold.cli.terminal import message, one_line

if TYPE_CHECKING:
    from normfold.serving.client.connection import Credentials


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
@server_options
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
                say_versions(client, model)
        return
    change = _change(repository, model, number, "" if no_load else address)
    if no_load:
        change.write()
        with told_after(f"{change.path} is changed"):
            click.echo(one_line(change.sentence))
        return
    _change_and_load(change, model, address, timeout, credentials)


def _change_and_load(change: _Change, model: str, address: str, timeout: float, credentials: Credentials) -> None:
    """Change the file and have the server load ``model``, or leave the file as it is, say why and end with 1."""
    outcome = "is unchanged"
    try:
        with asking(address, timeout, credentials) as client:
            if LOADS not in client.server_metadata().extensions:
                client.load(model)  # refused, with the server's own reason
            change.write()
            outcome = ""
            try:
                client.load(model)
            except BaseException as error:
                change.undo(str(error) or "stopped")
                outcome = "has its old content again"
                if isinstance(error, KeyboardInterrupt):
                    asked = command_line("models", address=address)
                    error.add_note(one_line(f"{change.path} {outcome}; what the server did: {asked}"))
                raise
            with told_after(f"{change.path} is changed and {model} is loaded"):
                click.echo(one_line(change.sentence))
                say_versions(client, model)
    except click.UsageError:
        raise
    except click.ClickException as error:
        click.echo(f"Error: {message(error.format_message())}", err=True)
        if outcome:
            signed = "--require-signature" in error.message
            click.echo(one_line(f"config.pbtxt {outcome}; {_further(model, change, address, signed)}"), err=True)
        sys.exit(1)


def _further(model: str, change: _Change, address: str, signed: bool) -> str:
    """What to do when the server has not loaded the change; ``signed``: because it asks for signatures."""
    if signed:
        then = command_line("load", model, address=address)
        return f"signatures cover it: use --no-load, sign {change.path.parent} again, then {then}"
    return "with --no-load it is changed without asking a server, and a server with --model-control poll finds it"


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

    def undo(self, why: str) -> None:
        """Write the old text back; ``why``: why the new one must not stay."""
        try:
            self._put(self.before)
        except click.ClickException as error:
            raise click.ClickException(f"{why}; {error.message}: it keeps its new content") from None

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
    undo = f"; back: {command_line(*words, address=address)}" if back else ""
    path = folder.path / "config.pbtxt"
    return _Change(path, before, text, f"{path}: {now} (before: {was}){undo}")


def _argument(policy: str) -> str:
    """The argument of ``use`` that gives this policy again; empty where none does."""
    if policy == "the highest version":
        return "latest"
    word, _, number = policy.partition(" ")
    return number if word == "version" and number.isdecimal() else ""
