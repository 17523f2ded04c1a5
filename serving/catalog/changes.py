"""What has changed in a repository since its models were loaded; a change counts only when it is whole.

A copy takes time, and a model must not be loaded from half of it. So a model has changed when its files are other ones
than those that were loaded, when they have stayed the same from one look to the next, and when every version has its
model file, and each file that its manifest lists has the size that is written there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from normfold.serving.catalog.repository import MANIFEST_FILE, ModelFolder, Repository

#: Path, size, time of change and inode of a file.
Mark = tuple[str, int, int, int]
Marks = tuple[Mark, ...]


class Changes:
    """Looks at the models of a repository; on any one thread at a time."""

    def __init__(self, repository: Repository) -> None:
        """What is there now counts as loaded."""
        self._repository = repository
        self._loaded = self._now()
        self._seen = dict(self._loaded)

    def look(self) -> tuple[list[str], list[str]]:
        """The models to load, because they are new or have changed, and those to unload, because they are gone."""
        folders = self._repository.models()
        now = {name: _marks(folder.path) for name, folder in folders.items()}
        changed = [
            name
            for name, marks in now.items()
            if marks != self._loaded.get(name) and marks == self._seen.get(name) and is_whole(folders[name])
        ]
        gone = [name for name in self._loaded if name not in now and name not in self._seen]
        self._seen = now
        for name in changed:
            self._loaded[name] = now[name]
        for name in gone:
            del self._loaded[name]
        return changed, gone

    def forget(self, names: Iterable[str]) -> None:
        """Count these models as not loaded yet, or, if they are gone, as not unloaded yet."""
        for name in names:
            self._loaded[name] = ()

    def _now(self) -> dict[str, Marks]:
        return {name: _marks(folder.path) for name, folder in self._repository.models().items()}


def is_whole(folder: ModelFolder) -> bool:
    """Whether every version has a model file, and the files of its manifest in their sizes."""
    if folder.path.is_file():
        return True
    try:
        numbers = folder.versions()
        return bool(numbers) and all(_is_whole_version(folder.path / str(number)) for number in numbers)
    except OSError:
        return False


def _is_whole_version(version: Path) -> bool:
    manifest = version / MANIFEST_FILE
    if not manifest.is_file():
        return any(file.stat().st_size for file in version.glob("*.onnx"))
    try:
        files = json.loads(manifest.read_bytes())["files"]
        return all((version / name).stat().st_size == int(entry["bytes"]) for name, entry in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _marks(path: Path) -> Marks:
    """The marks of a model's files: its own, and those of its versions."""
    return tuple(sorted(_files(path)))


def _files(path: Path) -> Iterable[Mark]:
    if path.is_file():
        yield _mark(path, path.name)
        return
    try:
        for entry in path.iterdir():
            if entry.is_file():
                yield _mark(entry, entry.name)
            elif entry.is_dir():
                yield from (_mark(file, f"{entry.name}/{file.name}") for file in entry.iterdir() if file.is_file())
    except OSError:  # it is being deleted
        return


def _mark(path: Path, name: str) -> Mark:
    try:
        stat = path.stat()
    except OSError:
        return name, -1, 0, 0
    return name, stat.st_size, stat.st_mtime_ns, stat.st_ino
