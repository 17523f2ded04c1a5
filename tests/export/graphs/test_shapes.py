"""Shape inference finds what onnx_ir's own pass finds, and reads no weights for it."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes
import pytest
from tests.export.fold.graphs import graph, weights

from normfold.export.graphs.shapes import infer_shapes

TEXTS = {
    "dynamic": "c = Conv<pads=[1,1],strides=[2]>(x, w) r = Relu(c) y = MaxPool<kernel_shape=[2]>(r)",
    "reshaped": "c = Conv(x, w) s = Shape<start=0,end=1>(c) t = Concat<axis=0>(s, rest) y = Reshape(c, t)",
    "constants": "c = Conv(x, w) y = Slice(c, one, many, two)",
    "linear": "t = Transpose<perm=[0,2,1]>(x) m = MatMul(t, big) y = Softmax<axis=-1>(m)",
}


def model_of(name: str) -> onnx.ModelProto:
    arrays = {
        "w": weights(4, 3, 1),
        "big": weights(3, 400),
        "rest": np.array([4, -1]),
        "one": np.array([1]),
        "many": np.array([3]),
        "two": np.array([1]),
    }
    return graph(f"(float[N,3,L] x) => (float[A,B,C] y) {{ {TEXTS[name]} }}", **arrays)


def shapes_of(model: ir.Model) -> dict[str | None, tuple[ir.Shape | None, ir.DataType | None]]:
    return {v.name: (v.shape, v.dtype) for node in model.graph for v in node.outputs}


@pytest.mark.parametrize("name", TEXTS)
def test_shapes_and_types_are_those_of_the_pass(name: str) -> None:
    ours, theirs = (ir.from_proto(model_of(name)) for _ in range(2))
    infer_shapes(ours)
    passes.ShapeInferencePass()(theirs)
    assert shapes_of(ours) == shapes_of(theirs)
    assert all(shape is not None for value, (shape, _) in shapes_of(ours).items() if value != "y")


def test_nothing_else_of_the_model_changes() -> None:
    model = ir.from_proto(model_of("reshaped"))
    before = [v.name for v in model.graph.inputs], set(model.graph.initializers), [n.name for n in model.graph]
    infer_shapes(model)
    assert before == (
        [v.name for v in model.graph.inputs],
        set(model.graph.initializers),
        [n.name for n in model.graph],
    )
    assert all(v.const_value is not None for v in model.graph.initializers.values())


def test_a_graph_that_inference_refuses_keeps_what_it_has() -> None:
    # The weights read five channels and x has three: strict inference says so.
    model = ir.from_proto(graph("(float[N,3,L] x) => (float[A,B,C] y) { c = Conv(x, w) y = Relu(c) }", w=weights(4, 5)))
    before = shapes_of(model)
    infer_shapes(model)
    assert shapes_of(model) == before
