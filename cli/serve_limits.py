"""The options of ``normfold serve`` that limit what requests and models may take."""

from __future__ import annotations

import re

import click

from normfold.cli.option_groups import option_group
from normfold.cli.serve_connections import mebibytes


def _size(context: click.Context, parameter: click.Parameter, text: str | None) -> int:
    """A callback that turns "2GiB", "500MiB" or "500" into bytes; 0 where the option is not given."""
    match = re.fullmatch(r"([0-9]{1,9}) ?(MiB|GiB)?", "0" if text is None else text)
    if match is None:
        raise click.BadParameter(f"{text!r} is no size; write it as 2GiB, 500MiB, or 500 for MiB")
    return int(match[1]) << (30 if match[2] == "GiB" else 20)


limit_options = option_group(
    click.option(
        "--max-message-mib",
        "max_message_bytes",
        type=click.IntRange(1, 2047),
        callback=mebibytes,
        default=256,
        show_default=True,
        help="Largest request.",
    ),
    click.option(
        "--worker-seconds",
        type=click.FloatRange(2),
        default=30.0,
        show_default=True,
        help="With several workers: replace one that has not answered the supervisor for this time.",
    ),
    click.option(
        "--max-queue-seconds",
        type=click.FloatRange(0, min_open=True),
        default=0.5,
        show_default=True,
        help="Refuse a request that would wait longer for its model, by the measured time of its runs; with http2 also "
        "one that waited half of this in its connection.",
    ),
    click.option(
        "--max-queue-requests",
        type=click.IntRange(1, 1 << 24),
        default=8192,
        show_default=True,
        help="Requests under way in each worker; a model or a connection may have as many as are left free.",
    ),
    click.option(
        "--max-queue-mib",
        "max_queue_bytes",
        type=click.IntRange(1, 1 << 20),
        callback=mebibytes,
        default=512,
        show_default=True,
        help="Bytes of these requests, in each worker.",
    ),
    click.option(
        "--memory-limit",
        "memory_limit_bytes",
        callback=_size,
        metavar="SIZE",
        help="Memory of all workers together, such as 4GiB or 500MiB (or 500): runs that need more are refused. "
        "Default: four fifths of what there is.",
    ),
    click.option(
        "--memory-budget",
        "memory_budget_bytes",
        callback=_size,
        metavar="SIZE",
        help="With --load lazily: memory of the loaded models in all workers, such as 2GiB or 500MiB. Beyond it, the "
        "idle ones that were not used for longest are unloaded. Default: no limit.",
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
        callback=mebibytes,
        default=0,
        help="Memory that a load may take. Default: 2048, and 8 times the size of the model's files.",
    ),
)
