"""The place that models come from: a folder of models in Triton's layout, one model's folder, or one .onnx file.

<repository>/<name>/config.pbtxt              optional
<repository>/<name>/<labels file>             named by label_filename
<repository>/<name>/<version>/model.onnx      version: a number that does not start with 0
<repository>/<name>/<version>/manifest.json   optional: sizes and SHA-256 of the version's files
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from normfold.serving.catalog.hints import meant, misplaced
from normfold.serving.catalog.manifests import check_manifest, require_listed
from normfold.serving.catalog.plain_files import is_file, is_there, read_plain, unreadable, why
from normfold.serving.catalog.version_text import folder_version
from normfold.serving.errors import ConfigError, LoadError, StartError

CONFIG_FILE = "config.pbtxt"
MANIFEST_FILE = "manifest.json"
GOLDEN_FILE = "golden.json"

#: A model's name becomes part of a path: letters, digits, dot, dash and underscore, and no dot first.
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


class Files(Protocol):
    """The files of one model."""

    @property
    def name(self) -> str:
        """The model's name."""
        ...

    @property
    def digests(self) -> dict[str, str]:
        """The SHA-256 of the files that were read, by path, where it is known already."""
        ...

    def config_text(self) -> str | None:
        """The content of config.pbtxt, or None."""
        ...

    def versions(self) -> list[int]:
        """The numbers of the versions that are there, in ascending order."""
        ...

    def read_model(self, version: int, filename: str) -> bytes:
        """The bytes of a version's model file. Raises LoadError."""
        ...

    def read_golden(self, version: int) -> bytes | None:
        """The version's golden.json, or None where there is none. Raises LoadError."""
        ...

    def read(self, filename: str) -> bytes:
        """The bytes of a file beside the versions. Raises LoadError."""
        ...


@dataclass(frozen=True)
class SentFolder:
    """One model whose files came in a load request, by their paths, such as "1/model.onnx"."""

    name: str
    files: Mapping[str, bytes]
    #: The SHA-256 of the files by path, as far as it was asked for.
    digests: dict[str, str] = field(default_factory=dict, compare=False)

    def sha256(self, path: str) -> str:
        """The SHA-256 of the file ``path``, in hexadecimal; computed once."""
        if path not in self.digests:
            self.digests[path] = hashlib.sha256(self.files[path]).hexdigest()
        return self.digests[path]

    def config_text(self) -> str | None:
        """None, because the configuration came in the request too."""
        return None

    def versions(self) -> list[int]:
        """The numbers of the versions that are there, in ascending order."""
        return sorted({n for path in self.files if (n := folder_version(path.split("/")[0])) is not None})

    def read_model(self, version: int, filename: str) -> bytes:
        """The bytes of a version's model file. Raises LoadError."""
        return self.read(f"{version}/{filename}")

    def read_golden(self, version: int) -> bytes | None:
        """The version's golden.json, or None where none was sent."""
        return self.files.get(f"{version}/{GOLDEN_FILE}")

    def read(self, filename: str) -> bytes:
        """The bytes that were sent for ``filename``. Raises LoadError."""
        try:
            return self.files[filename]
        except KeyError:
            raise LoadError(f"{filename} is not among the files of the load request") from None


@dataclass(frozen=True)
class ModelFolder:
    """One model on disk: a folder with versions in it, or a single .onnx file that is version 1."""

    name: str
    path: Path
    #: The folder that no link may lead out of; None: ``path``.
    root: Path | None = None
    #: The SHA-256 of the files by path that were read and held to a manifest.
    digests: dict[str, str] = field(default_factory=dict, compare=False)

    def config_text(self) -> str | None:
        """The content of config.pbtxt, or None. Raises LoadError when it cannot be read, or is not UTF-8 text."""
        if self._is_file or not is_there(self.path / CONFIG_FILE):
            return None
        return as_text(self._read(CONFIG_FILE))

    def versions(self) -> list[int]:
        """The numbers of the versions that are there, in ascending order."""
        if self._is_file:
            return [1]
        try:
            return sorted(int(name) for name in _version_names(self.path))
        except OSError as error:
            raise unreadable("the model's folder", error) from None

    def read_model(self, version: int, filename: str) -> bytes:
        """The bytes of a version's model file, checked against the manifest where there is one. Raises LoadError."""
        if self._is_file:
            return read_plain(self.path, self.path.name, self.path)
        return self._checked(version, filename)

    def read_golden(self, version: int) -> bytes | None:
        """The version's golden.json, checked like the model file, or None where there is none. Raises LoadError."""
        if self._is_file or not is_there(self.path / str(version) / GOLDEN_FILE):
            return None
        return self._checked(version, GOLDEN_FILE)

    def find(self, version: int, filename: str) -> bytes | None:
        """The bytes of a file of a version as they are, or None where there is none. Raises LoadError."""
        path = self.path / str(version) / filename
        return None if self._is_file or not is_there(path) else self._read(f"{version}/{filename}")

    def beside(self) -> dict[str, bytes]:
        """The files beside the versions by name, without those whose names begin with a dot. Raises LoadError."""
        try:
            names = sorted(entry.name for entry in self.path.iterdir() if not entry.is_dir())
        except OSError as error:
            raise unreadable("the model's folder", error) from None
        return {name: self._read(name) for name in names if not name.startswith(".")}

    def _checked(self, version: int, filename: str) -> bytes:
        data = self._read(f"{version}/{filename}")
        if is_there(self.path / str(version) / MANIFEST_FILE):
            manifest = self._read(f"{version}/{MANIFEST_FILE}")
            self.digests[f"{version}/{filename}"] = check_manifest(manifest, filename, data)
            require_listed(manifest, self.path / str(version))
        return data

    def read(self, filename: str) -> bytes:
        """The bytes of a file such as labels; one within a version is held to its manifest. Raises LoadError."""
        parts = Path(filename).parts
        if self._is_file or filename.startswith("/") or ".." in parts:
            raise LoadError(f"{filename!r} does not lie in the model's folder")
        if len(parts) > 1 and (version := folder_version(parts[0])) is not None:
            return self._checked(version, "/".join(parts[1:]))
        return self._read(filename)

    def _read(self, filename: str) -> bytes:
        path = self.path / filename
        if path.suffix == ".onnx" and not is_there(path) and (others := _onnx_files(path.parent)):
            raise LoadError(
                f"{filename} cannot be read: No such file or directory; {others[0].name} is there: rename it, or write "
                f'default_model_filename: "{others[0].name}" into config.pbtxt'
            )
        return read_plain(path, filename, self.root or self.path)

    @property
    def _is_file(self) -> bool:
        return is_file(self.path)


class Repository:
    """The models under one path. It looks at the disk at every call, so models may come and go."""

    def __init__(self, path: Path, name: str | None = None, wait: bool = False) -> None:
        """Look at ``path``; ``name`` renames a single model. Raises StartError when nothing there can be served.

        With ``wait`` the first model may come later, unless models lie in a place beside the expected one.
        """
        self.path = path
        try:
            if not path.exists():
                raise StartError(f"repository {str(path)!r} does not exist")
            if path.is_file() and path.suffix != ".onnx":
                raise StartError(
                    f"repository {str(path)!r} is a file but not an .onnx file; give a folder or model.onnx"
                )
            #: Whether it is one model, and no folder of models.
            self.is_single = _single(path)
        except OSError as error:
            raise StartError(f"repository {str(path)!r} cannot be read: {why(error)}") from None
        if name is not None and not self.is_single:
            raise StartError(f"a name can only be given to a single model; {str(path)!r} is a folder of models")
        self._name = name or (path.stem if is_file(path) else path.resolve().name)
        if self.is_single and not NAME.fullmatch(self._name):
            raise StartError(f"{self._name!r} is not a model name (letters, digits, . _ -); give one with --name")
        if next(self._found(), None) is None and ((hint := meant(path, _single)) or not wait):
            raise StartError(
                f"repository {str(path)!r} holds no model; expected {path / 'NAME' / '1' / 'model.onnx'}, "
                f"or the path of one model's folder or .onnx file{hint or misplaced(path)}"
            )

    def models(self) -> dict[str, ModelFolder]:
        """Every model that is there now, by name, in alphabetical order; none while the repository cannot be read."""
        return {folder.name: folder for folder in self._found()}

    def _found(self) -> Iterator[ModelFolder]:
        if self.is_single:
            yield ModelFolder(self._name, self.path)
            return
        try:
            names = sorted(entry.name for entry in self.path.iterdir())
        except OSError:
            return
        for name in names:
            if (folder := self.find(name)) is not None:
                yield folder

    def versions(self, name: str) -> list[int]:
        """The versions of the model ``name``, in ascending order. Raises LoadError where it is gone."""
        return self.folder(name).versions()

    def folder(self, name: str) -> ModelFolder:
        """The folder of the model ``name``, whether it is there or not."""
        return ModelFolder(name, self.path) if self.is_single else ModelFolder(name, self.path / name, self.path)

    def find(self, name: str) -> ModelFolder | None:
        """The model ``name``, if it is there now; the other models are not looked at."""
        if self.is_single:
            return self.folder(name) if name == self._name else None
        return self.folder(name) if NAME.fullmatch(name) and _is_model(self.path / name) else None


def is_plain(path: str) -> bool:
    """Whether ``path`` can be the path of a file inside a folder: none of its parts is empty, special or too long."""
    return all(
        0 < len(part.encode()) < 256 and part not in (".", "..") and "\0" not in part for part in path.split("/")
    )


def _single(path: Path) -> bool:
    """Whether ``path`` is one model: a file, or a folder that holds config.pbtxt or versions with .onnx files."""
    if path.is_file() or (path / CONFIG_FILE).is_file():
        return True
    return any(any((path / version).glob("*.onnx")) for version in _version_names(path))


def _is_model(folder: Path) -> bool:
    """Whether ``folder`` is a model; also True for one that cannot be read, so that loading it says why."""
    try:
        with os.scandir(folder) as entries:  # pathlib takes four times as long, which tells with thousands of models
            return any(entry.name == CONFIG_FILE or _is_version(entry) for entry in entries)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True


def _version_names(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries if _is_version(entry)]


def _onnx_files(folder: Path) -> list[Path]:
    try:
        return sorted(folder.glob("*.onnx"))
    except OSError:
        return []


def _is_version(entry: os.DirEntry[str]) -> bool:
    return folder_version(entry.name) is not None and entry.is_dir()


def as_text(config: bytes) -> str:
    """The text of config.pbtxt. Raises ConfigError when it is not UTF-8."""
    try:
        return config.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"config.pbtxt cannot be read: {why(error)}") from None
