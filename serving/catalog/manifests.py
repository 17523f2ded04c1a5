"""Checks the files of a version against its manifest.json."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from normfold.serving.errors import UnsafeModel
from normfold.serving.wording import quoted


def listed_names(manifest: bytes) -> list[str]:
    """The names of the files that ``manifest`` lists. Raises UnsafeModel where it lists none."""
    try:
        return list(json.loads(manifest)["files"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UnsafeModel("manifest.json lists no files") from None


def require_listed(manifest: bytes, version: Path) -> None:
    """Raise UnsafeModel unless each file that ``manifest`` lists is in the folder ``version``."""
    for name in map(str, listed_names(manifest)):
        if not os.path.lexists(version / name):
            raise UnsafeModel(f"{quoted(name)} of manifest.json is not there: it was removed, or not copied")


def listed(manifest: bytes, filename: str) -> tuple[int, str]:
    """The size and the SHA-256 that ``manifest`` has for ``filename``. Raises UnsafeModel where it has none."""
    try:
        entry = json.loads(manifest)["files"][filename]
        return int(entry["bytes"]), str(entry["sha256"])
    except (ValueError, OverflowError, KeyError, TypeError, RecursionError):
        raise UnsafeModel(f"manifest.json does not list {filename} with its bytes and sha256") from None


def check_manifest(manifest: bytes, filename: str, data: bytes) -> str:
    """The SHA-256 of ``data``. Raises UnsafeModel unless ``manifest`` lists ``filename`` with it and with the size."""
    size, digest = listed(manifest, filename)
    if len(data) != size:
        raise UnsafeModel(f"{filename} has {len(data)} bytes, manifest.json says {size}: the file was cut or changed")
    actual = hashlib.sha256(data).hexdigest()
    if actual != digest.lower():
        raise UnsafeModel(f"{filename} has SHA-256 {actual}, manifest.json says {digest}: the file was changed")
    return actual
