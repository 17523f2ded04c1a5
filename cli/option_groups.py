"""Options that a command takes as a group."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Command = Callable[..., Any]
Decorator = Callable[[Command], Command]


def option_group(*options: Decorator) -> Decorator:
    """A decorator that gives a command these options, which its help lists in their order."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate
