"""The folder for results that are slow to make: it may be deleted at any time, and they are then made again."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_folder"]


def cache_folder(part: str = "") -> Path | None:
    """Return the folder for ``part``; None where there is none, because the user has no home directory.

    It lies in $NORMFOLD_CACHE_DIR, else in $XDG_CACHE_HOME/normfold, else in ~/.cache/normfold. A relative
    XDG_CACHE_HOME is ignored, as the XDG Base Directory Specification demands.
    """
    if own := os.environ.get("NORMFOLD_CACHE_DIR"):
        return Path(own) / part
    shared = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if shared.is_absolute():
        return shared / "normfold" / part
    try:
        return Path.home() / ".cache" / "normfold" / part
    except RuntimeError:
        return None
