"""normfold.toml: options of commands, so that they need not be typed. An option of the command line comes first, then
the environment (NORMFOLD_SERVE_LISTEN for ``normfold serve --listen``), then this file.

    [serve]
    repository = "repository"
    listen = "127.0.0.1:8001"
    max-message-mib = 64
    load-model = ["surnames", "gunpoint"]
    tune = false
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import click

from normfold.plain_file import read_plain_text

#: Read where it lies in the working directory and no other file is named.
DEFAULT = Path("normfold.toml")


def read(
    path: Path | None, name: str, commands: Iterable[str], command: Callable[[str], click.Command]
) -> dict[str, object]:
    """The defaults of the command ``name`` by the names of its parameters: those in its section of the file.

    ``path``: None for DEFAULT, which may be missing. ``commands`` are the names that a section may have, and
    ``command`` gives the command of a name. Raises click.UsageError for a file that cannot be read, and for what is no
    option in any section: whichever command reads the file first finds the mistake.
    """
    file = DEFAULT if path is None else path
    if path is None and not file.is_file():
        return {}
    try:
        sections = tomllib.loads(read_plain_text(file))
    except UnicodeDecodeError:
        raise click.UsageError(f"{file} cannot be read: it is not UTF-8 text") from None
    except (OSError, ValueError) as error:  # a number of thousands of digits is a ValueError too
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise click.UsageError(f"{file} cannot be read: {why}") from None
    found: dict[str, object] = {}
    for section, values in sections.items():
        if not isinstance(values, dict):
            hint = f"write [{section}]" if section in commands else "write it below one, such as [serve]"
            raise click.UsageError(f"{file}: {section} is {'no' if section in commands else 'in no'} section; {hint}")
        if section not in commands:
            near = difflib.get_close_matches(section, commands, n=1, cutoff=0.7)
            hint = f"did you mean [{near[0]}]?" if near else f"sections are {', '.join(commands)}"
            raise click.UsageError(f"{file}: [{section}] is no command; {hint}")
        defaults = _defaults(file, section, values, command(section))
        if section == name:
            found = defaults
    return found


def _defaults(file: Path, section: str, values: Mapping[str, object], command: click.Command) -> dict[str, object]:
    options = {
        word.removeprefix("--"): option
        for option in command.params
        if isinstance(option, click.Option)
        for word in option.opts
        if word.startswith("--")
    }
    found: dict[str, object] = {}
    for key, value in values.items():
        option = options.get(key)
        if option is None or option.name is None:
            near = difflib.get_close_matches(key, options, n=1)
            hint = f"did you mean {near[0]}?" if near else f"`normfold {section} --help` lists them"
            raise click.UsageError(f"{file}: normfold {section} has no option --{key}; {hint}")
        if isinstance(value, dict):
            raise click.UsageError(f"{file}: {section}.{key} is a table; a value was expected")
        if option.is_flag != isinstance(value, bool):
            kind = "true or false" if option.is_flag else "a value"
            raise click.UsageError(f"{file}: {section}.{key} is {value!r}; {kind} was expected")
        if option.multiple != isinstance(value, list):
            kind = 'a list, such as ["a"],' if option.multiple else "one value"
            raise click.UsageError(f"{file}: {section}.{key} is {value!r}; {kind} was expected")
        if option.is_flag:
            found[option.name] = value
        else:
            found[option.name] = list(map(str, value)) if isinstance(value, list) else str(value)
    return found
