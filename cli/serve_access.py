"""The options of ``normfold serve`` that say who may come in."""

from __future__ import annotations

from pathlib import Path

import click

from normfold.cli.option_groups import option_group

FILE = click.Path(path_type=Path)

# Each option has the name and the default of a field of ServerConfig.
access_options = option_group(
    click.option("--tls-cert", type=FILE, help="The server's certificate, in PEM. Read again when it changes."),
    click.option("--tls-key", type=FILE, help="Its key, without a passphrase."),
    click.option("--tls-client-ca", type=FILE, help="Accept only clients with a certificate that one of these signed."),
    click.option(
        "--insecure",
        is_flag=True,
        help="Let other hosts reach the server without TLS, and its metrics, which have none.",
    ),
    click.option(
        "--tokens",
        type=FILE,
        help="Admit only calls with a token of this file (normfold token). Read again when it changes.",
    ),
    click.option(
        "--health-without-token", is_flag=True, help="With --tokens, answer health and readiness to everybody."
    ),
    click.option("--require-manifest", is_flag=True, help="Serve only versions with a manifest.json."),
    click.option(
        "--require-signature",
        type=FILE,
        help="Serve only versions that the owner of this public key has signed (normfold sign).",
    ),
    click.option(
        "--reflection/--no-reflection",
        default=True,
        show_default=True,
        help="Whether clients may list the procedures, as grpcurl does.",
    ),
)
