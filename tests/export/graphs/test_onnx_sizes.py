"""What a graph would hold on given inputs is known before anything runs."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper
from tests.export.fold.graphs import graph, weights

from normfold.export.errors import ExportError
from normfold.export.graphs import onnx_sizes
from normfold.export.graphs.onnx_sizes import GraphSizes


@pytest.mark.parametrize(
    ("call", "held"),
    [
        ('Einsum<equation="ol,ncl->nol">(c, x)', "[2, 4, 1000]"),
        ("PRelu(v, x)", "[2, 3, 1000]"),
        ("Expand(v, s)", "[2, 3, 1000]"),
    ],
)
def test_a_value_that_is_too_large_is_refused_also_where_a_first_term_of_length_1_is_broadcast(
    monkeypatch: pytest.MonkeyPatch, call: str, held: str
) -> None:
    text = f"(float[N,3,L] x) => (float[N,A,B] y) {{ t = {call} y = Relu(t) }}"
    model = graph(text, opset=18, c=weights(4, 1), v=weights(1, 3, 1), s=np.array([2, 3, 1000]))
    sizes = GraphSizes(model.SerializeToString())
    monkeypatch.setattr(onnx_sizes, "MAX_VALUE_ELEMENTS", 8000)
    sizes.check({"x": np.zeros((2, 3, 100), np.float32)})
    monkeypatch.setattr(onnx_sizes, "MAX_VALUE_ELEMENTS", 5000)
    with pytest.raises(ExportError, match="which is more than the 5000 elements") as refused:
        sizes.check({"x": np.zeros((2, 3, 1000), np.float32)})
    assert held in str(refused.value)


def test_a_smaller_length_that_the_file_states_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = graph("(float[N,3] x) => (float[N,A] y) { t = Expand(x, s) y = Relu(t) }", s=np.array([2000, 3]))
    model.graph.value_info.add().CopyFrom(helper.make_tensor_value_info("t", TensorProto.FLOAT, [1, 3]))
    monkeypatch.setattr(onnx_sizes, "MAX_VALUE_ELEMENTS", 5000)
    with pytest.raises(ExportError, match=r"'t' would have the shape \[2000, 3\]"):
        GraphSizes(model.SerializeToString()).check({"x": np.zeros((1, 3), np.float32)})
