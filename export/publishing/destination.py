"""The place of a version in a repository: what is there already, and whether the version may be published there.

``check_destination`` runs before the long work, with the inputs alone; ``replaces_model`` runs again when the outputs
are known.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from google.protobuf import text_format

from normfold.export.errors import PublishError
from normfold.export.inputs.specs import InputSpec
from normfold.plain_file import read_plain_text
from normfold.protos import model_config
from normfold.protos.config_text import parse_config

__all__ = ["Destination", "check_destination", "check_name", "next_version", "read_config", "replaces_model"]

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}\Z")

#: ("input" or "output", name) -> "FP32[-1,77,-1]", the batch dimension included.
Tensors = dict[tuple[str, str], str]


@dataclass(frozen=True)
class Destination:
    """A version of a model in a repository."""

    repository: Path
    name: str
    #: None: the next free version.
    version: int | None = None
    overwrite: bool = False

    @property
    def directory(self) -> Path:
        """The model's directory."""
        return self.repository / self.name

    @property
    def behind_link(self) -> Destination:
        """The place that is written to: where the model's directory is a link, what the link leads to."""
        if not self.directory.is_symlink():
            return self
        place = Path(os.path.realpath(self.directory))
        return replace(self, repository=place.parent, name=place.name)

    @property
    def number(self) -> int:
        """The version that will be written."""
        return self.version or next_version(self.directory)

    @property
    def others(self) -> list[int]:
        """The versions that are there and stay."""
        return [number for number in _versions(self.directory) if number != self.number]


def check_name(name: str) -> None:
    """Raise PublishError where ``name`` cannot be a model's directory."""
    if not _NAME.match(name) or ".." in name:
        raise PublishError(
            f"{name!r} cannot be a model's name: expected letters, digits, '_', '-' and '.', at most 128, "
            f"for example {_suggested(name)!r}"
        )


def next_version(directory: Path) -> int:
    """Return the version after the highest in ``directory``; 1 for an empty or missing directory."""
    return max(_versions(directory), default=0) + 1


def check_destination(destination: Destination, specs: Sequence[InputSpec]) -> None:
    """Raise PublishError where a version with the inputs ``specs`` cannot be published; nothing is written."""
    check_name(destination.name)
    if destination.version is not None and destination.version < 1:
        raise PublishError(f"version {destination.version} is not a version: expected 1 or more")
    repository, directory = destination.repository, destination.directory
    for path, kind in ((repository, "a repository's"), (directory, "a model's")):
        if path.exists() and not path.is_dir():
            raise PublishError(f"'{path}' is a file; expected {kind} directory")
    there = next(path for path in (directory, repository, *repository.absolute().parents) if path.is_dir())
    if not os.access(there, os.W_OK | os.X_OK):
        raise PublishError(f"'{there}' may not be written by this user, so nothing can be published in it")
    refuse_existing(destination)
    kept = read_config(directory)
    if kept is None:
        _refuse_unknown(destination)
    else:
        _refuse(destination, _differences(_of_config(kept, ("input",)), _of_specs(specs)))


def refuse_existing(destination: Destination) -> None:
    """Raise PublishError where the version exists and may not be replaced."""
    target = destination.directory / str(destination.version)
    if destination.version is not None and target.exists() and not destination.overwrite:
        raise PublishError(
            f"'{target}' exists; leave --version out for the next free one ({next_version(destination.directory)}), or "
            "give --overwrite"
        )


def read_config(directory: Path) -> model_config.ModelConfig | None:
    """Return the configuration in a model's directory; None where there is none. Raises PublishError."""
    path = directory / "config.pbtxt"
    try:
        return parse_config(read_plain_text(path, "utf-8-sig"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise PublishError(f"'{path}' cannot be read: {error}; mend it, or publish under another --name") from None
    except OSError as error:
        raise PublishError(f"'{path}' cannot be read: {error.strerror or error}") from None


def replaces_model(destination: Destination, model_files: Mapping[str, bytes]) -> bool:
    """Return whether the model's files replace those that are there: they have other inputs or outputs.

    Raises PublishError, which lists the differences, where another version needs the files that are there.
    """
    kept = read_config(destination.directory)
    if kept is None:
        _refuse_unknown(destination)
        return True
    new = parse_config(model_files["config.pbtxt"].decode())
    lines = _differences(_of_config(kept), _of_config(new))
    if not lines and (kept.max_batch_size > 0) != (new.max_batch_size > 0):
        alone = ", which has no batch, or mixes its rows" if not new.max_batch_size else ""
        lines = [f"max_batch_size: {kept.max_batch_size} there, {new.max_batch_size} in this export{alone}"]
    _refuse(destination, lines)
    return bool(lines)


def _refuse_unknown(destination: Destination) -> None:
    """Raise PublishError where versions, or files that are no model's, are there without a configuration."""
    directory = destination.directory
    names = sorted(p.name for p in directory.iterdir() if not p.name.startswith(".")) if directory.is_dir() else []
    if names and not _versions(directory):
        more = f" and {len(names) - 1} more" if names[1:] else ""
        raise PublishError(
            f"'{directory}' is no model's directory: it holds '{names[0]}'{more} but no config.pbtxt; publish under "
            "another --name"
        )
    if others := destination.others:
        raise PublishError(
            f"'{destination.directory}' holds {_listed(others)} but no config.pbtxt, and that of this export "
            "would change how it is served; publish under another --name"
        )


def _refuse(destination: Destination, lines: Sequence[str]) -> None:
    """Raise PublishError for ``lines``, the differences, unless the whole model is replaced."""
    others = destination.others
    if not lines or (destination.overwrite and not others):
        return
    held = f"{_listed(others)} of it" if others else "the model that is there"
    use = "use" if len(others) > 1 else "uses"
    differing = "\n".join(f"  {line}" for line in lines)
    cures = ["publish under another --name"]
    cures += [f"replace it with --version {others[0]} --overwrite"] if len(others) == 1 else []
    cures += [] if others else ["give --overwrite to replace it"]
    cures += [f"delete '{destination.directory}' first"] if len(others) > 1 else []
    raise PublishError(
        f"model '{destination.name}' in '{destination.repository}' has another config.pbtxt, which {held} {use}:\n"
        f"{differing}\n  {', or '.join(cures)}"
    )


def _differences(kept: Tensors, new: Tensors) -> list[str]:
    """Return a line for each input or output that differs."""
    return [
        f"{kind} '{name}': {kept.get((kind, name), 'not')} there, {new.get((kind, name), 'not')} in this export"
        for kind, name in {**kept, **new}
        if kept.get((kind, name)) != new.get((kind, name))
    ]


def _of_config(config: model_config.ModelConfig, kinds: Sequence[str] = ("input", "output")) -> Tensors:
    batch = [-1] if config.max_batch_size else []
    return {
        (kind, tensor.name): _shown(
            model_config.DataType.Name(tensor.data_type).removeprefix("TYPE_"), [*batch, *tensor.dims]
        )
        for kind in kinds
        for tensor in (config.input if kind == "input" else config.output)
    }


def _of_specs(specs: Sequence[InputSpec]) -> Tensors:
    return {
        ("input", s.name): _shown(
            s.datatype.config_name.removeprefix("TYPE_"), [d if isinstance(d, int) else -1 for d in s.dims]
        )
        for s in specs
    }


def _shown(datatype: str, dims: Sequence[int]) -> str:
    return f"{datatype}[{','.join(map(str, dims))}]"


def _versions(directory: Path) -> list[int]:
    if not directory.is_dir():
        return []
    return sorted(int(p.name) for p in directory.iterdir() if re.fullmatch(r"[1-9]\d*", p.name))


def _listed(versions: Sequence[int]) -> str:
    return f"version{'' if len(versions) == 1 else 's'} {', '.join(map(str, versions))}"


def _suggested(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[:128] or "model"
