"""A class name means one thing, and a module is short enough to be read at once."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

from .test_layout import PACKAGES

LONGEST = 300


#: Modules with more than LONGEST lines, and the reason why they are not divided.
LONG: dict[str, str] = {}


def modules(root: Path) -> list[Path]:
    folders = [*(root / name for name in (*PACKAGES, "benches", "examples", "docs")), root / "src" / "normfold"]
    return sorted(path for folder in folders for path in folder.rglob("*.py") if "__pycache__" not in path.parts)


def test_no_two_modules_define_a_public_class_of_the_same_name(root: Path) -> None:
    homes = defaultdict(list)
    for path in modules(root):
        if path.relative_to(root).parts[0] in (*PACKAGES, "src"):
            for statement in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(statement, ast.ClassDef) and not statement.name.startswith("_"):
                    homes[statement.name].append(str(path.relative_to(root)))
    assert len(homes) > 100
    same = {name: paths for name, paths in homes.items() if len(paths) > 1}
    found = "\n".join(f"{name}: {', '.join(paths)}" for name, paths in sorted(same.items()))
    assert not found, f"rename all but one of each:\n{found}"


def test_a_long_module_is_on_the_list_with_its_reason(root: Path) -> None:
    lengths = {str(p.relative_to(root)): len(p.read_text(encoding="utf-8").splitlines()) for p in modules(root)}
    assert len(lengths) > 200
    long = {path for path, lines in lengths.items() if lines > LONGEST}
    assert long - LONG.keys() == set(), f"these have more than {LONGEST} lines: divide them, or give the reason in LONG"
    assert LONG.keys() - long == set(), f"these have at most {LONGEST} lines now: take them off LONG"
