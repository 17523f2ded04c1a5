"""A graph on which onnxruntime ends its process is refused in a sentence, and this process goes on."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import parser

from normfold.export.errors import ExportError
from normfold.export.graphs import trial

MODEL = """<ir_version: 9, opset_import: ["": 18]>
m (float[N,4] x) => (float[N,4] y) { y = Neg (x) }"""
CONTENT = parser.parse_model(MODEL).SerializeToString()
INPUTS = {"x": np.zeros((2, 4), np.float32)}


def test_a_graph_that_runs_and_one_that_raises_are_left_to_the_caller():
    trial.require_no_crash(CONTENT, INPUTS, "it")
    trial.require_no_crash(CONTENT, {"x": np.zeros((2, 5), np.float32)}, "it")
    trial.require_no_crash(b"no graph", INPUTS, "it")


@pytest.mark.parametrize("where", ["session = ", "session.run"])
def test_a_crash_while_loading_or_running_is_a_sentence(monkeypatch, where):
    assert where in trial._PROGRAM
    monkeypatch.setattr(trial, "_PROGRAM", trial._PROGRAM.replace(where, f"__import__('os').abort(); {where}"))
    with pytest.raises(ExportError, match="onnxruntime crashes on the network in fp16 \\(SIGABRT\\), so nothing"):
        trial.require_no_crash(CONTENT, INPUTS, "the network in fp16")
