"""Replace a directory by another one without losing what was there, and tidy up after exports that were killed.

    .tmp-<32 digits>              a version that is being written, or one that was replaced; removed when it is old
    .tmp-<32 digits>-<name>-old   what was at <name>, on a file system that cannot exchange two directories

The second kind is there between two renames only. Where an export ended between them, it is the only copy of <name>,
and goes back there.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import time
from contextlib import suppress
from pathlib import Path

from normfold.export.publishing.destination import Destination

__all__ = ["exchange", "put_back", "remove", "remove_stale"]

#: A ``.tmp-`` directory of a killed export is removed when it is older than this.
STALE_SECONDS = 3600
#: What exports leave. What was set aside without a name is never removed: it may be the only copy of something. Behind
#: a link, a model's directory may have any name.
_LEFT = re.compile(r"\.tmp-[0-9a-f]{32}(?P<aside>(?:-(?P<name>\.*[^.].*))?-old)?", re.DOTALL)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def exchange(new: Path, old: Path) -> None:
    """Exchange two directories: atomically (renameat2), or by three renames where the file system cannot.

    After an error both are where they were.
    """
    # A rename keeps the time of a directory. This one is about to become a left-over, which is as old as that.
    with suppress(OSError):
        os.utime(old)
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is not None:
        arguments = (_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(old), _RENAME_EXCHANGE)
        if renameat2(*arguments) == 0:
            return
    aside = new.with_name(f"{new.name}-{old.name}-old")
    try:
        old.rename(aside)
        new.rename(old)
    except BaseException:
        with suppress(OSError):
            aside.rename(old)
        raise
    aside.rename(new)


def put_back(destination: Destination) -> tuple[str, ...]:
    """Put back the models and the versions of this model that a killed export set aside; return a line for each."""
    lines, destination = [], destination.behind_link
    for directory in (destination.repository, destination.directory):
        for path in sorted(directory.glob(".tmp-*-old")):
            target = _target(path)
            if target is None or os.path.lexists(target):
                continue
            with suppress(OSError):
                path.rename(target)
                lines.append(
                    f"'{target}' was put back: an earlier export was stopped while it replaced it, and had left it as "
                    f"'{path.name}'"
                )
    return tuple(lines)


def remove_stale(directory: Path) -> None:
    """Remove what killed exports left in ``directory``, but never the only copy of a model or a version."""
    for path in directory.glob(".tmp-*"):
        left = _LEFT.fullmatch(path.name)
        if left is None or (left["aside"] and not ((target := _target(path)) and target.exists())):
            continue
        with suppress(OSError):
            if time.time() - path.lstat().st_mtime > STALE_SECONDS:
                remove(path)


def remove(path: Path) -> None:
    """Remove a directory, or the link or file that stood in its place, as far as the system allows."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def _target(aside: Path) -> Path | None:
    """Where a directory was before it was set aside; None where its name does not say so."""
    match = _LEFT.fullmatch(aside.name)
    return aside.with_name(match["name"]) if match and match["name"] else None
