"""A convolution along W and a depthwise one along H are exchanged where that is less work."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from tests.export.cpu_layout.test_lift import lifted
from tests.export.fold.graphs import graph, operators, same_in_onnxruntime, weights

HELD = {
    "u": weights(3, 1, 1, 7),
    "b": weights(3),
    "v": weights(6, 1, 10, 1),
    "c": weights(6),
    "low": weights(6, 1, 2, 1),
    "square": weights(3, 1, 3, 7),
    "pair": weights(3, 2, 1, 7),
    "wide": weights(6, 1, 10, 3),
    "few": weights(6, 3, 10, 1),
}
EEGNET = "m = Conv<pads = [0, 3, 0, 3]>(x, u, b) y = Conv<group = 3>(m, v, c)"
SHAPES = ((1, 1, 10, 40), (2, 1, 10, 57))


def network(nodes: str, more: str = "", channels: int = 1) -> onnx.ModelProto:
    text = f"(float[N, {channels}, 10, L] x) => (float[N, 6, H, M] y{more}) {{ {nodes} }}"
    words = text.replace(",", " ").replace(")", " ").replace("(", " ").split()
    return graph(text, **{k: v for k, v in HELD.items() if k in words})


def shapes(model: onnx.ModelProto) -> list[tuple[int, ...]]:
    held = {t.name: tuple(t.dims) for t in model.graph.initializer}
    return [held[n.input[1]] for n in model.graph.node if n.op_type == "Conv"]


EXCHANGED = {
    "as EEGNet has them": EEGNET,
    "without biases": "m = Conv<pads = [0, 3, 0, 3]>(x, u) y = Conv<group = 3>(m, v)",
    "one bias": "m = Conv<pads = [0, 2, 0, 0]>(x, u, b) y = Conv<group = 3>(m, v)",
    "strided and dilated": "m = Conv<strides = [1, 2], dilations = [1, 3]>(x, u, b) y = Conv<group = 3>(m, v, c)",
    "same": "m = Conv<pads = [0, 3, 0, 3]>(x, u, b) y = Conv<group = 3, strides = [2, 1]>(m, v, c)",
}


@pytest.mark.parametrize("nodes", EXCHANGED.values(), ids=EXCHANGED)
def test_the_axis_that_leaves_fewer_rows_is_read_first(nodes: str) -> None:
    before = network(nodes)
    after = lifted(before)
    assert shapes(after) == [(6, 1, 10, 1), (6, 1, 1, 7)]
    same_in_onnxruntime(before, after, *SHAPES)


STAY: dict[str, Any] = {
    "rows that stay as many": ("m = Conv<pads = [0, 3, 0, 3]>(x, u, b) y = Conv<group = 3>(m, low, c)", 1),
    "a function between": ("k = Conv(x, u, b) m = Relu(k) y = Conv<group = 3>(m, v, c)", 1),
    "rows that are padded": ("m = Conv(x, u, b) y = Conv<group = 3, pads = [1, 0, 1, 0]>(m, v, c)", 1),
    "a kernel of both axes before": ("m = Conv(x, square, b) y = Conv<group = 3>(m, low, c)", 1),
    "a kernel of both axes behind": ("m = Conv(x, u, b) y = Conv<group = 3>(m, wide, c)", 1),
    "channels that are mixed": ("m = Conv(x, u, b) y = Conv(m, few, c)", 1),
    "two channels": ("m = Conv(x, pair, b) y = Conv<group = 3>(m, v, c)", 2),
}


@pytest.mark.parametrize(("nodes", "channels"), STAY.values(), ids=STAY)
def test_other_convolutions_stay_in_their_order(nodes: str, channels: int) -> None:
    before = network(nodes, channels=channels)
    after = lifted(before)
    assert [s[0] for s in shapes(after)] == [s[0] for s in shapes(before)]
    same_in_onnxruntime(before, after, *((n, channels, *rest) for n, _, *rest in SHAPES))


def test_what_another_node_reads_between_them_stays() -> None:
    before = network(EEGNET, ", float[N, 3, 10, K] m")
    assert shapes(lifted(before)) == shapes(before)
    assert operators(lifted(before)) == ["Conv", "Conv"]


def test_a_bias_that_the_network_computes_stays() -> None:
    nodes = "t = ReduceMean<axes = [0, 1, 2], keepdims = 0>(x) k = Slice(t, zero, three) m = Conv(x, u, k)"
    before = network(nodes + " y = Conv<group = 3>(m, v, c)")
    before.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.array([n]), k) for k, n in (("zero", 0), ("three", 3))
    )
    assert shapes(lifted(before)) == shapes(before)
