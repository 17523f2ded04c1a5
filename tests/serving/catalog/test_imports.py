"""The contract and the configuration of a model can be read where no onnxruntime is loaded."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("onnxruntime", "normfold.serving.runtime.session")


@pytest.mark.parametrize("module", ["catalog.config", "catalog.contract", "runtime.settings"])
def test_no_onnxruntime_is_imported(module):
    script = f"import sys, normfold.serving.{module}; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
