"""Options of a command that are kept in a module of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Command = Callable[..., Any]


def with_options(command: Command, options: Sequence[Callable[[Command], Command]]) -> Command:
    """``command`` with ``options``, which its help lists in their order."""
    for option in reversed(options):
        command = option(command)
    return command
