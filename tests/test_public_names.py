"""The public names of each package: whoever adds or removes one changes this list, and so decides it."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

NAMES = {
    "normfold": {"AsyncClient", "Client", "FoldReport", "__version__", "fold"},
    "normfold.cli": {"main"},
    "normfold.export.fold": {"Fold", "FoldReport", "fold", "fold_module"},
}


@pytest.mark.parametrize("package", NAMES)
def test_a_package_has_exactly_these_public_names(package):
    module = import_module(package)
    assert set(module.__all__) == NAMES[package]
    assert len(module.__all__) == len(NAMES[package])
    for name in module.__all__:
        assert getattr(module, name) is not None


@pytest.mark.parametrize("package", ["export", "models", "protos", "serving"])
def test_the_other_packages_re_export_nothing(package):
    assert not hasattr(import_module(f"normfold.{package}"), "__all__")


def test_an_unknown_name_is_an_attribute_error():
    import normfold

    with pytest.raises(AttributeError, match="has no attribute 'unfold'"):
        normfold.unfold  # noqa: B018


def test_importing_the_package_imports_nothing_heavy():
    heavy = "{'torch', 'onnx', 'onnx_ir', 'onnxruntime', 'grpc', 'numpy', 'rich', 'click'}"
    script = f"import sys, normfold; print({heavy} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout == "set()\n"


def test_the_client_comes_without_torch_and_onnxruntime():
    script = "import sys; from normfold import Client, AsyncClient; print({'torch', 'onnxruntime'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout == "set()\n"
