"""The options of every command that asks a server: TLS and a token."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from normfold.cli.needs import Need
from normfold.cli.option_groups import option_group

if TYPE_CHECKING:
    from normfold.serving.client.errors import ClientError

FILE = click.Path(path_type=Path)
#: The environment variable that holds a token.
TOKEN = "NORMFOLD_TOKEN"

_options = option_group(
    click.option("--tls", is_flag=True, help="Connect with TLS; the options --tls-… imply it."),
    click.option("--tls-ca", type=FILE, help="The certificates that sign the server's, in PEM. Default: the system's."),
    click.option("--tls-cert", type=FILE, help="This client's certificate, for a server that wants one."),
    click.option("--tls-key", type=FILE, help="Its key, without a passphrase."),
    click.option("--tls-server-name", default="", help="The name in the server's certificate. Default: the host."),
    click.option("--token-file", type=FILE, help=f"The file that holds the token. Default: the variable {TOKEN}."),
)


#: Their names in the code.
NAMES = ("tls", "tls_ca", "tls_cert", "tls_key", "tls_server_name", "token_file")


def asks_no_server(other: str, asks: Callable[[Mapping[str, Any]], bool], why: str, *more: str) -> Need:
    """The need of these options, and of ``more``, in a command that asks a server only sometimes."""
    return Need((*more, *NAMES), other, asks, why)


def connection_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """``command`` with these options, which it gets as one argument, ``credentials``."""

    @functools.wraps(command)
    def with_credentials(
        *arguments: Any,
        tls: bool,
        tls_ca: Path | None,
        tls_cert: Path | None,
        tls_key: Path | None,
        tls_server_name: str,
        token_file: Path | None,
        **options: Any,
    ) -> Any:
        from normfold.serving.client.connection import ClientTls, Credentials, token_header

        if (tls_cert is None) != (tls_key is None):
            missing = "--tls-key" if tls_key is None else "--tls-cert"
            raise click.UsageError(f"--tls-cert and --tls-key belong together; {missing} FILE is missing")
        with_tls = tls or tls_ca is not None or tls_cert is not None or bool(tls_server_name)
        token = _token(token_file)
        try:
            token_header(token)
        except ValueError as error:
            raise click.UsageError(
                f"{TOKEN if token_file is None else f'--token-file {token_file}'}: {error}"
            ) from None
        client_tls = ClientTls(tls_ca, tls_cert, tls_key, tls_server_name) if with_tls else None
        return command(*arguments, credentials=Credentials(client_tls, token), **options)

    return _options(with_credentials)


def said_of(error: ClientError, address: str) -> str:
    """``error`` as a command prints it, with what helps where that is known."""
    from normfold.serving.errors import Status

    ours = error.details == "Deadline Exceeded"  # a server's own limits have other words
    if error.code is Status.DEADLINE_EXCEEDED and ours:
        return f"{error}; --timeout SECONDS waits longer"
    if error.code is not Status.NOT_FOUND or "did you mean" in error.details:
        return str(error)
    return f"{error}; what is served: normfold models --address {address}"


def _token(file: Path | None) -> str | None:
    """The token in ``file``, else that of the environment, else None. Raises click.UsageError."""
    from normfold.plain_file import SMALL_BYTES, read_plain_file

    if file is None:
        return os.environ.get(TOKEN) or None
    try:
        return read_plain_file(file, SMALL_BYTES).decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not text"
        raise click.UsageError(f"--token-file {file} cannot be read: {why}") from None
