"""Write a version into a model repository: either all of it or nothing.

    <repository>/<name>/config.pbtxt            one for all versions
    <repository>/<name>/labels.txt
    <repository>/<name>/<version>/model.onnx    one self-contained file
    <repository>/<name>/<version>/…             export.json, report.html, golden.json
    <repository>/<name>/<version>/manifest.json sizes and sha256 of the version's files, written last

Everything is written into a directory beside its final place whose name begins with ``.tmp-`` (servers skip such
names). Each file and the directory are fsynced, then the directory is renamed. A killed process leaves a ``.tmp-``
directory, which a later publish removes. An existing version is replaced by exchanging two directories in one system
call, so that one whole version is there at every moment. Where the file system cannot do this, it takes three renames;
if the process ends between them, the next publish puts the old version back (``aside.py``).
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from normfold.export.errors import PublishError
from normfold.export.publishing.aside import exchange, put_back, remove, remove_stale
from normfold.export.publishing.destination import Destination, check_name, refuse_existing, replaces_model
from normfold.export.publishing.kept import changed_files
from normfold.manifest import manifest
from normfold.whole_file import alone_in, write_new

__all__ = ["Publication", "publish"]

logger = logging.getLogger(__name__)

#: The errors of a rename onto a directory that is not empty.
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST)


@dataclass(frozen=True)
class Publication:
    """The files to publish: those of the model's directory and those of the version's."""

    name: str
    #: "config.pbtxt", "labels.txt"
    model_files: Mapping[str, bytes]
    #: "model.onnx", "export.json", …; the manifest is added.
    version_files: Mapping[str, bytes]


def publish(repository: Path, publication: Publication, version: int | None = None, overwrite: bool = False) -> Path:
    """Write the version (the next free one where ``version`` is None) and return its directory.

    Where another process writes there for longer than a second, a warning in the log says that this one waits for it.

    Raises PublishError where the version exists (without overwrite), where other versions use a configuration with
    other inputs or outputs, or where a path cannot be written. After any error, KeyboardInterrupt too, nothing is left
    behind. Only a KeyboardInterrupt behind the rename leaves the whole version; a note of it says so.
    """
    destination = Destination(repository, publication.name, version, overwrite)
    check_name(destination.name)
    if version is not None and version < 1:
        raise PublishError(f"version {version} is not a version: expected 1 or more")
    made = _make_directory(repository)
    try:
        # A link to a model stays. What it leads to is locked, put back and exchanged where it is.
        path = _publish_alone(destination.behind_link, publication)
        return destination.directory / path.name
    except OSError as error:
        raise PublishError(f"cannot write to the repository '{repository}': {error.strerror or error}") from error
    finally:
        if made and not any(repository.iterdir()):
            repository.rmdir()


def _publish_alone(destination: Destination, publication: Publication) -> Path:
    """Write the version while no other process writes in the repository."""
    directory = destination.directory
    with alone_in(destination.repository, logger.warning):  # a step would show on a terminal only
        put_back(destination)
        remove_stale(destination.repository)
        if not directory.exists():
            try:
                return _publish_model(destination, publication)
            except OSError as error:
                if error.errno not in _TAKEN:
                    raise  # else another export has published the first version meanwhile
        if not directory.is_dir():
            raise PublishError(f"'{directory}' is a file; expected a model's directory")
        remove_stale(directory)
        return _publish_version(destination, publication)


def _publish_model(destination: Destination, publication: Publication) -> Path:
    """Write the model's directory with its first version, in one rename."""
    repository, directory, version = destination.repository, destination.directory, destination.version or 1
    with _staging(repository, directory, directory / str(version)) as staging:
        _write_files(staging, publication.model_files)
        _write_version(staging / str(version), publication.version_files)
        _sync_directory(staging)
        staging.rename(directory)
        _sync_directory(repository)
    return directory / str(version)


def _publish_version(destination: Destination, publication: Publication) -> Path:
    """Add a version to an existing model, and change the model's files where it brings others."""
    repository, directory = destination.repository, destination.directory
    target = directory / str(destination.number)
    refuse_existing(destination)
    new = publication.model_files
    files = new if replaces_model(destination, new) else changed_files(directory, new)
    if files:
        with _staging(repository, directory, target) as staging:
            _link_all(directory, staging, {target.name, *files})
            for name, content in files.items():
                write_new(staging / name, content, like=directory / name)
            _write_version(staging / target.name, publication.version_files)
            _sync_directory(staging)
            exchange(staging, directory)
            _move_new(staging, directory)
            _sync_directory(repository)
        return target
    with _staging(directory, target, target) as staging:
        _write_version(staging, publication.version_files)
        if destination.overwrite and destination.version is not None and target.exists():
            exchange(staging, target)
        else:
            try:
                staging.rename(target)
            except OSError as error:
                if error.errno not in _TAKEN:
                    raise
                return _publish_version(destination, publication)  # another export took this number meanwhile
        _sync_directory(directory)
    return target


def _link_all(old: Path, new: Path, left_out: Set[str]) -> None:
    """Fill ``new`` with hard links to the files in ``old``, except for the names ``left_out`` and ``.tmp-*``."""

    def ignored(folder: str, names: list[str]) -> list[str]:
        return [n for n in names if n in left_out or n.startswith(".tmp-")] if Path(folder) == old else []

    def link(source: str, target: str) -> None:
        try:
            os.link(source, target, follow_symlinks=False)
        except OSError:  # a file system without hard links
            shutil.copy2(source, target, follow_symlinks=False)

    shutil.copytree(old, new, symlinks=True, ignore=ignored, copy_function=link, dirs_exist_ok=True)
    for folder in (path for path in new.rglob("*") if path.is_dir() and not path.is_symlink()):
        _sync_directory(folder)


def _move_new(old: Path, new: Path) -> None:
    """Move the versions from ``old`` to ``new`` that another export has added to it since its files were linked."""
    for path in old.iterdir():
        if path.name.isdigit() and not (new / path.name).exists():
            path.rename(new / path.name)


@contextmanager
def _staging(parent: Path, place: Path, version: Path) -> Iterator[Path]:
    """A directory to write into, beside the ``place`` that it is renamed to; what is left of it is removed in the end.

    A KeyboardInterrupt that comes after the rename gets a note: ``version`` is published all the same.
    """
    path = parent / f".tmp-{uuid.uuid4().hex}"
    path.mkdir()
    written = path.stat()
    try:
        try:
            yield path
        finally:  # after an exchange this is the old version, after an error the incomplete new one
            remove(path)
    except KeyboardInterrupt as stop:
        with suppress(OSError):
            if os.path.samestat(written, place.stat()):
                stop.add_note(f"'{version}' is published")
        raise


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


def _make_directory(repository: Path) -> bool:
    """Make the repository if it is missing; return whether it was missing."""
    if repository.is_dir():
        return False
    try:
        repository.mkdir(parents=True)
    except OSError as error:
        raise PublishError(f"the repository '{repository}' cannot be created: {error.strerror or error}") from error
    return True
