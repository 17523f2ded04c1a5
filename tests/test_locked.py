"""locked/serving.txt has what a server needs, in the versions that were tested, each with digests."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


@pytest.fixture(scope="module")
def locked(root: Path) -> dict[str, tuple[str, list[str]]]:
    """Version and digests by name."""
    text = (root / "locked" / "serving.txt").read_text(encoding="utf-8").replace("\\\n", " ")
    found = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            pinned, *digests = line.split()
            name, _, version = pinned.partition("==")
            found[canonicalize_name(name)] = (version, digests)
    return found


def test_every_package_has_the_tested_version_and_digests(root, locked):
    constraints = dict(
        line.split("==") for line in (root / "constraints.txt").read_text().splitlines() if not line.startswith("#")
    )
    tested = {canonicalize_name(name): version for name, version in constraints.items()}
    for name, (version, digests) in locked.items():
        assert version == tested[name], name
        assert digests
        assert all(re.fullmatch("--hash=sha256:[0-9a-f]{64}", digest) for digest in digests), name


def test_it_has_what_a_server_asks_for_and_nothing_of_an_export(root, locked):
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    for text in (*project["dependencies"], *extras["cpu"], *extras["signing"]):
        wanted = Requirement(text)
        assert wanted.specifier.contains(locked[canonicalize_name(wanted.name)][0]), text
    assert not {canonicalize_name(Requirement(text).name) for text in extras["export"]} & set(locked)


def program(root: Path, name: str) -> ModuleType:
    """One of the programs in ``locked``."""
    spec = importlib.util.spec_from_file_location(f"locked_{name}", root / "locked" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_lowest_version_of_every_package_of_a_user_is_one_that_the_project_takes(root):
    lowest = program(root, "lowest")
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [Requirement(text) for text in (*project["dependencies"], *(t for e in lowest.EXTRAS for t in extras[e]))]
    pinned = {name: version for name, _, version in (line.partition("==") for line in lowest.lowest())}
    assert set(pinned) == {requirement.name for requirement in wanted}
    assert f"'.[{','.join(lowest.EXTRAS)}]'" in (root / "Makefile").read_text(encoding="utf-8")
    for requirement in wanted:
        assert any(one.operator == ">=" and one.version == pinned[requirement.name] for one in requirement.specifier)
        assert requirement.specifier.contains(pinned[requirement.name])


def test_the_file_is_written_in_one_order_with_the_digests_of_all_versions_of_python(root):
    write = program(root, "write")
    text = write.text({"b": ("2", {"y", "x"}), "a": ("1", {"z"})})
    assert text.splitlines()[1:] == [
        "a==1 \\",
        "    --hash=sha256:z",
        "b==2 \\",
        "    --hash=sha256:x \\",
        "    --hash=sha256:y",
    ]


@pytest.mark.parametrize(
    ("codes", "errors", "code", "words"),
    [
        ([0], [""], 0, "found"),
        ([1], ["numpy has CVE-1"], 1, "CVE-1"),
        ([1, 1], ["ConnectionError: no", "Max retries exceeded"], 0, "not audited"),
        ([1, 0], ["ConnectionError: no", ""], 0, "found"),
        ([0, 0], ["", ""], 0, "not audited"),
    ],
)
def test_the_audit_ends_well_where_there_is_no_network(root, monkeypatch, capsys, tmp_path, codes, errors, code, words):
    audit = program(root, "audit")
    (tmp_path / "serving.txt").write_text("a==1 \\\n    --hash=sha256:0\n")
    found = "a   Dependency not found and could not be audited: a (1)" if codes == [0, 0] else "found"
    answers = iter(zip(codes, errors, strict=True))

    def run(command, **_):
        returncode, stderr = next(answers)
        assert {"--require-hashes", "--disable-pip"} <= set(command)
        return type("Done", (), {"returncode": returncode, "stdout": f"{found}\n", "stderr": stderr})

    monkeypatch.setattr(audit.subprocess, "run", run)
    monkeypatch.setattr(audit.sys, "argv", ["audit.py", str(tmp_path / "serving.txt")])
    assert audit.main() == code
    assert words in capsys.readouterr().out


@pytest.mark.parametrize(
    ("said", "code", "words"),
    [
        ("", 0, "installing"),
        (
            "WARNING: NewConnectionError\nERROR: No matching distribution",
            3,
            "no index of packages can be reached",
        ),
        ("ERROR: No matching distribution found for build==0", 1, "No matching distribution found for build==0"),
    ],
)
def test_the_programs_of_an_audit_are_installed_or_one_line_says_why_not(
    root, monkeypatch, capsys, tmp_path, said, code, words
):
    tools = program(root, "tools")
    asked = []

    def run(command, **_):
        asked.append(command)
        if said and "install" in command:
            raise tools.subprocess.CalledProcessError(1, command, "", said)

    monkeypatch.setattr(tools.subprocess, "run", run)
    monkeypatch.setattr(tools.sys, "argv", ["tools.py", str(tmp_path)])
    assert tools.main() == code
    assert words in capsys.readouterr().out.splitlines()[-1]
    asked.clear()
    assert tools.main() == code
    assert bool(asked) is bool(said)  # what is there is not installed again


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
@pytest.mark.parametrize(("code", "ends"), [(3, 0), (1, 2)])
def test_make_audit_ends_well_only_where_no_index_can_be_reached(root, tmp_path, code, ends):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nexit {code}\n")
    python.chmod(0o755)
    command = ["make", "--no-print-directory", "audit", f"PYTHON={python}", f"AUDIT_VENV={tmp_path / 'environment'}"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == ends
    assert done.stdout.startswith("not audited: ") is (ends == 0)


def test_the_lock_stays_as_it_was_where_there_is_no_network(root, monkeypatch, capsys):
    write = program(root, "write")
    before = (root / "locked" / "serving.txt").read_bytes()

    def fails(command, **_):
        raise write.subprocess.CalledProcessError(1, command, "", "WARNING: retrying\nERROR: No matching distribution")

    monkeypatch.setattr(write.subprocess, "run", fails)
    monkeypatch.setattr(write.sys, "argv", ["write.py", "pip"])
    assert write.main() == 1
    printed = capsys.readouterr().out
    assert "1 of 6: asking pip" in printed
    assert printed.splitlines()[-1] == "locked/serving.txt stays as it was: ERROR: No matching distribution"
    assert (root / "locked" / "serving.txt").read_bytes() == before


def test_a_release_needs_its_version_in_the_changelog(root, monkeypatch, capsys):
    release = program(root, "release")
    assert release.newest_version("# Changelog\n\n## [Unreleased]\n\n## [1.2.0] - 2026-01-01\n\n## [1.1.0]") == "1.2.0"
    assert release.newest_version("## [Unreleased]") == ""
    monkeypatch.setattr(release, "newest_version", lambda text: "9.9")
    monkeypatch.setattr(release.sys, "argv", ["release.py"])
    assert release.main() == 1
    assert "CHANGELOG.md has 9.9 as its newest" in capsys.readouterr().out


def test_a_wheel_of_another_version_is_not_released(root, monkeypatch, capsys, tmp_path):
    release = program(root, "release")
    commands = []

    def step(what, *command):
        commands.append(command)
        (tmp_path / "normfold-0.1.0-py3-none-any.whl").parent.mkdir(exist_ok=True)
        (tmp_path / "normfold-0.1.0-py3-none-any.whl").touch()
        return "normfold 0.0.1\n"

    monkeypatch.setattr(release, "DIST", tmp_path / "dist")
    monkeypatch.setattr(release, "step", lambda what, *command: step(what, *command))
    tmp_path = tmp_path / "dist"
    monkeypatch.setattr(release.sys, "argv", ["release.py", "--draft"])
    assert release.main() == 1
    assert "not released: the wheel is 'normfold 0.0.1'" in capsys.readouterr().out
    assert [command[2] for command in commands[:3]] == ["build", "twine", "venv"]
