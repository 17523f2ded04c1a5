"""Write a version into a model repository: either all of it or nothing.

    <repository>/<name>/config.pbtxt            one for all versions
    <repository>/<name>/labels.txt
    <repository>/<name>/<version>/model.onnx    one self-contained file
    <repository>/<name>/<version>/…             export.json, report.html, golden.json
    <repository>/<name>/<version>/manifest.json sizes and sha256 of the version's files, written last

Everything is written into a directory beside its final place whose name begins with ``.tmp-`` (servers skip such
names). Each file and the directory are fsynced, then the directory is renamed. A killed process leaves a ``.tmp-``
directory, which a later publish removes. An existing version is replaced by exchanging two directories in one system
call, so that one whole version is there at every moment.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import text_format

from normfold.export.errors import PublishError
from normfold.export.publishing.config import parse_config, same_interface
from normfold.whole_file import write_new

__all__ = ["Publication", "check_name", "manifest", "publish"]

#: A ``.tmp-`` directory of a killed export is removed when it is older than this.
STALE_SECONDS = 3600
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}\Z")
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


@dataclass(frozen=True)
class Publication:
    """The files to publish: those of the model's directory and those of the version's."""

    name: str
    #: "config.pbtxt", "labels.txt"
    model_files: Mapping[str, bytes]
    #: "model.onnx", "export.json", …; the manifest is added.
    version_files: Mapping[str, bytes]


def check_name(name: str) -> None:
    """Raise PublishError where ``name`` cannot be a model's directory."""
    if not _NAME.match(name) or ".." in name:
        raise PublishError(
            f"{name!r} cannot be a model's name: expected letters, digits, '_', '-' and '.', at most 128, "
            f"for example {_suggested(name)!r}"
        )


def manifest(files: Mapping[str, bytes]) -> bytes:
    """Return ``manifest.json``: the size and the sha256 of every file.

    >>> manifest({"a": b"x"}).decode().splitlines()[1].strip()
    '"files": {'
    """
    entries = {n: {"bytes": len(c), "sha256": hashlib.sha256(c).hexdigest()} for n, c in sorted(files.items())}
    return (json.dumps({"schema": 1, "files": entries}, indent=2, sort_keys=True) + "\n").encode()


def next_version(directory: Path) -> int:
    """Return the version after the highest in ``directory``; 1 for an empty or missing directory."""
    if not directory.is_dir():
        return 1
    return max((int(p.name) for p in directory.iterdir() if re.fullmatch(r"[1-9]\d*", p.name)), default=0) + 1


def publish(repository: Path, publication: Publication, version: int | None = None, overwrite: bool = False) -> Path:
    """Write the version (the next free one where ``version`` is None) and return its directory.

    Raises PublishError where the version exists (without overwrite), where other versions use a configuration with
    other inputs or outputs, or where a path cannot be written. After any error, KeyboardInterrupt too, nothing is left
    behind.
    """
    check_name(publication.name)
    if version is not None and version < 1:
        raise PublishError(f"version {version} is not a version: expected 1 or more")
    directory = repository / publication.name
    made = _make_directory(repository)
    try:
        _remove_stale(repository)
        if not directory.exists():
            return _publish_model(repository, publication, version or 1)
        if not directory.is_dir():
            raise PublishError(f"'{directory}' is a file; expected a model's directory")
        _remove_stale(directory)
        return _publish_version(repository, directory, publication, version, overwrite)
    except OSError as error:
        raise PublishError(f"cannot write to the repository '{repository}': {error.strerror or error}") from error
    finally:
        if made and not any(repository.iterdir()):
            repository.rmdir()


def _publish_model(repository: Path, publication: Publication, version: int) -> Path:
    """Write the model's directory with its first version, in one rename."""
    directory = repository / publication.name
    with _Staging(repository) as staging:
        _write_files(staging.path, publication.model_files)
        _write_version(staging.path / str(version), publication.version_files)
        _sync_directory(staging.path)
        staging.path.rename(directory)
    _sync_directory(repository)
    return directory / str(version)


def _publish_version(
    repository: Path, directory: Path, publication: Publication, version: int | None, overwrite: bool
) -> Path:
    """Add a version to an existing model."""
    number = version or next_version(directory)
    target = directory / str(number)
    if target.exists() and not overwrite:
        raise PublishError(
            f"'{target}' exists; leave --version out for the next free one ({next_version(directory)}), or give "
            "--overwrite"
        )
    changed = _changed_model_files(directory, publication)
    if changed:
        others = [p.name for p in directory.iterdir() if re.fullmatch(r"[1-9]\d*", p.name) and p != target]
        if others or not overwrite:
            held = f"version {', '.join(sorted(others))} of it" if others else "the model that is there"
            raise PublishError(
                f"model '{publication.name}' in '{repository}' has another {' and '.join(changed)}, which {held} uses; "
                "publish under another --name" + ("" if others else ", or give --overwrite to replace it")
            )
        with _Staging(repository) as staging:
            _write_files(staging.path, publication.model_files)
            _write_version(staging.path / str(number), publication.version_files)
            _sync_directory(staging.path)
            _exchange(staging.path, directory)
        _sync_directory(repository)
        return target
    with _Staging(directory) as staging:
        _write_version(staging.path, publication.version_files)
        if target.exists():
            _exchange(staging.path, target)
        else:
            staging.path.rename(target)
    _sync_directory(directory)
    return target


def _changed_model_files(directory: Path, publication: Publication) -> list[str]:
    """Return the model's files that differ from those of the new version; of a config only inputs and outputs count."""
    changed = []
    for name, content in publication.model_files.items():
        path = directory / name
        if not path.is_file():
            changed.append(name)
        elif name == "config.pbtxt":
            try:
                same = same_interface(parse_config(path.read_text("utf-8")), parse_config(content.decode()))
            except (text_format.ParseError, UnicodeDecodeError):
                same = False
            if not same:
                changed.append(name)
        elif path.read_bytes() != content:
            changed.append(name)
    return changed


class _Staging:
    """A directory to write into, beside the place that it is renamed to; what is left of it is removed in the end."""

    def __init__(self, parent: Path):
        self.path = parent / f".tmp-{uuid.uuid4().hex}"

    def __enter__(self) -> _Staging:
        self.path.mkdir()
        return self

    def __exit__(self, *exc: object) -> None:
        # After an exchange this is the old version, after an error the incomplete new one.
        shutil.rmtree(self.path, ignore_errors=True)


def _write_version(directory: Path, files: Mapping[str, bytes]) -> None:
    directory.mkdir(exist_ok=True)
    _write_files(directory, files)
    _write_files(directory, {"manifest.json": manifest(files)})
    _sync_directory(directory)


def _write_files(directory: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        write_new(directory / name, content)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exchange(new: Path, old: Path) -> None:
    """Exchange two directories: atomically (renameat2), or by three renames where the file system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is not None:
        arguments = (_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(old), _RENAME_EXCHANGE)
        if renameat2(*arguments) == 0:
            return
    aside = new.with_name(f"{new.name}-old")
    old.rename(aside)
    new.rename(old)
    aside.rename(new)


def _make_directory(repository: Path) -> bool:
    """Make the repository if it is missing; return whether it was missing."""
    if repository.is_dir():
        return False
    try:
        repository.mkdir(parents=True)
    except OSError as error:
        raise PublishError(f"the repository '{repository}' cannot be created: {error.strerror or error}") from error
    return True


def _remove_stale(directory: Path) -> None:
    for path in directory.glob(".tmp-*"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(path, ignore_errors=True)


def _suggested(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[:128] or "model"
