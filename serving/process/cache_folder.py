"""The folder for what may be deleted at any time and is then made again."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def cache_folder(part: str = "") -> Path | None:
    """Where ``part`` is kept: in $NORMFOLD_CACHE_DIR, else normfold in $XDG_CACHE_HOME, else in ~/.cache.

    None without a home directory.
    """
    if own := os.environ.get("NORMFOLD_CACHE_DIR"):
        return Path(own) / part
    shared = Path(os.environ.get("XDG_CACHE_HOME", ""))
    with contextlib.suppress(RuntimeError):
        return (shared if shared.is_absolute() else Path.home() / ".cache") / "normfold" / part
    return None
