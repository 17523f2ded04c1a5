"""The manifest of a version: the size and the SHA-256 of each of its files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

__all__ = ["manifest"]


def manifest(files: Mapping[str, bytes]) -> bytes:
    """Return ``manifest.json``: the size and the sha256 of every file.

    >>> manifest({"a": b"x"}).decode().splitlines()[1].strip()
    '"files": {'
    """
    entries = {n: {"bytes": len(c), "sha256": hashlib.sha256(c).hexdigest()} for n, c in sorted(files.items())}
    return (json.dumps({"schema": 1, "files": entries}, indent=2, sort_keys=True) + "\n").encode()
