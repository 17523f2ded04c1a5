"""The options of ``normfold serve`` that limit what clients and models may take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


def _bytes(context: click.Context, parameter: click.Parameter, mebibytes: int | None) -> int:
    """A number of MiB in bytes; 0 where the option is not given."""
    return (mebibytes or 0) << 20


OPTIONS = (
    click.option(
        "--max-message-mib",
        "max_message_bytes",
        type=click.IntRange(1, 2047),
        callback=_bytes,
        default=256,
        show_default=True,
        help="Largest request.",
    ),
    click.option(
        "--max-connections",
        type=click.IntRange(1, 1 << 20),
        default=4096,
        show_default=True,
        help="Connections; a new one takes the place of an idle one, or is closed (http2 only).",
    ),
    click.option(
        "--max-connection-mib",
        "max_connection_bytes",
        type=click.IntRange(1, 1 << 20),
        callback=_bytes,
        default=256,
        show_default=True,
        help="Unfinished requests and answers not taken, for one connection (http2 only).",
    ),
    click.option(
        "--max-held-mib",
        "max_held_bytes",
        type=click.IntRange(1, 1 << 20),
        callback=_bytes,
        default=1024,
        show_default=True,
        help="The same for all connections together (http2 only).",
    ),
    click.option(
        "--stall-seconds",
        type=click.FloatRange(0, min_open=True),
        default=60.0,
        show_default=True,
        help="Give up an unfinished request, or an answer not taken, after this time without progress (http2 only).",
    ),
    click.option(
        "--worker-seconds",
        type=click.FloatRange(2),
        default=30.0,
        show_default=True,
        help="Replace a worker that has not answered the supervisor for this time.",
    ),
    click.option(
        "--max-queue-seconds",
        type=click.FloatRange(0, min_open=True),
        default=0.5,
        show_default=True,
        help="Refuse a request that would wait longer for its model, by the measured time of its runs.",
    ),
    click.option(
        "--max-queue-requests",
        type=click.IntRange(1, 1 << 24),
        default=8192,
        show_default=True,
        help="Requests under way in a worker; a model or a connection may have as many as are left free.",
    ),
    click.option(
        "--max-queue-mib",
        "max_queue_bytes",
        type=click.IntRange(1, 1 << 20),
        callback=_bytes,
        default=512,
        show_default=True,
        help="Bytes of these requests.",
    ),
    click.option(
        "--memory-limit",
        "memory_limit_bytes",
        type=click.IntRange(64, 1 << 30),
        callback=_bytes,
        help="MiB for all workers together: runs that need more are refused. Default: four fifths of what there is.",
    ),
    click.option(
        "--load-seconds",
        type=click.FloatRange(0),
        default=120.0,
        show_default=True,
        help="Longest time of a load and its warm-up, which are tried in a process of their own first. 0: no trial.",
    ),
    click.option(
        "--load-mib",
        "load_bytes",
        type=click.IntRange(0, 1 << 24),
        callback=_bytes,
        default=0,
        help="Memory that a load may take. Default: 2048, and 8 times the size of the model's files.",
    ),
)


def limit_options(command: Command) -> Command:
    """Give ``command`` the options."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command
