"""Wheels cut into loads, and put together again: what `parts.py` writes and `environment.py` reads.

    FOLDER/1/manifest.json          every wheel with its size and SHA-256, and the pieces that it is cut into
    FOLDER/1/hpack-4.2.0….whl       a wheel that fits
    FOLDER/1/onnxruntime_gpu….1     the first piece of one that does not
    FOLDER/2/manifest.json          the same again: a load that comes alone says what is missing
    FOLDER/2/onnxruntime_gpu….2
    FOLDER/wheels/                  the whole wheels

Only the standard library is imported, because this also runs where nothing is installed yet.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

MANIFEST = "manifest.json"
WHEELS = "wheels"
#: Read and write this number of bytes at once.
_BLOCK = 1 << 20


class PartsError(Exception):
    """Something is wrong with the parts; the message says what, and what to do."""


@dataclass(frozen=True)
class Piece:
    """The bytes of a wheel from ``start``, as the file ``name`` of a load. Loads are counted from 1."""

    load: int
    name: str
    start: int
    size: int
    sha256: str


@dataclass(frozen=True)
class Wheel:
    """A wheel and its pieces, in order."""

    name: str
    size: int
    sha256: str
    pieces: tuple[Piece, ...]


def plan(sizes: Sequence[int], most_bytes: int) -> list[list[tuple[int, int, int]]]:
    """Return (load, start, size) of each piece of each file; no load has more than ``most_bytes``.

    >>> plan([3, 25], 10)
    [[(1, 0, 3)], [(1, 0, 7), (2, 7, 10), (3, 17, 8)]]
    """
    load, room, found = 1, most_bytes, []
    for size in sizes:
        pieces, start = [], 0
        while start < size:
            if not room:
                load, room = load + 1, most_bytes
            taken = min(room, size - start)
            pieces.append((load, start, taken))
            start, room = start + taken, room - taken
        found.append(pieces)
    return found


def cut(files: Sequence[Path], folder: Path, most_bytes: int) -> list[Wheel]:
    """Write the loads of ``files`` below ``folder`` and return the wheels. Pieces that are whole are kept.

    The smallest file comes first. Loads of an earlier call that are not needed any more are removed. Raises OSError.
    """
    ordered = sorted(files, key=lambda path: (path.stat().st_size, path.name))
    wheels = []
    for path, pieces in zip(ordered, plan([path.stat().st_size for path in ordered], most_bytes), strict=True):
        made = []
        for number, (load, start, size) in enumerate(pieces, 1):
            name = path.name if len(pieces) == 1 else f"{path.name}.{number}"
            made.append(Piece(load, name, start, size, digest(path, start, size)))
        wheels.append(Wheel(path.name, path.stat().st_size, digest(path), tuple(made)))
    wanted: dict[int, set[str]] = {}
    for wheel, path in zip(wheels, ordered, strict=True):
        for piece in wheel.pieces:
            wanted.setdefault(piece.load, {MANIFEST}).add(piece.name)
            target = folder / str(piece.load) / piece.name
            if not is_whole(target, piece.size, piece.sha256):
                target.parent.mkdir(parents=True, exist_ok=True)
                with _whole(target) as out:
                    for block in _blocks(path, piece.start, piece.size):
                        out.write(block)
    text = json.dumps([asdict(wheel) for wheel in wheels], indent=1).encode()
    for load in wanted:
        with _whole(folder / str(load) / MANIFEST) as out:
            out.write(text)
    for old in load_folders(folder):
        for file in old.iterdir():
            if file.name not in wanted.get(int(old.name), ()):
                file.unlink()
        if int(old.name) not in wanted:
            old.rmdir()
    return wheels


def load_folders(folder: Path) -> list[Path]:
    """Return the folders of the loads that are below ``folder``, in order."""
    found = [path for path in folder.glob("*") if path.name.isdecimal() and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name))


def manifest(folder: Path) -> list[Wheel]:
    """Return the wheels that the loads below ``folder`` belong to.

    Raises PartsError where there is no load yet, or loads of two different sets.
    """
    texts = {path: (path / MANIFEST).read_bytes() for path in load_folders(folder) if (path / MANIFEST).is_file()}
    if not texts:
        raise PartsError(f"no load is in {folder}: make them with 'make cuda-parts' and carry {folder}/1 first")
    (first, text), *others = texts.items()
    for path, other in others:
        if other != text:
            raise PartsError(f"{path} is of another set than {first}: carry all loads of one 'make cuda-parts' again")
    try:
        read = json.loads(text)
        return [Wheel(**{**one, "pieces": tuple(Piece(**piece) for piece in one["pieces"])}) for one in read]
    except (ValueError, TypeError, KeyError) as error:
        raise PartsError(f"{first / MANIFEST} is damaged ({error}): carry {first} again") from None


def missing(wheels: Sequence[Wheel], folder: Path) -> dict[int, str]:
    """Return the loads that are not here whole, with the reason of each."""
    found: dict[int, str] = {}
    for wheel in wheels:
        for piece in wheel.pieces:
            path = folder / str(piece.load) / piece.name
            if not path.is_file():
                found.setdefault(piece.load, f"{piece.name} is missing")
            elif not is_whole(path, piece.size, piece.sha256):
                found[piece.load] = f"{piece.name} is damaged: its SHA-256 is not that of the list"
    return dict(sorted(found.items()))


def join(wheels: Sequence[Wheel], folder: Path) -> list[Path]:
    """Put the wheels together in FOLDER/wheels and return their paths; those that are there whole are kept.

    Raises PartsError where a piece is missing or damaged, and OSError.
    """
    (folder / WHEELS).mkdir(parents=True, exist_ok=True)
    targets = [folder / WHEELS / wheel.name for wheel in wheels]
    if all(is_whole(path, wheel.size, wheel.sha256) for path, wheel in zip(targets, wheels, strict=True)):
        return targets
    if lacking := missing(wheels, folder):
        said = "; ".join(f"{folder / str(load)}: {why}" for load, why in lacking.items())
        raise PartsError(f"{said}; carry {'it' if len(lacking) == 1 else 'them'} again")
    for path, wheel in zip(targets, wheels, strict=True):
        with _whole(path) as out:
            for piece in wheel.pieces:
                for block in _blocks(folder / str(piece.load) / piece.name, 0, piece.size):
                    out.write(block)
        if not is_whole(path, wheel.size, wheel.sha256):
            path.unlink()
            raise PartsError(
                f"{wheel.name} is not whole after its pieces were put together: run 'make cuda-parts' again"
            )
    return targets


def is_whole(path: Path, size: int, sha256: str) -> bool:
    """Whether the file is there with this size and this SHA-256."""
    return path.is_file() and path.stat().st_size == size and digest(path) == sha256


def digest(path: Path, start: int = 0, size: int | None = None) -> str:
    """Return the SHA-256 of ``size`` bytes from ``start``; of the whole file by default."""
    found = hashlib.sha256()
    for block in _blocks(path, start, path.stat().st_size if size is None else size):
        found.update(block)
    return found.hexdigest()


def _blocks(path: Path, start: int, size: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(start)
        while size and (block := file.read(min(size, _BLOCK))):
            size -= len(block)
            yield block


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the name ``path`` when the block ends without error."""
    beside = path.with_name(f".tmp-{uuid.uuid4().hex}")
    try:
        with beside.open("xb") as file:
            yield file
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
