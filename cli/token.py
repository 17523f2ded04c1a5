"""``normfold token`` makes a token for a server with ``--tokens``."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

import click

from normfold.plain_file import SMALL_BYTES, read_plain_file
from normfold.serving.access.scopes import Scope
from normfold.whole_file import alone_in, written_whole


@click.command(short_help="Make a token for a server with --tokens.")
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    type=click.Choice([scope.value for scope in Scope]),
    multiple=True,
    default=(Scope.INFER.value, Scope.READ.value),
    show_default="infer and read",
    help="Repeat for more: infer asks models, read reads metadata and health, admin changes the server.",
)
@click.option("--model", "models", multiple=True, help="Only for this model (repeat for more). Default: for all.")
@click.option(
    "--tokens",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Append the line to this file, and print the token alone.",
)
def token(name: str, scopes: tuple[str, ...], models: tuple[str, ...], tokens: Path | None) -> None:
    """Make a token for NAME, and print it with its line for the file of normfold serve --tokens.

    \b
    Examples:
      ( umask 077; normfold token hospital --tokens tokens > hospital.token )
      normfold token operator --scope read --scope admin --tokens tokens
      normfold token ward-7 --scope infer --model surnames

    The token goes to the client: commands take it from NORMFOLD_TOKEN or --token-file. The file of the server has only
    its SHA-256, so a lost token cannot be printed again: remove its line and make another.
    """
    from normfold.serving.access.tokens import line, new_token
    from normfold.serving.errors import StartError

    made = new_token()
    try:
        written = line(name, [Scope(scope) for scope in scopes], models, made)
    except (ValueError, StartError) as error:
        raise click.ClickException(str(error)) from None
    if tokens is None:
        click.echo(f"token: {made}\nline:  {written}")
        return
    if sys.stdout is None:
        raise click.ClickException("standard output is closed: nobody would see the token")
    unseen: OSError | None = None
    further = ""
    try:
        target = Path(os.path.realpath(tokens))  # a link stays one; the file that is renamed would replace it
        with alone_in(target.parent, partial(click.echo, err=True)), written_whole(target) as file:
            if not target.exists():
                os.fchmod(file.fileno(), 0o600)
            file.write(_other_lines(tokens, name) + written.encode() + b"\n")
            file.flush()
            try:
                click.echo(made)  # before the line is in force: nobody would know of a token that cannot be shown
            except OSError as error:
                unseen = error
                raise
            further = "; the token that was printed is not valid"
    except OSError as error:
        if error is unseen:
            raise
        raise click.ClickException(f"{tokens} cannot be written: {error.strerror}{further}") from None


def _other_lines(tokens: Path, name: str) -> bytes:
    """The content of the file before the line of ``name`` is appended. Raises ClickException."""
    from normfold.serving.access.tokens import holders_in
    from normfold.serving.errors import StartError

    try:
        before = read_plain_file(tokens, SMALL_BYTES)
        holders = holders_in(before, tokens)
    except FileNotFoundError:
        return b""
    except StartError as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise click.ClickException(f"{tokens} cannot be read: {error.strerror}") from None
    if any(holder.name == name for holder in holders.values()):
        raise click.ClickException(f"{tokens} has a token for {name} already; remove its line first")
    return before + (b"" if before.endswith(b"\n") or not before else b"\n")
