"""Convolutions that run along the third of four axes are turned to run along the fourth."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from tests.export.cpu_layout.test_lift import lifted, shapes_of
from tests.export.fold.graphs import graph, operators, same_function, same_in_onnxruntime, weights

TALL = {"w": weights(4, 1, 7, 1), "z": weights(3, 4, 3, 1), "a": weights(4, 4, 1, 6)}


def kernels(model: onnx.ModelProto) -> list[tuple[int, ...]]:
    held = {t.name: tuple(t.dims) for t in model.graph.initializer}
    return [held[n.input[1]][2:] for n in model.graph.node if n.op_type == "Conv"]


def test_a_network_of_width_1_changes_form_without_moving_a_number() -> None:
    text = """(float[N, 1, L, 1] x) => (float[N, 3, M, 1] y) {
      u = Conv<strides = [2, 1], pads = [3, 0, 2, 0]>(x, w) r = Relu(u)
      p = MaxPool<kernel_shape = [2, 1], strides = [2, 1]>(r) y = Conv<dilations = [2, 1]>(p, z) }"""
    before = graph(text, **TALL)
    after = lifted(before)
    assert kernels(after) == [(1, 7), (1, 3)]
    assert "Transpose" not in operators(after)
    assert shapes_of(after.graph.output) == shapes_of(before.graph.output)
    same_in_onnxruntime(before, after, (1, 1, 40, 1), (2, 1, 53, 1))


def test_a_wider_picture_is_transposed_at_the_edges_alone() -> None:
    text = """(float[N, 1, L, 6] x) => (float[N, 3, M, 1] y) {
      u = Conv(x, w) v = Conv(u, a) r = Elu(v) m = Mul(r, s) y = Conv(m, z) }"""
    before = graph(text, **TALL, s=weights(4, 1, 1))
    after = lifted(before)
    assert kernels(after) == [(1, 7), (6, 1), (1, 3)]
    assert operators(after).count("Transpose") == 1
    same_function(before, after, (1, 1, 30, 6), (2, 1, 41, 6))


@pytest.mark.parametrize(
    "nodes",
    [
        "v = Softmax<axis = 2>(u)",
        "v = Pad(u, pads)",
        "m = ReduceMean<axes = [2, 3]>(u) v = Mul(u, m)",
        "v = Concat<axis = -2>(u, u)",
        "v = Slice(u, one, last, two)",
        "v = Add(u, row)",
        "v = AveragePool<kernel_shape = [3, 2], pads = [1, 1, 0, 0], count_include_pad = 1>(u)",
    ],
)
def test_the_axes_of_what_goes_along_change_places(nodes: str) -> None:
    constants = {
        "pads": np.array([0, 0, 2, 0, 0, 0, 1, 3]),
        "one": np.array([1]),
        "last": np.array([-1]),
        "two": np.array([2]),
        "row": weights(6),
    }
    named = {k: v for k, v in constants.items() if any(f" {k}{e}" in nodes for e in ",)")}
    text = f"(float[N, 1, L, 6] x) => (float[N, 3, M, K] y) {{ u = Conv(x, w) {nodes} y = Conv(v, z) }}"
    before = graph(text, w=TALL["w"], z=TALL["z"], **named)
    after = lifted(before)
    assert kernels(after) == [(1, 7), (1, 3)]
    assert operators(after).count("Transpose") == 2
    same_function(before, after, (1, 1, 30, 6), (2, 1, 41, 6))


def test_a_layer_norm_over_the_width_stays() -> None:
    text = """(float[N, 1, L, 6] x) => (float[N, 3, M, 6] y) {
      u = Conv(x, w) v = LayerNormalization<axis = -1>(u, s, s) y = Conv(v, z) }"""
    before = graph(text, w=TALL["w"], z=TALL["z"], s=weights(6))
    after = lifted(before)
    assert kernels(after) == [(1, 7), (1, 3)]
    assert operators(after).count("Transpose") == 4
    same_function(before, after, (1, 1, 30, 6))
