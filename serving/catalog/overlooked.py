"""Folders of a repository that were probably meant as models, and why they are none."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from normfold.serving.catalog.repository import NAME, Repository
from normfold.serving.wording import quoted


def overlooked(repository: Repository, models: Collection[str]) -> dict[str, str]:
    """For each .onnx file in ``repository``, and each folder with some that is none of its ``models``, by name: why."""
    if repository.is_single:
        return {}
    try:
        others = sorted(entry for entry in repository.path.iterdir() if _is_other(entry.name, models))
        folders = [entry for entry in others if entry.is_dir()]
        files = [entry for entry in others if entry.suffix == ".onnx" and entry.is_file()]
    except OSError:
        return {}
    reasons = {folder.name: _why(folder) for folder in folders}
    reasons |= {file.name: f"it lies beside the models; expected {file.stem}/1/model.onnx" for file in files}
    return {name: why for name, why in reasons.items() if why}


def _is_other(name: str, models: Collection[str]) -> bool:
    return name not in models and not name.startswith(".")


def unnumbered(folder: Path) -> str:
    """Why the .onnx files in a model's ``folder`` are of no version; "" where there are none."""
    try:
        files = sorted(path.relative_to(folder) for path in (*folder.glob("*.onnx"), *folder.glob("*/*.onnx")))
    except OSError:
        return ""
    if not files:
        return ""
    found = files[0]
    version = f"{quoted(str(found.parent))} is no version number" if found.parent.name else "it has no version folder"
    return f"{version}; expected {folder.name}/1/{found.name}"


def _why(folder: Path) -> str:
    why = unnumbered(folder)
    if why and not NAME.fullmatch(folder.name):
        return "a model's name has letters, digits, dots, dashes and underscores only, at most 128"
    return why
