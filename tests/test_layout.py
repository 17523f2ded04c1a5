"""The folders at the root are the packages, and imports run one way."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGES = ("cli", "export", "models", "protos", "serving")


@pytest.mark.parametrize("name", PACKAGES)
def test_a_root_folder_is_linked_into_the_package_by_a_relative_link(root, name):
    link = root / "src" / "normfold" / name
    assert link.is_symlink()
    assert link.readlink() == Path("..", "..", name)
    assert (link / "__init__.py").is_file()


def test_no_module_has_a_name_that_says_nothing(root):
    vague = re.compile(r"(utils?|helpers?|common|misc|manager|.*_impl)$")
    files = [path for name in (*PACKAGES, "src/normfold") for path in (root / name).rglob("*.py")]
    assert len(files) > 50
    assert [path for path in files if vague.match(path.stem)] == []


def test_imports_run_one_way(root):
    pytest.importorskip("importlinter")
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
