"""Finds the changes of a repository since its models were loaded; a change counts only when it is whole.

A copy takes time, and a model must not be loaded from half of it. So a model counts as changed only when

- its files differ from those that were loaded,
- they have stayed the same from one look to the next, and
- every version that is to be in service has its model file, and each file that its manifest lists has the size there.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from normfold.serving.catalog import config
from normfold.serving.catalog.plain_files import is_file, is_there, why
from normfold.serving.catalog.repository import MANIFEST_FILE, ModelFolder, Repository
from normfold.serving.errors import LoadError
from normfold.serving.wording import quoted

#: Path, size, time of change and inode of a file.
Mark = tuple[str, int, int, int]
Marks = tuple[Mark, ...]
#: The identity of a folder, as another folder may be put in its place: device, inode and file system.
Place = tuple[int, int, int]


class Changes:
    """Looks at the models of a repository; on any one thread at a time."""

    def __init__(self, repository: Repository) -> None:
        """Nothing is read before ``begin``."""
        self._repository = repository
        self._loaded: dict[str, Marks] = {}
        self._seen: dict[str, Marks] = {}
        #: The identity of the repository's folder when it last held a model.
        self._place: Place | None = None
        #: The identity of each model's folder when the model was loaded.
        self._places: dict[str, Place | None] = {}
        #: The models that had changed at the last look but are not whole yet, and what each lacks.
        self.incomplete: dict[str, str] = {}
        #: These models, and those whose files were still being written at the last look.
        self.unsettled: set[str] = set()

    def begin(self) -> None:
        """Count the files that are there now as loaded. Call it before anything is loaded."""
        with contextlib.suppress(LoadError):
            self._models()
        folders = self._repository.models()
        self._loaded = {name: _marks(folder.path) for name, folder in folders.items()}
        self._places = {name: _place(folder.path) for name, folder in folders.items()}
        self._seen = dict(self._loaded)

    def look(self) -> tuple[list[str], list[str]]:
        """The models to load, because they are new or have changed, and those to unload, because they are gone.

        Raises LoadError where the repository itself is away, as on a volume that is not mounted: no model is gone then.
        """
        folders = self._models()
        now = {name: _marks(folder.path) for name, folder in folders.items()}
        settled = [
            name for name, marks in now.items() if marks != self._loaded.get(name) and marks == self._seen.get(name)
        ]
        self.incomplete = {name: missing for name in settled if (missing := lacking(folders[name]))}
        whole = [name for name in settled if name not in self.incomplete]
        changed = [name for name in whole if _counts(folders[name], self._loaded.get(name, ()), now[name])]
        absent = [name for name in self._loaded if name not in now and name not in self._seen]
        away = {name for name in absent if self._is_away(name)}
        self.incomplete |= dict.fromkeys(away, "in the place of its folder is another one, which holds no model")
        gone = [name for name in absent if name not in away]
        written = {name for name, marks in now.items() if marks not in (self._loaded.get(name), self._seen.get(name))}
        self.unsettled = written | {*self.incomplete}
        self._seen = now
        for name in changed:
            self._loaded[name], self._places[name] = now[name], _place(folders[name].path)
        for name in gone:
            self.note_gone(name)
        return changed, gone

    def _is_away(self, name: str) -> bool:
        """Whether another folder is in the place of a model's, as where this is a volume that is not mounted now."""
        path, before = self._repository.path / name, self._places.get(name)
        now = None if is_file(path) else _place(path)
        return now is not None and before not in (None, now)

    def _models(self) -> dict[str, ModelFolder]:
        """The models that are there. Raises LoadError where the repository is away."""
        path = self._repository.path
        try:
            if stat.S_ISDIR(path.stat().st_mode):
                os.listdir(path)  # noqa: PTH208 - to the end, because a folder that opens may still not be readable
        except OSError as error:
            raise LoadError(f"the repository {quoted(str(path))} cannot be read: {why(error)}") from None
        folders, now = self._repository.models(), _place(path)
        if not folders and self._place not in (None, now):
            raise LoadError(f"the repository {quoted(str(path))} is another folder now, which holds no model")
        if folders:
            self._place = now
        return folders

    def note(self, name: str) -> None:
        """The files of this model as they are now count as loaded. Call it before they are loaded."""
        folder = self._repository.find(name)
        if folder is not None:
            self._loaded[name] = self._seen[name] = _marks(folder.path)
            self._places[name] = _place(folder.path)

    def note_gone(self, name: str) -> None:
        """This model counts as unloaded."""
        for each in (self._loaded, self._seen, self._places):
            each.pop(name, None)

    def forget(self, names: Iterable[str]) -> None:
        """Count these models as not loaded yet, or, if they are gone, as not unloaded yet."""
        for name in names:
            self._loaded[name] = ()


def lacking(folder: ModelFolder) -> str:
    """A sentence on what the versions of ``folder`` that are to be in service lack; "" where they are whole.

    Others, such as an old one of which a copy broke off, may stay as they are.
    """
    if is_file(folder.path):
        return ""
    try:
        there = folder.versions()
        numbers = _in_service(folder, there)
        found = (f"version {n} {missing}" for n in numbers if (missing := _lacking(folder.path / str(n))))
        return next(found, "" if there else "it has no version")
    except (OSError, LoadError) as error:
        return f"its files cannot be read: {why(error) if isinstance(error, OSError) else error}"


def _counts(folder: ModelFolder, before: Marks, now: Marks) -> bool:
    """Whether a change concerns more than versions that are incomplete and not to be in service.

    Such versions count once they are whole. If they counted before, each pause while one is copied would load the
    versions in service again.
    """
    touched = {path.rpartition("/")[0] for path, *_ in {*before} ^ {*now}}
    if "" in touched:  # a file beside the versions, such as the configuration
        return True
    try:
        there = folder.versions()
        others = set(there) - set(_in_service(folder, there))
        return not touched <= {str(number) for number in others if _lacking(folder.path / str(number))}
    except (OSError, LoadError):  # such as a link to nothing; one load too many does no harm
        return True


def _in_service(folder: ModelFolder, there: list[int]) -> list[int]:
    """The versions that its configuration puts in service; all of them where it cannot be read: its load says why."""
    try:
        return config.versions_in_service(config.parse(folder.config_text() or ""), there)
    except LoadError:
        return there


def _lacking(version: Path) -> str:
    manifest = version / MANIFEST_FILE
    if not is_there(manifest):
        return (
            "" if any(file.stat().st_size for file in version.glob("*.onnx")) else "has no .onnx file, or an empty one"
        )
    try:
        files = json.loads(manifest.read_bytes())["files"]
        for name, entry in files.items():
            if (version / name).stat().st_size != int(entry["bytes"]):
                return f"has a file {quoted(name)} of another size than its {MANIFEST_FILE} says"
    except FileNotFoundError as error:
        return f"has no file {quoted(Path(error.filename).name)}, which its {MANIFEST_FILE} lists"
    except (OSError, ValueError, OverflowError, KeyError, TypeError, AttributeError, RecursionError):
        return f"has a {MANIFEST_FILE} that cannot be read"
    return ""


def _place(path: Path) -> Place | None:
    """The place of the folder ``path``; None where it is not there, or cannot be looked at."""
    try:
        found = path.stat()
        # a tmpfs that is mounted anew has the old one's other numbers
        return found.st_dev, found.st_ino, os.statvfs(path).f_fsid
    except OSError:
        return None


def _marks(path: Path) -> Marks:
    """The marks of a model's files: its own, and those of its versions."""
    return tuple(sorted(_files(path)))


def _files(path: Path) -> Iterator[Mark]:
    if is_file(path):
        yield _mark(path.name, path)
        return
    try:
        with os.scandir(path) as entries:  # a fifth of what pathlib takes, for all files of thousands of models
            for entry in entries:
                if entry.is_file():
                    yield _mark(entry.name, entry)
                elif entry.is_dir():
                    with os.scandir(entry.path) as files:
                        yield from [_mark(f"{entry.name}/{file.name}", file) for file in files if file.is_file()]
    except OSError:  # it is being deleted
        return


def _mark(name: str, file: Path | os.DirEntry[str]) -> Mark:
    try:
        found = file.stat()
    except OSError:
        return name, -1, 0, 0
    return name, found.st_size, found.st_mtime_ns, found.st_ino
