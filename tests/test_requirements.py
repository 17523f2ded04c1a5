"""The requirements exclude versions with known vulnerabilities, and broken releases."""

from __future__ import annotations

import ast
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

#: Package -> (a version that must be allowed, versions that must not be).
FLOORS = {
    "torch": ("2.11", ["2.10.0", "2.5.1"]),  # CVE-2025-32434, CVE-2026-24747: weights_only
    "onnx": ("1.21", ["1.20.1", "1.16.0"]),  # CVE-2026-27489: external data outside the model's folder
    "onnxruntime": ("1.29.0", ["1.28.0", "1.26.0"]),  # memory safety of its loader
    "onnxruntime-gpu": ("1.29.0", ["1.28.0"]),
    "onnx-ir": ("0.1.16", ["0.1.15"]),  # without onnx_ir.schemas torch 2.11 exports nothing
    "protobuf": ("6.33.5", ["6.33.4", "5.29.5", "8.0"]),  # CVE-2026-0994; 8 is not known to run
    "grpcio": ("1.66", ["1.71.0", "1.71.2", "1.72.0", "1.65.5"]),  # grpc.aio of 1.71.0 to 1.72.0 leaks
}


@pytest.fixture(scope="module")
def requirements(root):
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    texts = [*project["dependencies"], *(r for extra in project["optional-dependencies"].values() for r in extra)]
    return {requirement.name: requirement for requirement in map(Requirement, texts)}


@pytest.mark.parametrize("package", FLOORS)
def test_versions_with_known_faults_are_kept_out(requirements, package):
    least, refused = FLOORS[package]
    specifier = requirements[package].specifier
    assert specifier.contains(least)
    assert [bad for bad in refused if specifier.contains(bad)] == []


def test_what_is_installed_satisfies_the_project(requirements):
    for name, requirement in requirements.items():
        try:
            installed = version(name)
        except PackageNotFoundError:
            continue
        assert requirement.specifier.contains(Version(installed).public), f"{name} {installed}: {requirement}"


def test_the_base_has_no_onnxruntime_because_extras_can_only_add(root):
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert not [r for r in project["dependencies"] if r.startswith("onnxruntime")]
    extras = project["optional-dependencies"]
    assert [Requirement(r).name for r in extras["cpu"]] == ["onnxruntime"]
    assert [Requirement(r).name for r in extras["gpu"]] == ["onnxruntime-gpu"]


def test_every_constraint_is_a_version_that_the_project_takes(root, requirements):
    lines = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {r.name: r for r in map(Requirement, (line for line in lines if line and not line.startswith("#")))}
    assert {"torch", "onnx", "onnxruntime", "grpcio", "protobuf", "numpy"} <= set(pinned)
    for name, requirement in requirements.items():
        if name in pinned:
            (exact,) = pinned[name].specifier
            assert exact.operator == "=="
            assert requirement.specifier.contains(exact.version), f"{pinned[name]} is not in {requirement}"


def test_the_environment_of_other_networks_has_what_its_tests_import(root):
    lines = (root / "benches/zoo/requirements.txt").read_text(encoding="utf-8").splitlines()
    pinned = {Requirement(line).name for line in lines if line and not line.startswith("#")}
    imported = {
        name.name.partition(".")[0] if isinstance(node, ast.Import) else str(node.module).partition(".")[0]
        for file in (root / "tests/conftest.py", *(root / "tests/zoo").glob("test_*.py"))
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Import) or (isinstance(node, ast.ImportFrom) and not node.level)
        for name in node.names
    }
    ours = {"benches", "normfold", "tests"}
    names = {name.replace("_", "-") for name in imported - ours - sys.stdlib_module_names}
    assert names <= {name.replace("_", "-") for name in pinned}


def test_no_class_is_based_on_a_generic_one_of_click(root):
    # click.ParamType[…] fails at import with the lowest version of click; mypy, which reads a later one, asks for it.
    based = [
        f"{file.name}: {ast.unparse(base)}"
        for file in (root / "cli").glob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
        for base in node.bases
        if isinstance(base, ast.Subscript) and ast.unparse(base).startswith("click.")
    ]
    assert based == []
