"""The variables of the environment: NORMFOLD_SERVE_LISTEN for ``normfold serve --listen``.

One that has no option is an error, as in the file of options: a server that was to have tokens must not start without.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import click
from click.core import ParameterSource

#: The variables that Kubernetes gives every pod for a Service such as normfold-serve; ..._PORT has a URL as its value.
_SERVICE = re.compile(r"(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)")
_PORT, _URL = re.compile(r"(\w+_)?PORT"), re.compile(r"(tcp|udp|sctp)://")


def variables(name: str, command: click.Command) -> dict[str, click.Option]:
    """The options of the command ``name`` by their variables."""
    found = {}
    for option in command.params:
        if isinstance(option, click.Option):
            found[f"NORMFOLD_{name}_{_long(option)}".replace("-", "_").upper()] = option
    return found


def check(name: str, command: click.Command, environment: Mapping[str, str]) -> None:
    """Raise click.UsageError for a variable of the command ``name`` that is no option of it."""
    known = variables(name, command)
    prefix = f"NORMFOLD_{name}_".upper()
    for variable in sorted(environment):
        rest = variable.removeprefix(prefix)
        if not variable.startswith(prefix) or variable in known or _of_kubernetes(rest, environment[variable]):
            continue
        word = rest.replace("_", "-").lower()
        near = _nearest(word, known)
        hint = f"did you mean {near}?" if near else f"`normfold {name} --help` lists them"
        raise click.UsageError(f"{variable}: normfold {name} has no option --{word}; {hint}")


def say_where(error: click.BadParameter) -> None:
    """Have ``error`` say that a wrong value came from a variable or from the file of options, if it did."""
    from normfold.cli.config_file import DEFAULT

    option, context = error.param, error.ctx
    if not isinstance(option, click.Option) or option.name is None or context is None or context.parent is None:
        return
    source = context.get_parameter_source(option.name)
    if source is ParameterSource.ENVIRONMENT:
        error.param_hint = f"{option.envvar} (--{_long(option)})"
    elif source is ParameterSource.DEFAULT_MAP:
        file = context.parent.params.get("config") or DEFAULT
        error.param_hint = f"{_long(option)} in [{context.info_name}] of {file}"


def _nearest(word: str, known: Mapping[str, click.Option]) -> str:
    """The variable that was probably meant by ``word``; "" where none is like it."""
    import difflib

    for variable, option in known.items():
        if f"--{word}" in option.secondary_opts:
            return f"{variable}=false"
    meant = {(option.name or "").replace("_", "-"): variable for variable, option in known.items()}  # as in the code
    meant |= {_long(option): variable for variable, option in known.items()}
    near = difflib.get_close_matches(word, meant, n=1)
    return meant[near[0]] if near else ""


def _of_kubernetes(rest: str, value: str) -> bool:
    return bool(_SERVICE.fullmatch(rest) or (_PORT.fullmatch(rest) and _URL.match(value)))


def _long(option: click.Option) -> str:
    """The first long name of ``option`` without its dashes."""
    return next(word for word in option.opts if word.startswith("--")).removeprefix("--")
