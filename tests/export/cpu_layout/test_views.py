"""As few nodes as the shapes allow are left that only change a shape."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from tests.export.cpu_layout.test_lift import lifted, shapes_of
from tests.export.fold.graphs import graph, operators, same_function, same_in_onnxruntime, weights

SHAPES = ((1, 8, 40), (3, 8, 57))
HELD = {
    "w": weights(8, 8, 3),
    "f": weights(8, 5),
    "g": weights(16, 5),
    "zero": np.array([0]),
    "two": np.array([2]),
    "last": np.array([-1]),
    "back2": np.array([-2]),
    "both": np.array([-1, -2]),
    "eight": np.array([8]),
    "flat": np.array([-1, 8]),
}


def network(nodes: str, output: str = "float[N, 5] y") -> onnx.ModelProto:
    text = f"(float[N, 8, L] x) => ({output}) {{ u = Conv(x, w) {nodes} }}"
    words = text.replace(",", " ").replace(")", " ").replace("(", " ").split()
    return graph(text, opset=18, **{k: v for k, v in HELD.items() if k in words})


def test_the_average_of_an_adaptive_pool_is_one_node_and_asks_for_no_size() -> None:
    """As torch writes AdaptiveAvgPool1d(1) and a view before a linear layer."""
    nodes = """n = Shape<start = 0, end = 1>(x) s = Squeeze(n)
      p = Unsqueeze(u, back2) q = ReduceMean<keepdims = 1>(p, both) r = Squeeze(q, back2)
      k = Reshape(s, last) t = Concat<axis = 0>(k, eight) v = Reshape(r, t) y = MatMul(v, f)"""
    before = network(nodes)
    for name, dims in {
        "u": ["N", 8, "K"],
        "p": ["N", 8, 1, "K"],
        "q": ["N", 8, 1, 1],
        "r": ["N", 8, 1],
        "v": ["N", 8],
    }.items():
        before.graph.value_info.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, dims))
    after = lifted(before)
    assert operators(after) == ["Conv", "MatMul", "ReduceMean", "Unsqueeze"]
    same_function(before, after, *SHAPES)


def test_maxima_side_by_side_lose_their_axis_once() -> None:
    nodes = """m = ReduceMax<keepdims = 0>(u, two) c = Conv(u, w) k = ReduceMax<keepdims = 0>(c, two)
      v = Concat<axis = 1>(m, k) y = MatMul(v, g)"""
    before = network(nodes)
    after = lifted(before)
    assert operators(after).count("Squeeze") == 1
    (joined,) = (n for n in after.graph.node if n.op_type == "Concat")
    assert joined.attribute[0].i == 1
    same_function(before, after, *SHAPES)


def test_views_that_are_an_output_keep_its_name_and_shape() -> None:
    before = network("a = Unsqueeze(u, two) b = Squeeze(a, two) y = Unsqueeze(b, zero)", "float[1, N, 8, M] y")
    after = lifted(before)
    assert operators(after) == ["Conv", "Reshape", "Unsqueeze"]
    assert shapes_of(after.graph.output) == shapes_of(before.graph.output)
    same_function(before, after, *SHAPES)


STAY = {
    "axes that are parted otherwise": ("a = Reshape(u, flat) y = MatMul(a, f)", "float[K, 5] y", "Reshape"),
    "a mean that is read as it is": (
        "m = ReduceMean<keepdims = 1>(u, last) s = Squeeze(m, last) r = MatMul(s, f) e = Unsqueeze(r, last)"
        " t = ReduceMax<keepdims = 1>(m) y = Add(e, t)",
        "float[N, 5, 1] y",
        "Squeeze",
    ),
    "a mean over other axes than those that go": (
        "m = ReduceMean<keepdims = 1>(u, two) e = Unsqueeze(m, two) s = Squeeze(e, two) r = Squeeze(s, two)"
        " y = MatMul(r, f)",
        "float[N, 5] y",
        "ReduceMean",
    ),
}


@pytest.mark.parametrize(("nodes", "output", "kept"), STAY.values(), ids=STAY)
def test_another_view_stays(nodes: str, output: str, kept: str) -> None:
    before = network(nodes, output)
    after = lifted(before)
    assert kept in operators(after)
    same_function(before, after, *SHAPES)


def test_nodes_that_are_written_have_names_of_their_own() -> None:
    # onnxruntime refuses two nodes of one name, and lifting has added an Unsqueeze of x already.
    text = "(float[N, 4, L] x) => (float[N, 5, M] y) { a = Identity(x) b = Add(a, x) y = Conv<pads = [1, 1]>(b, w) }"
    before = graph(text, w=weights(5, 4, 3))
    after = lifted(before)
    names = [node.name for node in after.graph.node]
    assert len(set(names)) == len(names)
    same_in_onnxruntime(before, after, (1, 4, 12), (2, 4, 9))
