"""Folders of a repository that were probably meant as models, and why they are none."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from normfold.serving.catalog.repository import NAME, Repository
from normfold.serving.wording import quoted


def overlooked(repository: Repository, models: Collection[str]) -> dict[str, str]:
    """For each folder of ``repository`` that holds .onnx files but is none of its ``models``, by name: why."""
    if repository.is_single:
        return {}
    try:
        folders = sorted(entry for entry in repository.path.iterdir() if entry.name not in models and entry.is_dir())
    except OSError:
        return {}
    reasons = {folder.name: _why(folder) for folder in folders if not folder.name.startswith(".")}
    return {name: why for name, why in reasons.items() if why}


def _why(folder: Path) -> str:
    try:
        files = sorted(path.relative_to(folder) for path in (*folder.glob("*.onnx"), *folder.glob("*/*.onnx")))
    except OSError:
        return ""
    if not files:
        return ""
    if not NAME.fullmatch(folder.name):
        return "a model's name has letters, digits, dots, dashes and underscores only, at most 128"
    found = files[0]
    version = f"{quoted(str(found.parent))} is no version number" if found.parent.name else "it has no version folder"
    return f"{version}; expected {folder.name}/1/{found.name}"
