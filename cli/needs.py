"""Options that do nothing without another: giving one of them alone is an error, so that none is ignored silently."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import click
from click.core import ParameterSource

#: What the sources of a value count; what comes from a weaker one may be left without use by a stronger one.
_STRENGTH = {ParameterSource.DEFAULT_MAP: 1, ParameterSource.ENVIRONMENT: 2, ParameterSource.COMMANDLINE: 3}


class Need(NamedTuple):
    """What some options need, all by their names in the code."""

    options: tuple[str, ...]
    #: The option that decides whether they do anything.
    other: str
    #: Whether they do, by the values of all options.
    met: Callable[[Mapping[str, Any]], bool]
    #: The end of the sentence: "it does nothing without --model-control poll".
    why: str


def needing(*needs: Need) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Have a command refuse options that would be ignored. To be written below the command's options.

    An option of the file or of a variable that the command line leaves without use is no mistake: it is overridden.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def checked(*arguments: Any, **options: Any) -> Any:
            check(click.get_current_context(), needs)
            return command(*arguments, **options)

        return checked

    return decorate


def check(context: click.Context, needs: Iterable[Need]) -> None:
    """Raise click.BadParameter for a given option that does nothing beside the others."""
    parameters = {parameter.name: parameter for parameter in context.command.params}
    for need in needs:
        if need.met(context.params):
            continue
        least = max(1, _strength(context, need.other))
        for name in need.options:
            if _strength(context, name) >= least:
                raise click.BadParameter(f"it does nothing {need.why}", context, parameters[name])


def _strength(context: click.Context, name: str) -> int:
    """How much the source of the option's value counts; 0: it is not given."""
    source = context.get_parameter_source(name)
    return 0 if source is None else _STRENGTH.get(source, 0)
