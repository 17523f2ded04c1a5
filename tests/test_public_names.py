"""The public names of each package: whoever adds or removes one changes this list, and so decides it."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

NAMES = {
    "normfold": {
        "Answer",
        "AsyncClient",
        "Client",
        "ClientError",
        "ClientTls",
        "ExportError",
        "ExportReport",
        "Fold",
        "FoldReport",
        "LabelledClass",
        "ModelMetadata",
        "ServerMetadata",
        "Status",
        "TensorMetadata",
        "__version__",
        "export_network",
        "fold",
    },
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


def test_dir_and_help_show_every_public_name_and_tab_loads_none():
    script = (
        "import sys, normfold; missing = set(normfold.__all__) - set(dir(normfold))\n"
        "print('grpc' in sys.modules, missing)\n"
        "import pydoc; text = pydoc.render_doc(normfold, renderer=pydoc.plaintext)\n"
        "print([name for name in normfold.__all__ if name not in text])"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert run.stdout == "False set()\n[]\n"


def test_without_the_packages_of_an_export_dir_leaves_its_names_out_and_one_that_is_asked_for_says_what_to_install():
    script = (
        "import sys; sys.modules['onnx_ir'] = None\n"
        "import importlib.util as u; find = u.find_spec; u.find_spec = lambda n: None if n == 'onnx_ir' else find(n)\n"
        "import normfold; print([n for n in ('Client', 'ClientError', 'fold', 'FoldReport') if n in dir(normfold)])\n"
        "import pydoc; pydoc.render_doc(normfold)\n"
        "try: normfold.fold\n"
        "except ImportError as error: print(error)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    names, said = run.stdout.splitlines()
    assert names == "['Client', 'ClientError']"
    assert said == "normfold.fold needs onnx_ir, which is not installed: pip install 'normfold[export,cpu]'"


def test_the_client_comes_without_torch_and_onnxruntime():
    script = "import sys; from normfold import Client, AsyncClient; print({'torch', 'onnxruntime'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout == "set()\n"
