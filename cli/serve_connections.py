"""The options of ``normfold serve`` that say how many connections there may be and for how long."""

from __future__ import annotations

import click

from normfold.cli.option_groups import option_group


def mebibytes(context: click.Context, parameter: click.Parameter, number: int | None) -> int:
    """A number of MiB in bytes; 0 where the option is not given."""
    return (number or 0) << 20


# Each option has the name and the default of a field of ServerConfig.
connection_options = option_group(
    click.option(
        "--max-connections",
        type=click.IntRange(1, 1 << 20),
        default=4096,
        show_default=True,
        help="Connections of each worker; a new one takes the place of an idle one, or is closed (http2 only).",
    ),
    click.option(
        "--max-connection-mib",
        "max_connection_bytes",
        type=click.IntRange(1, 1 << 20),
        callback=mebibytes,
        default=256,
        show_default=True,
        help="Unfinished requests and answers not taken, for one connection (http2 only).",
    ),
    click.option(
        "--max-held-mib",
        "max_held_bytes",
        type=click.IntRange(1, 1 << 20),
        callback=mebibytes,
        default=1024,
        show_default=True,
        help="The same for all connections of each worker (http2 only).",
    ),
    click.option(
        "--stall-seconds",
        type=click.FloatRange(0, min_open=True),
        default=60.0,
        show_default=True,
        help="Give up an unfinished request, or an answer not taken, after this time without progress (http2 only).",
    ),
    click.option(
        "--max-connection-age",
        "max_connection_age_seconds",
        type=click.FloatRange(0),
        default=0.0,
        show_default="no limit",
        help="Seconds, 10 % more or less, after which a client is asked to make a new connection; no call is lost.",
    ),
    click.option(
        "--max-connection-age-grace",
        "max_connection_age_grace_seconds",
        type=click.FloatRange(0, min_open=True),
        default=30.0,
        show_default=True,
        help="Seconds for the calls of a connection of that age before it is closed.",
    ),
    click.option(
        "--max-connection-idle",
        "max_connection_idle_seconds",
        type=click.FloatRange(0),
        default=0.0,
        show_default="no limit",
        help="Seconds without a call after which a connection is closed.",
    ),
    click.option(
        "--keepalive-seconds",
        type=click.FloatRange(0),
        default=60.0,
        show_default=True,
        help="Silence after which a client is asked whether it is there; 0: never.",
    ),
    click.option(
        "--keepalive-timeout",
        "keepalive_timeout_seconds",
        type=click.FloatRange(0, min_open=True),
        default=20.0,
        show_default=True,
        help="Seconds for the answer of such a client before its connection is closed.",
    ),
)
