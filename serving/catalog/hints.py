"""Hints for a person whose ``--repository`` holds no model: a path beside, above or below it that may be meant."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from pathlib import Path

from normfold.serving.catalog.version_text import folder_version

#: The entries of a folder that are looked at.
MOST_ENTRIES = 100
#: The paths that a sentence names.
MOST_NAMED = 3


def meant(path: Path, is_model: Callable[[Path], bool]) -> str:
    """The end of a sentence about ``path``, which holds no model; "" where nothing is like one.

    ``is_model`` says whether a folder is that of one model, and may raise OSError.
    """
    inside = sorted(path.glob("*.onnx"))
    if inside and path.name.isascii() and path.name.isdecimal():
        name = path.resolve().parent.name
        return f"; it is one version: did you mean {str(path.parent)!r}, or {str(inside[0])!r} with --name {name}?"
    found = [folder for folder in _folders(path) if any(_holds(is_model, one) for one in _folders(folder))]
    found = found or inside
    return f"; did you mean {' or '.join(repr(str(one)) for one in found[:MOST_NAMED])}?" if found else ""


def misplaced(path: Path) -> str:
    """The end of a sentence about the repository ``path`` without models: a file at a wrong place."""
    for folder in _folders(path):
        if folder.name.startswith("."):  # such as .git, and what a killed export leaves
            continue
        with contextlib.suppress(OSError):
            for file in sorted((*folder.glob("*.onnx"), *folder.glob("*/*.onnx"))):
                if file.parent != folder and folder_version(file.parent.name) is not None:
                    return f"; {folder.name!r} is no name of a model (letters, digits, . _ -)"
                return f"; {str(file)!r} is in no version's folder: move it to {str(folder / '1' / file.name)!r}"
    return ""


def _folders(path: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return sorted(entry for entry in itertools.islice(path.iterdir(), MOST_ENTRIES) if entry.is_dir())
    return []


def _holds(is_model: Callable[[Path], bool], folder: Path) -> bool:
    with contextlib.suppress(OSError):
        return is_model(folder)
    return False
