"""A file that a command writes when its work is done: whether it can be written is looked at before the work."""

from __future__ import annotations

import os
from pathlib import Path

import click

__all__ = ["check_target"]


def check_target(option: str, path: Path) -> None:
    """Raise UsageError where ``path``, the value of ``option``, could not be written in the end."""
    if not path.parent.is_dir():
        raise click.UsageError(f"{option} {path}: there is no folder {path.parent}; make it first")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise click.UsageError(f"{option} {path}: this user may not write to the folder {path.parent}; name another")
