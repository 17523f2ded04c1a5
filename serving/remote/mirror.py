"""The image of a repository on object storage: a folder that the server reads like any other.

A version comes whole or not at all. Its objects are fetched into a folder beside the image. They are compared with the
sizes of the listing, and with the sizes and digests of the version's manifest. Then all take their place in one step. A
version whose manifest lists an object that is not there yet is waited for. What is gone from the storage goes from the
image. An object that cannot be read keeps no other folder from coming.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from normfold.cache_folder import cache_folder
from normfold.counting import counted
from normfold.plain_file import read_plain_file
from normfold.serving.catalog.manifests import check_manifest, listed, listed_names
from normfold.serving.catalog.plain_files import MOST_BYTES, why
from normfold.serving.catalog.repository import MANIFEST_FILE, is_plain
from normfold.serving.catalog.version_text import folder_version
from normfold.serving.errors import StartError, UnsafeModel
from normfold.serving.process.said_once import SaidOnce
from normfold.serving.remote.store import RemoteError, RemoteObject, Store
from normfold.serving.wording import quoted
from normfold.whole_file import lock, write_whole

log = logging.getLogger(__name__)

#: Levels of names below a repository: model, version, file.
DEPTH = 3
#: Beside the image: the marks of the objects that it was made of.
_MARKS_FILE = "marks.json"

#: How many objects that cannot be read a message lists.
_SHOWN = 8

#: A version that was not whole is fetched again when its listing has changed, or after this time: a file may have been
#: damaged on its way.
AGAIN_SECONDS = 600.0

#: The objects of one folder by name, such as those of a version.
Objects = Mapping[str, RemoteObject]
#: Size and mark of each of them.
Marks = dict[str, str]


def image_of(url: str) -> Path:
    """The path of the image of ``url``, in the cache folder. Raises StartError where there is no such folder."""
    folder = cache_folder("repositories")
    if folder is None:
        raise StartError(f"--repository {url}: there is no folder for its image; set NORMFOLD_CACHE_DIR")
    name = url.split("://", 1)[1].strip("/").rpartition("/")[2].rpartition("@")[2]
    if not is_plain(name):
        raise StartError(f"--repository {url} names no bucket; expected such as s3://BUCKET/FOLDER")
    return folder / hashlib.sha256(url.encode()).hexdigest()[:16] / name


class Mirror:
    """Keeps the image of one URL; used on one thread at a time. Several servers may share an image."""

    def __init__(self, url: str) -> None:
        """Raises StartError where there is no place for the image, or no package for the URL."""
        self._url, self._image = url, image_of(url)
        self._beside = self._image.parent
        self._store = Store(url)
        #: Folders that are waited for: why, which is said once; the marks that were not whole, and since when.
        self._waited: dict[str, tuple[str, Marks, float]] = {}

    def start(self) -> None:
        """Make the image.

        Raises StartError, unless there is an image from before and the storage is away, or only some objects failed.
        """
        try:
            self.refresh()
        except RemoteError as error:
            if not ((error.passing or error.partial) and (self._beside / _MARKS_FILE).exists()):
                raise
            log.warning("%s; serving what was copied before", error)

    def refresh(self) -> None:
        """Bring the image up to date. Raises StartError when the storage cannot be read or the image not written.

        What could be read is in the image then, unless this is the first copy: it counts only as a whole.
        """
        try:
            with self._alone():
                self._refresh()
        except OSError as error:
            raise StartError(self._unwritten(error)) from None

    def _unwritten(self, error: OSError) -> str:
        return f"the image of {self._url} in {str(self._beside)!r} failed: {why(error)}"

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Wait until no other process writes this image. What a killed process has left is removed."""
        self._beside.mkdir(parents=True, exist_ok=True)
        with (self._beside / "lock").open("a") as file:
            lock(file.fileno(), self._beside, log.warning)
            for left in self._beside.glob(".tmp-*"):
                _remove(left)
            yield

    def _refresh(self) -> None:
        folders = _by_folder(self._store.objects())
        known = self._known()
        marks = {folder: known[folder] for folder in folders if folder in known}  # whole until others replace them
        self._waited = {folder: said for folder, said in self._waited.items() if folder in folders}
        failed: list[str] = []
        try:
            for folder, objects in sorted(folders.items(), key=lambda item: -item[0].count("/")):  # versions first
                wanted = {name: f"{found.size} {found.mark}" for name, found in objects.items()}
                try:
                    if self._is_there(folder, objects) and known.get(folder) == wanted:
                        self._waited.pop(folder, None)
                    elif self._bring(folder, objects, wanted, _is_version(folder, folders)):
                        marks[folder] = wanted
                except RemoteError as error:
                    failed.append(str(error))
                except OSError as error:
                    failed.append(self._unwritten(error))
            self._drop(folders)
        finally:  # what has come is not fetched again
            if not failed or (self._beside / _MARKS_FILE).exists():
                write_whole(self._beside / _MARKS_FILE, json.dumps(marks, indent=1, sort_keys=True).encode())
        if failed:
            raise _partial(list(dict.fromkeys(failed)))

    def _is_there(self, folder: str, objects: Objects) -> bool:
        place = self._image / folder
        return all(_has(place / name if name else place, found.size) for name, found in objects.items())

    def _known(self) -> dict[str, Marks]:
        """The marks of the objects that the image was made of, by folder and name."""
        try:
            found = json.loads(read_plain_file(self._beside / _MARKS_FILE))
            return {folder: dict(names) for folder, names in found.items()}
        except (OSError, ValueError, AttributeError, TypeError):
            return {}

    def _bring(self, folder: str, objects: Objects, wanted: Marks, is_version: bool) -> bool:
        """Fetch a folder and put it in its place, a version as a whole; whether it was whole."""
        said, refused, since = self._waited.get(folder, ("", {}, 0.0))
        if refused == wanted and time.monotonic() < since + AGAIN_SECONDS:
            return False
        staged = self._beside / f".tmp-{uuid.uuid4().hex}"
        place = self._image / folder
        try:
            staged.mkdir()
            for name, found in sorted(objects.items(), key=lambda each: (each[0] != MANIFEST_FILE, each[1].size)):
                if found.size > MOST_BYTES:
                    raise UnsafeModel(f"{name} is larger than 2 GiB, which no ONNX file can be")
                self._store.fetch(found, staged / (name or place.name))
                if is_version and name == MANIFEST_FILE:  # the first: the others may be large
                    _compare((staged / name).read_bytes(), objects)
            if is_version:
                if MANIFEST_FILE in objects:
                    _check(staged)
                place.parent.mkdir(parents=True, exist_ok=True)
                if place.exists():
                    place.replace(self._beside / f".tmp-{uuid.uuid4().hex}")  # removed at the next look
                staged.replace(place)
            else:
                for name in objects:
                    target = place / name if name else place
                    target.parent.mkdir(parents=True, exist_ok=True)
                    (staged / target.name).replace(target)
        except UnsafeModel as error:
            if said != str(error):
                log.warning("%s: %s is not whole yet: %s", self._url, quoted(folder), error)
            self._waited[folder] = str(error), wanted, time.monotonic()
            return False
        finally:
            shutil.rmtree(staged, ignore_errors=True)
        if self._waited.pop(folder, None):
            log.info("%s: %s is whole now", self._url, quoted(folder))
        return True

    def _drop(self, folders: Mapping[str, Objects]) -> None:
        """Remove from the image what the storage does not have any more."""
        if not self._image.is_dir():
            return
        parents = {str(parent) for folder in folders for parent in Path(folder).parents}
        for path in sorted(self._image.rglob("*"), key=lambda path: -len(path.parts)):
            name = str(path.relative_to(self._image))
            folder = name.rpartition("/")[0]
            if path.is_dir():
                if name not in folders and name not in parents:
                    _remove(path)
            elif not _is_version(folder, folders) and path.name not in folders.get(folder, {}):
                path.unlink(missing_ok=True)


def refresher(url: str) -> Callable[[], None] | None:
    """A function that brings the image of ``url`` up to date, on any one thread at a time; None for "".

    Where that fails, the log says why, and the image stays as it is.
    """
    mirrors: list[Mirror] = []
    said = SaidOnce(log)

    def look() -> None:
        try:
            if not mirrors:  # the libraries are imported only by a server that looks
                mirrors.append(Mirror(url))
            mirrors[0].refresh()
        except StartError as error:
            said.say(f"{error}; what was copied before is served on")
        else:
            if said.over():
                log.info("repository %s can be read again", url)

    return look if url else None


def _by_folder(objects: Mapping[str, RemoteObject]) -> dict[str, dict[str, RemoteObject]]:
    """Objects by folder and name; those whose paths no repository has are left out."""
    found: dict[str, dict[str, RemoteObject]] = {}
    parents = {str(parent) for path in objects for parent in Path(path).parents}
    for path, each in objects.items():
        parts = path.split("/")
        if path and (len(parts) > DEPTH or not is_plain(path) or any(part.startswith(".") for part in parts)):
            continue
        if path in parents:  # a store may have an object and a folder of one name; a disk may not
            continue
        folder, _, name = path.rpartition("/")
        found.setdefault(folder, {})[name] = each
    return found


def _compare(manifest: bytes, objects: Objects) -> None:
    """Raise UnsafeModel unless every file that the manifest lists is among the objects, in its size."""
    for name in listed_names(manifest):
        if not (isinstance(name, str) and name in objects):
            raise UnsafeModel(f"{quoted(str(name))} of {MANIFEST_FILE} is not there")
        size, _ = listed(manifest, name)
        if objects[name].size != size:
            raise UnsafeModel(f"{name} has {objects[name].size} bytes, {MANIFEST_FILE} says {size}")


def _check(staged: Path) -> None:
    """Raise UnsafeModel unless every file that the manifest lists, all of which are there, is as it says."""
    manifest = (staged / MANIFEST_FILE).read_bytes()
    for name in listed_names(manifest):
        check_manifest(manifest, name, (staged / name).read_bytes())


def _partial(failed: list[str]) -> RemoteError:
    """The error of a look at which objects failed, each with its reason."""
    more = [f"and {counted(len(failed) - _SHOWN, 'other')}"] if len(failed) > _SHOWN else []
    error = RemoteError("; ".join(failed[:_SHOWN] + more))
    error.partial = True
    return error


def _is_version(folder: str, folders: Mapping[str, Objects]) -> bool:
    """Whether a folder is a version: its name is a number, and there are no folders in it."""
    return folder_version(folder.rpartition("/")[2]) is not None and not any(
        other.startswith(f"{folder}/") for other in folders
    )


def _has(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
