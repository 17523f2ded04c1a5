"""Entries that a convolution computes only for a Slice to cut them off are not computed."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from tests.export.cpu_layout.test_lift import lifted
from tests.export.fold.graphs import graph, operators, same_function, weights

SHAPES = ((1, 8, 40), (2, 8, 57))
HELD = {
    "w": weights(8, 8, 3),
    "none": np.array([0]),
    "two": np.array([2]),
    "less2": np.array([-2]),
    "less4": np.array([-4]),
    "last": np.array([2]),
    "first": np.array([1]),
    "open": np.array([2**63 - 1]),
    "open32": np.array([2**31 - 1]),
    "ten": np.array([10]),
}


def causal(nodes: str, more: str = "") -> onnx.ModelProto:
    text = f"(float[N, 8, L] x) => (float[N, K, M] y{more}) {{ {nodes} }}"
    words = text.replace(",", " ").replace(")", " ").replace("(", " ").split()
    return graph(text, **{k: v for k, v in HELD.items() if k in words})


def pads(model: onnx.ModelProto) -> list[int]:
    (node,) = (n for n in model.graph.node if n.op_type == "Conv")
    return next((list(a.ints) for a in node.attribute if a.name == "pads"), [])


CUTS = {
    "a causal convolution": ("u = Conv<pads = [2, 2]>(x, w) y = Slice(u, none, less2, last)", [0, 2, 0, 0]),
    "dilated": ("u = Conv<pads = [4, 4], dilations = [2]>(x, w) y = Slice(u, none, less4, last)", [0, 4, 0, 0]),
    "strided": ("u = Conv<pads = [2, 4], strides = [2]>(x, w) y = Slice(u, none, less2, last)", [0, 2, 0, 0]),
    "at the beginning": ("u = Conv<pads = [2, 2]>(x, w) y = Slice(u, two, open, last)", [0, 0, 0, 2]),
    "after a Slice that cuts nothing": (
        "u = Conv<pads = [2, 2]>(x, w) t = Slice(u, none, open, none) y = Slice(t, none, less2, last)",
        [0, 2, 0, 0],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("nodes", "left"), CUTS.values(), ids=CUTS)
def test_a_cut_of_what_was_padded_is_less_padding(nodes: str, left: list[int]) -> None:
    before = causal(nodes.replace("kernel_shape", ""))
    for node in before.graph.node:
        if node.op_type == "Conv":
            node.attribute.append(onnx.helper.make_attribute("kernel_shape", [3]))
    after = lifted(before)
    assert operators(after) == ["Conv", "Squeeze", "Unsqueeze"]
    assert pads(after) == left
    same_function(before, after, *SHAPES)


KEPT = {
    "more than was padded": "u = Conv<kernel_shape = [3], pads = [1, 1]>(x, w) y = Slice(u, none, less2, last)",
    "so much that nothing may be left": (
        "u = Conv<kernel_shape = [3], pads = [0, 2]>(x, w) y = Slice(u, none, less2, last)"
    ),
    "channels": "u = Conv<kernel_shape = [3], pads = [2, 2]>(x, w) y = Slice(u, none, less2, first)",
    "at a place that counts from the beginning": (
        "u = Conv<kernel_shape = [3], pads = [2, 2]>(x, w) y = Slice(u, none, ten, last)"
    ),
    "with steps": "u = Conv<kernel_shape = [3], pads = [2, 2]>(x, w) y = Slice(u, none, less2, last, two)",
    "of what has another reader": (
        "u = Conv<kernel_shape = [3], pads = [2, 2]>(x, w) s = Slice(u, none, less2, last)"
        " m = GlobalMaxPool(u) y = Mul(s, m)"
    ),
    "of another operator": "u = MaxPool<kernel_shape = [3], pads = [2, 2]>(x) y = Slice(u, none, less2, last)",
}


@pytest.mark.parametrize("nodes", KEPT.values(), ids=KEPT)
def test_another_cut_stays(nodes: str) -> None:
    before = causal(nodes)
    after = lifted(before)
    assert "Slice" in operators(after)
    same_function(before, after, *SHAPES)


def test_a_cut_of_what_is_an_output_too_stays() -> None:
    nodes = "u = Conv<kernel_shape = [3], pads = [2, 2]>(x, w) y = Slice(u, none, less2, last)"
    assert "Slice" in operators(lifted(causal(nodes, ", float[N, 8, J] u")))


@pytest.mark.parametrize("end", ["open", "open32"])
def test_a_slice_of_everything_goes(end: str) -> None:
    before = causal(f"s = Slice(x, none, {end}, last) u = Conv(s, w) t = Slice(u, none, {end}, none) y = Relu(t)")
    after = lifted(before)
    assert "Slice" not in operators(after)
    same_function(before, after, *SHAPES)
