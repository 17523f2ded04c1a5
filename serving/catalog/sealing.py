"""The manifest of a version for signing: the one that is there, if it is right, or a new one."""

from __future__ import annotations

from pathlib import Path

from normfold.manifest import manifest
from normfold.serving.access.signatures import SIGNATURE_FILE
from normfold.serving.catalog.manifests import check_manifest, require_listed
from normfold.serving.catalog.plain_files import why
from normfold.serving.catalog.repository import MANIFEST_FILE, ModelFolder
from normfold.serving.errors import LoadError, UnsafeModel


def completed_manifest(model: ModelFolder, version: int) -> tuple[bytes, bool]:
    """The manifest of a version, and whether it must be written.

    Raises UnsafeModel if there is one that the files of the version do not fit, LoadError if they cannot be read.
    """
    files = _files(model, version)
    found = model.find(version, MANIFEST_FILE)
    if found is None:
        return manifest(files), True
    folder = model.path / str(version)
    try:
        for name, data in files.items():
            check_manifest(found, name, data)
        require_listed(found, folder)
    except UnsafeModel as error:
        raise UnsafeModel(f"{folder} is not signed: {error}") from None
    return found, False


def _files(model: ModelFolder, version: int) -> dict[str, bytes]:
    """The files of a version by name, without manifest and signature."""
    folder: Path = model.path / str(version)
    try:
        names = sorted(entry.name for entry in folder.iterdir() if entry.is_file() and entry.name[0] != ".")
    except OSError as error:
        raise LoadError(f"{folder} cannot be read: {why(error)}") from None
    found = {name: model.find(version, name) for name in names if name not in (MANIFEST_FILE, SIGNATURE_FILE)}
    return {name: data for name, data in found.items() if data is not None}
