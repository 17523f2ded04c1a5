"""Find the network that the user names: ``package.module:attr`` or ``path/file.py:attr``.

``attr`` is a factory, a class or a ready module. The user's code is imported as if Python were started in its own
directory: that directory is first on ``sys.path``, and a file inside a package is imported by its dotted name, so that
relative imports work. No module of normfold can be imported by a short name that could hide one of the user's.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from normfold.export.errors import SourceError
from normfold.export.plain_module import duplicate, unwrapped
from normfold.export.sources.named import names_file, require_code, split_source
from normfold.export.user_code import cure_of_import, line_of_error

__all__ = ["NO_TORCHSCRIPT", "Source", "load_source"]

#: What to do with a TorchScript program.
NO_TORCHSCRIPT = (
    "it cannot be captured any more (torch has deprecated it): export from the Python code, or where only the program "
    "is left, write it as ONNX with torch.onnx.export(torch.jit.load(…), inputs, 'net.onnx', dynamo=False) and give "
    "that file"
)
#: What to do where the network is built from an object of the user's own.
_FUNCTION = "write a function without arguments that makes the network, and name it in place of this"


@dataclass(frozen=True)
class Source:
    """A network in evaluation mode, and its origin."""

    network: nn.Module
    #: The source as the user typed it, without directories: "mynets.py:SurnameCNN".
    name: str
    #: sha256 of the file that defines it, "" where there is none (a module defined in a shell).
    sha256: str
    #: What made it: a "class", a "function" or a "module" that has a name, or "network" for one in memory.
    kind: str
    #: Changes to the network that the user should know of.
    notes: tuple[str, ...] = ()


def load_source(text: str | nn.Module, arguments: Mapping[str, Any] | None = None) -> Source:
    """Import, build and return the network that ``text`` names, in evaluation mode; of a ready network, a copy.

    arguments are passed to a factory or a class by keyword. Raises SourceError where the name does not exist, the
    import fails, the factory takes other arguments, or its result is not a ``torch.nn.Module``.
    """
    if isinstance(text, nn.Module):
        return _copied(text)
    place, attr = split_source(text)
    is_path = names_file(place)
    module = _import_file(Path(place)) if is_path else _import_module(place)
    maker = _attribute(module, attr, text)
    network = unwrapped(_build(maker, dict(arguments or {}), text))
    training = [name or "the network" for name, module in network.named_modules() if module.training]
    network.eval()
    notes: tuple[str, ...] = ()
    if training and not inspect.isclass(maker):  # a class always makes its instances in training mode
        first = training[0] if training[0] == "the network" else f"'{training[0]}' of the network"
        notes = (f"{first} came in training mode; it was set to eval(), as it runs when served",)
    file = getattr(module, "__file__", None)
    digest = hashlib.sha256(Path(file).read_bytes()).hexdigest() if file and Path(file).is_file() else ""
    return Source(network, f"{Path(place).name if is_path else place}:{attr}", digest, _kind(maker), notes)


def _kind(maker: Any) -> str:
    if isinstance(maker, functools.partial):
        return _kind(maker.func)
    return "class" if inspect.isclass(maker) else "module" if isinstance(maker, nn.Module) else "function"


def _copied(network: nn.Module) -> Source:
    """Return a copy of ``network`` on the CPU in evaluation mode, so that the network itself stays as it is."""
    network = unwrapped(network)
    name = type(network).__qualname__
    try:
        copied = duplicate(network).cpu()
    except Exception as error:
        raise SourceError(f"the network {name} cannot be copied: {type(error).__name__}: {error}") from error
    notes = (f"{name} is in training mode; a copy in eval() was exported, as it runs when served",)
    module = sys.modules.get(type(network).__module__)
    file = getattr(module, "__file__", None)
    digest = hashlib.sha256(Path(file).read_bytes()).hexdigest() if file and Path(file).is_file() else ""
    where = f"{Path(file).name}:{name}" if digest and file else name
    return Source(copied.eval(), where, digest, "network", notes if network.training else ())


def _import_file(path: Path) -> ModuleType:
    require_code(path)
    if importlib.util.spec_from_file_location(path.stem, path) is None:
        raise SourceError(f"'{path}' is no file of Python code: its name must end in .py")
    path = path.resolve()
    root, parts = path.parent, [path.stem]
    while (root / "__init__.py").is_file():
        parts.insert(0, root.name)
        root = root.parent
    _put_first_on_path(root)
    name = ".".join(parts)
    if len(parts) == 1:
        loaded = sys.modules.get(name)
        if loaded is not None and getattr(loaded, "__file__", None) != str(path):
            # For example random.py: the user's file must not replace the module of that name.
            name = f"_normfold_source_{path.stem}"
        return _guarded(lambda: _exec_file(name, path), str(path.name))
    return _guarded(lambda: importlib.import_module(name), str(path.name))


def _exec_file(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _import_module(name: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise SourceError(f"'{name}' is neither a Python module's name nor a path that ends in .py")
    _put_first_on_path(Path.cwd())
    try:
        found = importlib.util.find_spec(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise SourceError(_import_failure(name, error)) from error  # a parent package fails on an import of its own
        found = None
    except Exception as error:
        raise SourceError(_import_failure(name, error)) from error
    if found is None:
        hint = f"; did you mean the file '{name}.py:…'?" if Path(f"{name}.py").is_file() else ""
        raise SourceError(f"no module '{name}' on the import path (the current directory included: {Path.cwd()}){hint}")
    return _guarded(lambda: importlib.import_module(name), name)


def _put_first_on_path(directory: Path) -> None:
    if str(directory) in sys.path:
        sys.path.remove(str(directory))
    sys.path.insert(0, str(directory))


def _guarded(load: Any, what: str) -> ModuleType:
    try:
        module = load()
    except SystemExit as error:
        raise SourceError(
            f"importing '{what}' ended with sys.exit({error.code}): it runs as a script when imported; "
            "put the part that runs under `if __name__ == '__main__':`"
        ) from error
    except Exception as error:
        raise SourceError(_import_failure(what, error)) from error
    assert isinstance(module, ModuleType)
    return module


def _import_failure(what: str, error: Exception) -> str:
    line = f"{error.filename}:{error.lineno}" if isinstance(error, SyntaxError) else line_of_error(error)
    where = f" at {line}" if line else ""
    return f"importing '{what}' failed{where}: {type(error).__name__}: {error}{cure_of_import(error)}"


def _attribute(module: ModuleType, attr: str, text: str) -> Any:
    value: Any = module
    for part in attr.split("."):
        if not hasattr(value, part):
            raise SourceError(f"'{text}': there is no '{part}' in it{_candidates(value, part)}")
        value = getattr(value, part)
    return value


def _candidates(holder: Any, wanted: str) -> str:
    """Suggest similar names, else list the networks that ``holder`` defines."""
    near = difflib.get_close_matches(wanted, [n for n in vars(holder) if not n.startswith("_")], n=3, cutoff=0.5)
    if near:
        return f"; did you mean {' or '.join(repr(n) for n in near)}?"
    networks = [
        n
        for n, v in vars(holder).items()
        if isinstance(v, nn.Module)
        or (inspect.isclass(v) and issubclass(v, nn.Module) and v.__module__ == getattr(holder, "__name__", None))
    ]
    return f"; the networks it defines: {', '.join(networks)}" if networks else "; it defines no torch.nn.Module"


def _build(value: Any, arguments: dict[str, Any], text: str) -> nn.Module:
    if isinstance(value, torch.jit.ScriptModule):
        raise SourceError(f"'{text}' is a TorchScript program; {NO_TORCHSCRIPT}")
    if isinstance(value, nn.Module):
        if arguments:
            raise SourceError(f"'{text}' is a ready module, so it takes no --arg ({', '.join(arguments)})")
        return value
    if not callable(value):
        raise SourceError(f"'{text}' is {_a(value)}; expected a torch.nn.Module, or a function or class that makes one")
    _check_arguments(value, arguments, text)
    try:
        network = value(**arguments)
    except (Exception, SystemExit) as error:
        line = line_of_error(error)
        where = f" at {line}" if line else ""
        given = f". It was called with {', '.join(f'{k}={v!r}' for k, v in arguments.items())}" if arguments else ""
        given += _texts(value, arguments)
        if isinstance(error, AttributeError) and any(error.obj is each is not None for each in arguments.values()):
            given += f". Options give numbers, texts, lists and dicts; {_FUNCTION}"
        raise SourceError(f"'{text}' failed when called{where}: {type(error).__name__}: {error}{given}") from error
    if isinstance(network, torch.jit.ScriptModule):
        raise SourceError(f"'{text}' made a TorchScript program; {NO_TORCHSCRIPT}")
    if not isinstance(network, nn.Module):
        raise SourceError(f"'{text}' made {_a(network)}; expected a torch.nn.Module")
    return network


def _check_arguments(value: Any, arguments: dict[str, Any], text: str) -> None:
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return  # written in C: the call itself reports wrong arguments
    parameters = signature.parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        for name in arguments:
            if name not in parameters:
                near = difflib.get_close_matches(name, parameters, n=1)
                hint = f"did you mean '{near[0]}'?" if near else f"it takes: {', '.join(parameters) or 'nothing'}"
                raise SourceError(f"'{text}' has no argument '{name}'; {hint}")
    missing = [
        p.name
        for p in parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in arguments
    ]
    if missing:
        if objects := [name for name in missing if _of_users_class(value, name)]:
            raise SourceError(
                f"'{text}' needs {', '.join(missing)}, and no option gives {', '.join(objects)}: {_FUNCTION} "
                f"(its signature: {signature})"
            )
        give = " ".join(f"--arg {name}=…" for name in missing)
        raise SourceError(f"'{text}' needs {', '.join(missing)}: add {give} (its signature: {signature})")


def _of_users_class(value: Any, name: str) -> bool:
    """Whether this argument is to be of a class that is not Python's own, such as a dataclass."""
    with suppress(Exception):  # an annotation in quotes may name what is imported for type checkers only
        wanted = inspect.signature(value, eval_str=True).parameters[name].annotation
        python = wanted.__module__.partition(".")[0] in sys.stdlib_module_names
        return isinstance(wanted, type) and not python and not issubclass(wanted, (dict, float, int, list, str, tuple))
    return False


def _texts(value: Any, arguments: dict[str, Any]) -> str:
    """The end of a sentence about a call that failed: an argument that is text where the default is a number."""
    try:
        parameters = inspect.signature(value).parameters
    except (TypeError, ValueError):
        return ""
    for name, given in arguments.items():
        default = parameters[name].default if name in parameters else None
        if isinstance(given, str) and isinstance(default, (int, float)):
            return f"; {given!r} is text, and {name} is {default!r} by default"
    return ""


def _a(value: Any) -> str:
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
