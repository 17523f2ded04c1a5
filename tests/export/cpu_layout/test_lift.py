"""Tensors with one running axis get an axis of height 1: the same function, the same inputs and outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tests.export.fold.graphs import graph, operators, same_function, same_in_onnxruntime, weights

from normfold.export.cpu_layout import lift

W = {"w": weights(4, 3, 5), "b": weights(4)}
#: A convolution, an operator that can be lifted with it, a convolution; the values have 4 channels.
BETWEEN = "(float[N, 3, L] x) => (float[N, 2, M] y) {{ u = Conv(x, w, b) {nodes} y = Conv(v, z) }}"
Z = {**W, "z": weights(2, 4, 3)}
SHAPES = ((1, 3, 40), (2, 3, 57))


def lifted(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = ir.from_proto(onnx.ModelProto.FromString(model.SerializeToString()))
    lift(copy)
    after = ir.to_proto(copy)
    onnx.checker.check_model(after, full_check=True)
    return after


def shapes_of(values: Any) -> list[Any]:
    return [(v.name, [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]) for v in values]


def rank3_convolutions(model: onnx.ModelProto) -> int:
    held = {t.name: len(t.dims) for t in model.graph.initializer}
    return sum(n.op_type in ("Conv", "ConvTranspose") and held[n.input[1]] == 3 for n in model.graph.node)


ALONG = {
    "Relu": "v = Relu(u)",
    "LeakyRelu": "v = LeakyRelu<alpha = 0.2>(u)",
    "Clip": "v = Clip(u, zero, six)",
    "PRelu by channel": "v = PRelu(u, slope)",
    "Add of two": "r = Sigmoid(u) v = Add(u, r)",
    "Mul by channel": "v = Mul(u, slope)",
    "Sub from a scalar": "v = Sub(one, u)",
    "Add along the length": "s = Slice(u, begin, ten, two) v = Add(s, row)",
    "Div by an array of one entry": "v = Div(u, one3)",
    "Where": "k = Greater(u, zero) v = Where(k, u, zero)",
    "MaxPool": "v = MaxPool<kernel_shape = [3], strides = [2], pads = [1, 0], ceil_mode = 1>(u)",
    "MaxPool, dilated": "v = MaxPool<kernel_shape = [3], dilations = [2]>(u)",
    "AveragePool": "v = AveragePool<kernel_shape = [4], pads = [2, 1], count_include_pad = 1>(u)",
    "AveragePool, padding not counted": "v = AveragePool<kernel_shape = [4], strides = [3], pads = [2, 1]>(u)",
    "AveragePool, same": 'v = AveragePool<kernel_shape = [3], strides = [2], auto_pad = "SAME_UPPER">(u)',
    "ConvTranspose": "v = ConvTranspose<strides = [3], pads = [1, 2], output_padding = [1]>(u, t)",
    "Conv, depthwise and dilated": "v = Conv<group = 4, dilations = [3], pads = [3, 3]>(u, d)",
    "Conv, same": 'v = Conv<group = 4, strides = [2], auto_pad = "SAME_LOWER">(u, d)',
    "InstanceNormalization": "v = InstanceNormalization(u, four, four)",
    "BatchNormalization": "v = BatchNormalization(u, four, four, four, positive)",
    "Concat of channels": "a = Slice(u, begin, two, first) r = Slice(u, two, end, first) v = Concat<axis = 1>(r, a)",
    "Concat along the length, from behind": "v = Concat<axis = -1>(u, u)",
    "Concat with a constant": "c = Slice(u, begin, first, last) v = Concat<axis = -1>(c, edge)",
    "Split": "a, r = Split<axis = 1>(u) v = Concat<axis = 1>(r, a)",
    "Slice from behind, backwards": "v = Slice(u, last, nothing, last, last)",
    "Slice without axes": "v = Slice(u, begins, ends)",
    "Pad": "v = Pad(u, pads)",
    "Pad, reflected": 'v = Pad<mode = "reflect">(u, pads)',
    "Pad by a value": "v = Pad(u, pads, one)",
    "ReduceMean, kept": "m = ReduceMean<axes = [2]>(u) v = Sub(u, m)",
    "ReduceMax of channels": "m = ReduceMax<axes = [-2]>(u) v = Sub(u, m)",
    "Softmax of channels": "v = Softmax<axis = 1>(u)",
    "Resize by scales": 'v = Resize<mode = "linear">(u, , scales)',
    "Resize, nearest": (
        'v = Resize<mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor">'
        "(u, , scales)"
    ),
}
CONSTANTS: dict[str, Any] = {
    "zero": np.float32(0),
    "six": np.float32(0.5),
    "one": np.float32(1),
    "one3": np.full((1, 1, 1), 3, np.float32),
    "slope": np.linspace(0.1, 0.9, 4, dtype=np.float32).reshape(4, 1),
    "row": weights(9),
    "edge": weights(1, 4, 3),
    "four": np.linspace(-1, 2, 4, dtype=np.float32),
    "positive": np.linspace(0.5, 2, 4, dtype=np.float32),
    "t": weights(4, 4, 4),
    "d": weights(4, 1, 3),
    "begin": np.array([0]),
    "first": np.array([1]),
    "two": np.array([2]),
    "three": np.array([3]),
    "ten": np.array([9]),
    "last": np.array([-1]),
    "nothing": np.array([-1000]),
    "end": np.array([1000]),
    "begins": np.array([0, 0, 2]),
    "ends": np.array([1000, 4, -1]),
    "pads": np.array([0, 0, 2, 0, 0, 1]),
    "scales": np.array([1, 1, 2], np.float32),
}


def between(nodes: str) -> onnx.ModelProto:
    """Return x -> convolution -> nodes -> convolution, with those of the constants that the nodes name."""
    named = {
        k: v for k, v in CONSTANTS.items() if k in nodes.replace(",", " ").replace(")", " ").replace("(", " ").split()
    }
    return graph(BETWEEN.format(nodes=nodes), **Z, **named)


@pytest.mark.parametrize("nodes", ALONG.values(), ids=ALONG)
def test_an_operator_between_two_convolutions_goes_along(nodes: str) -> None:
    before = between(nodes)
    # Without padding the constant row fits one length only.
    shapes = SHAPES
    if "edge" in nodes:
        shapes = ((1, 3, 40),)
    after = lifted(before)
    assert rank3_convolutions(after) == 0
    found = operators(after)
    assert (found.count("Unsqueeze"), found.count("Squeeze")) == (1, 1), found
    assert shapes_of(after.graph.input) == shapes_of(before.graph.input)
    assert shapes_of(after.graph.output) == shapes_of(before.graph.output)
    if "Resize" in nodes:
        same_in_onnxruntime(before, after, *shapes)
    else:
        same_function(before, after, *shapes)


STAY = {
    "a transpose": "t1 = Transpose<perm = [0, 2, 1]>(u) t2 = Relu(t1) v = Transpose<perm = [0, 2, 1]>(t2)",
    "a reshape": "t1 = Reshape(u, shape) t2 = Neg(t1) v = Reshape(t2, back)",
    "a computed row": "m = ReduceMean<axes = [0, 1], keepdims = 0>(u) v = Add(u, m)",
    "an Expand": "v = Expand(u, back3)",
}
SHAPES_OF_RESHAPE = {"shape": np.array([0, 2, -1]), "back": np.array([0, 4, -1]), "back3": np.array([1, 1, 1])}


@pytest.mark.parametrize("nodes", STAY.values(), ids=STAY)
def test_what_has_no_rule_reads_values_as_they_were(nodes: str) -> None:
    named = {k: v for k, v in SHAPES_OF_RESHAPE.items() if f" {k})" in nodes}
    before = graph(BETWEEN.format(nodes=nodes), **Z, **named)
    after = lifted(before)
    assert rank3_convolutions(after) == 0
    # One before the operator that stays, and one at the end; a Reshape replaces the first.
    assert operators(after).count("Squeeze") == 2 - ("Reshape" in nodes)
    kept = [n.op_type for n in before.graph.node if n.op_type in ("Transpose", "Reshape", "Expand")]
    assert sorted(kept) == [o for o in operators(after) if o in kept]
    same_function(before, after, *SHAPES)


def test_a_mean_that_drops_the_length_needs_no_squeeze() -> None:
    text = "(float[N, 3, L] x) => (float[N, 4] y) { u = Conv(x, w, b) y = ReduceMean<axes = [-1], keepdims = 0>(u) }"
    before = graph(text, **W)
    after = lifted(before)
    assert operators(after) == ["Conv", "ReduceMean", "Unsqueeze"]
    same_function(before, after, *SHAPES)


def test_a_mean_that_drops_the_channels_stays() -> None:
    text = "(float[N, 3, L] x) => (float[N, M] y) { u = Conv(x, w, b) y = ReduceMean<axes = [1], keepdims = 0>(u) }"
    before = graph(text, **W)
    after = lifted(before)
    assert operators(after) == ["Conv", "ReduceMean", "Squeeze", "Unsqueeze"]
    same_function(before, after, *SHAPES)


def test_a_value_read_inside_and_outside_is_squeezed_once() -> None:
    text = """(float[N, 3, L] x) => (float[N, 4, M] y, float[N, M, 4] t, float[N, 4, M] u)
    { u = Conv(x, w, b) y = Relu(u) t = Transpose<perm = [0, 2, 1]>(u) }"""
    before = graph(text, **W)
    after = lifted(before)
    assert operators(after) == ["Conv", "Relu", "Squeeze", "Squeeze", "Transpose", "Unsqueeze"]
    same_function(before, after, *SHAPES)


def test_a_weight_of_two_convolutions_is_written_once() -> None:
    text = "(float[N, 3, L] x) => (float[N, 4, M] y) { u = Conv(x, w, b) v = Conv(x, w) y = Add(u, v) }"
    before = graph(text, **W)
    after = lifted(before)
    assert sorted(len(t.dims) for t in after.graph.initializer) == [1, 1, 4]  # b, the axes, w
    same_function(before, after, *SHAPES)


UNTOUCHED = {
    "no convolution": ("(float[N, 4, L] x) => (float[N, 4, L] y) { y = Relu(x) }", {}),
    "a computed weight": (
        "(float[N, 3, L] x, float[4, 3, 5] w) => (float[N, 4, M] y) { y = Conv(x, w) }",
        {},
    ),
    "four axes, no taller than wide": (
        "(float[N, 3, 12, L] x) => (float[N, 4, 12, M] y) { y = Conv(x, w) }",
        {"w": weights(4, 3, 1, 5)},
    ),
    "volumes": (
        "(float[N, 3, 4, 4, L] x) => (float[N, 4, 4, 4, M] y) { y = Conv(x, w) }",
        {"w": weights(4, 3, 1, 1, 5)},
    ),
    "a recurrent network": (
        "(float[T, N, 3] x) => (float[T, 1, N, 4] y) { y = GRU<hidden_size = 4>(x, w, r) }",
        {"w": weights(1, 12, 3), "r": weights(1, 12, 4)},
    ),
    "the places of maxima": (
        "(float[N, 3, L] x) => (float[N, 3, M] y, int64[N, 3, M] i) { y, i = MaxPool<kernel_shape = [3]>(x) }",
        {},
    ),
}


@pytest.mark.parametrize("name", UNTOUCHED)
def test_a_graph_that_gains_nothing_stays_as_it_is(name: str) -> None:
    text, constants = UNTOUCHED[name]
    model = ir.from_proto(graph(text, **constants))
    before = ir.to_proto(model)
    assert not lift(model)
    assert operators(ir.to_proto(model)) == operators(before)


def test_what_a_loop_or_a_branch_reads_of_the_network_keeps_its_form() -> None:
    text = """(float[N, 3, L] x, bool c) => (float[N, 4, M] y)
    { u = Conv(x, w, b)
      y = If (c) <then_branch = yes () => (float[N, 4, M] p) { p = Relu(u) },
                  else_branch = no () => (float[N, 4, M] q) { q = Neg(u) }> }"""
    before = graph(text, **W)
    after = lifted(before)
    assert rank3_convolutions(after) == 0
    assert operators(after) == ["Conv", "If", "Squeeze", "Unsqueeze"]
    same_function(before, after, *SHAPES)


def test_the_opset_decides_how_axes_are_given() -> None:
    before = graph("(float[N, 3, L] x) => (float[N, 4, M] y) { y = Conv(x, w, b) }", opset=11, **W)
    after = lifted(before)
    assert [len(n.input) for n in after.graph.node] == [1, 3, 1]
    same_function(before, after, *SHAPES)


def test_the_same_graph_gives_the_same_bytes() -> None:
    first, second = (lifted(between(ALONG["Add of two"])).SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


def test_names_that_are_taken_stay_whose_they_are() -> None:
    text = "(float[N, 3, L] x) => (float[N, 4, M] y_lifted, float[N, 4, M] y) { y = Conv(x, w) y_lifted = Neg(y) }"
    before = graph(text, **W)
    after = lifted(before)
    assert [o.name for o in after.graph.output] == ["y_lifted", "y"]
    same_function(before, after, *SHAPES)


def test_pads_alone_tell_the_rank_of_a_window() -> None:
    before = graph("(float[N, 3, L] x) => (float[N, 4, M] y) { y = Conv<pads = [2, 1]>(x, w, b) }", **W)
    after = lifted(before)
    assert rank3_convolutions(after) == 0
    same_function(before, after, *SHAPES)
