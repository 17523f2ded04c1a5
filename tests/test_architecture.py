"""ARCHITECTURE.md has a row for every folder with Python in it, and no row for a folder that is not there."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest


@pytest.fixture
def rows(root: Path) -> list[str]:
    """The folders with a row in ARCHITECTURE.md: those whose first cell is `path/`."""
    text = (root / "ARCHITECTURE.md").read_text(encoding="utf-8")
    return re.findall(r"^\| `([^`\s]+)/` \|", text, re.MULTILINE)


def folders(root: Path) -> set[str]:
    """The folders of the project with Python in them, without links, hidden folders and what git ignores."""
    lines = (root / ".gitignore").read_text(encoding="utf-8").splitlines()
    ignored = {line.strip("/") for line in lines if line.endswith("/")}
    found = set()
    for folder, names, files in os.walk(root):
        names[:] = [name for name in names if not name.startswith(".") and name not in ignored]
        if any(file.endswith(".py") for file in files):
            found.add(Path(folder).relative_to(root).as_posix())
    return found


def row_of(folder: str) -> str:
    """The folder whose row covers ``folder``: tests mirror the rooms, so a folder in tests/ has one row for all."""
    parts = folder.split("/")
    return "/".join(parts[:2]) if parts[0] == "tests" else folder


def test_every_folder_with_python_has_a_row(root: Path, rows: list[str]) -> None:
    found = folders(root)
    assert {"cli", "src/normfold", "tests/cli", "serving/load"} <= found
    missing = sorted({row_of(folder) for folder in found} - set(rows))
    assert missing == [], "write a row for each in ARCHITECTURE.md: | `path/` | what is in it | ... |"


def test_every_row_is_of_a_folder_that_is_there_and_none_is_twice(root: Path, rows: list[str]) -> None:
    assert [row for row in rows if not (root / row).is_dir()] == []
    assert sorted(rows) == sorted(set(rows))
