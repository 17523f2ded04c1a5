"""Options that do nothing without another one. A user who gives such an option alone gets an error or a warning."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import click
from click.core import ParameterSource

from normfold.cli.environment import say_where
from normfold.cli.terminal import one_line

#: The strength of each source of a value: an option from a stronger source may leave one from a weaker source unused.
_STRENGTH = {ParameterSource.DEFAULT_MAP: 1, ParameterSource.ENVIRONMENT: 2, ParameterSource.COMMANDLINE: 3}


class Need(NamedTuple):
    """A need that some options have in common; options are given by their names in the code."""

    options: tuple[str, ...]
    #: The option that decides whether ``options`` do anything.
    other: str
    #: Whether ``options`` do something, by the values of all options.
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
    """Raise click.BadParameter for an option on the command line that does nothing beside the others.

    One of a variable or of the file is warned of: both may be written for several commands, or for another machine.
    """
    parameters = {parameter.name: parameter for parameter in context.command.params}
    for need in needs:
        if need.met(context.params):
            continue
        least = max(1, _strength(context, need.other))
        for name in need.options:
            strength = _strength(context, name)
            if strength < least:
                continue
            error = click.BadParameter(f"it does nothing {need.why}", context, parameters[name])
            if strength == _STRENGTH[ParameterSource.COMMANDLINE]:
                raise error
            say_where(error)
            click.echo(one_line(f"Warning: {error.param_hint}: {error.message}"), err=True)


def _strength(context: click.Context, name: str) -> int:
    """How much the source of the option's value counts; 0: it is not given."""
    source = context.get_parameter_source(name)
    return 0 if source is None else _STRENGTH.get(source, 0)
