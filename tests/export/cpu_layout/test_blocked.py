"""Operators that would leave onnxruntime's blocked layout are replaced by equal ones that keep it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from tests.export.cpu_layout.test_lift import lifted, shapes_of
from tests.export.fold.graphs import graph, onnxruntime, operators, same_function, weights

from normfold.export.cpu_layout import lift

C = 16
W = {"w": weights(C, C, 3), "b": weights(C)}
TEXT = "(float[N, 16, L] x) => (float[N, 16, M] y) {{ u = Conv(x, w, b) {nodes} y = Conv(v, w) }}"
SHAPES = ((1, C, 40), (2, C, 57))
SLOPES = {
    "below one": np.linspace(0.05, 1, C, dtype=np.float32).reshape(C, 1),
    "above one": np.linspace(1, 3, C, dtype=np.float32).reshape(C, 1),
    "on both sides of one": np.linspace(0.5, 2, C, dtype=np.float32).reshape(C, 1),
    "zero among them": np.linspace(0, 1, C, dtype=np.float32).reshape(C, 1),
    "negative among them": np.linspace(-0.5, 0.5, C, dtype=np.float32).reshape(C, 1),
}


def prelu(slope: Any) -> onnx.ModelProto:
    return graph(TEXT.format(nodes="v = PRelu(u, a)"), a=slope, **W)


def optimised(model: onnx.ModelProto) -> list[str]:
    """Return the operators that onnxruntime runs, those of the blocked layout marked."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder, "optimised.onnx"))
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        nodes = onnx.load(options.optimized_model_filepath).graph.node
    return [("blocked " if n.domain == "com.microsoft.nchwc" else "") + n.op_type for n in nodes]


@pytest.mark.parametrize("slope", [np.float32([0.25]), np.full((C, 1), -0.5, np.float32), np.float32(0)], ids=str)
def test_a_prelu_of_one_slope_is_a_leaky_relu(slope: Any) -> None:
    before = prelu(slope)
    after = lifted(before)
    assert operators(after) == ["Conv", "Conv", "LeakyRelu", "Squeeze", "Unsqueeze"]
    same_function(before, after, *SHAPES)


@pytest.mark.parametrize(("slopes", "operator"), [("below one", "Max"), ("above one", "Min")])
def test_a_prelu_of_slopes_on_one_side_of_one_is_an_extreme(slopes: str, operator: str) -> None:
    before = prelu(SLOPES[slopes])
    after = lifted(before)
    assert operators(after) == sorted(["Conv", "Conv", "Mul", operator, "Squeeze", "Unsqueeze"])
    same_function(before, after, *SHAPES)
    x = np.float32([np.inf, -np.inf, np.nan, -0.0] * 10).reshape(1, 1, 40).repeat(C, 1)
    with np.errstate(invalid="ignore"):
        assert np.array_equal(*(onnxruntime(m, {"x": x})[0] for m in (before, after)), equal_nan=True)


@pytest.mark.parametrize("slopes", ["on both sides of one", "zero among them", "negative among them"])
def test_a_prelu_of_other_slopes_stays(slopes: str) -> None:
    before = prelu(SLOPES[slopes])
    after = lifted(before)
    assert "PRelu" in operators(after)
    same_function(before, after, *SHAPES)


def test_a_prelu_of_a_computed_slope_stays() -> None:
    text = "(float[N, 16, L] x, float[16, 1] a) => (float[N, 16, M] y) { u = Conv(x, w, b) y = PRelu(u, a) }"
    before = graph(text, **W)
    assert "PRelu" in operators(lifted(before))


ONE = {"scalar": np.float32(1), "one entry": np.ones(1, np.float32)}


@pytest.mark.parametrize("one", ONE.values(), ids=ONE)
def test_a_product_with_one_goes(one: Any) -> None:
    before = graph(TEXT.format(nodes="e = Mul(u, one) f = Elu(e) v = Mul(one, f)"), one=one, **W)
    after = lifted(before)
    assert operators(after) == ["Conv", "Conv", "Elu", "Squeeze", "Unsqueeze"]
    same_function(before, after, *SHAPES)


def test_a_product_with_another_number_or_a_row_of_ones_stays() -> None:
    nodes = "e = Mul(u, near) v = Mul(e, row)"
    ones = np.ones((C, 1), np.float32)
    before = graph(TEXT.format(nodes=nodes), near=np.float32(1 + 2**-23), row=ones, **W)
    assert operators(lifted(before)).count("Mul") == 2


def test_a_product_with_one_that_is_the_output_or_adds_an_axis_stays() -> None:
    text = """(float[N, 16, 8, L] x) => (float[N, 16, 6, M] y, float[1, N, 16, 6, M] z)
    { u = Conv(x, w) y = Mul(u, o) p = Neg(u) q = Mul(p, five) z = Abs(q) }"""
    model = ir.from_proto(
        graph(text, o=np.float32(1), five=np.ones((1, 1, 1, 1, 1), np.float32), w=weights(C, C, 3, 3))
    )
    assert not lift(model)


BIAS = "k = Shape(w) n = Slice(k, zero, one) z = Expand({value}, n) y = Conv(x, w, z)"


@pytest.mark.parametrize(("value", "inputs"), [(0.0, 2), (0.5, 3)])
def test_a_bias_that_is_computed_of_constants_is_held_and_none_where_it_is_zero(value: float, inputs: int) -> None:
    text = "(float[N, 16, L] x) => (float[N, 16, M] y) {" + BIAS.format(value="v") + "}"
    before = graph(text, w=W["w"], v=np.float32(value), zero=np.array([0]), one=np.array([1]))
    after = lifted(before)
    assert operators(after) == ["Conv", "Squeeze", "Unsqueeze"]
    (convolution,) = (n for n in after.graph.node if n.op_type == "Conv")
    assert len([i for i in convolution.input if i]) == inputs
    same_function(before, after, *SHAPES)


def test_a_bias_that_the_network_computes_stays() -> None:
    text = """(float[N, 16, L] x) => (float[N, 16, M] y)
    { m = ReduceMean<axes = [0, 2], keepdims = 0>(x) y = Conv(x, w, m) }"""
    before = graph(text, w=W["w"])
    after = lifted(before)
    assert "ReduceMean" in operators(after)
    same_function(before, after, *SHAPES)


@pytest.mark.parametrize(
    ("nodes", "kept"),
    [
        ("y = ReduceMax<axes = [2], keepdims = 0>(u)", "float[N, 16] y"),
        ("r = Relu(u) y = ReduceMax<axes = [-1]>(r)", "float[N, 16, 1] y"),
    ],
)
def test_the_maximum_of_what_a_convolution_gives_is_a_global_pool(nodes: str, kept: str) -> None:
    before = graph(f"(float[N, 16, L] x) => ({kept}) {{ u = Conv(x, w, b) {nodes} }}", **W)
    after = lifted(before)
    assert "GlobalMaxPool" in operators(after)
    assert "ReduceMax" not in operators(after)
    assert shapes_of(after.graph.output) == shapes_of(before.graph.output)
    same_function(before, after, *SHAPES)


@pytest.mark.parametrize(
    "nodes",
    [
        "e = Elu(u) y = ReduceMax<axes = [2]>(e)",  # not blocked
        "y = ReduceMax<axes = [1, 2]>(u)",
        "y = ReduceMean<axes = [2]>(u)",
    ],
)
def test_another_reduction_stays(nodes: str) -> None:
    last = 1 if "[1, 2]" in nodes else C
    before = graph(f"(float[N, 16, L] x) => (float[N, {last}, 1] y) {{ u = Conv(x, w, b) {nodes} }}", **W)
    after = lifted(before)
    assert {"GlobalMaxPool", "GlobalAveragePool"}.isdisjoint(operators(after))
    same_function(before, after, *SHAPES)


def test_onnxruntime_keeps_a_separable_network_with_prelus_in_its_blocked_layout() -> None:
    """The aim: one change of layout at the beginning and one at the end."""
    text = """(float[N, 16, L] x) => (float[N, 16] y) {
      k = Shape(d) n = Slice(k, zero, one) z = Expand(nothing, n)
      u = Conv(x, p, b) r = PRelu(u, a) v = Conv<group = 16, dilations = [4], pads = [4, 4]>(r, d, z)
      s = PRelu(v, a) t = Conv(s, p, b) y = ReduceMax<axes = [2], keepdims = 0>(t) }"""
    held = {"p": weights(C, C, 1), "d": weights(C, 1, 3), "b": W["b"], "a": np.float32([0.25])}
    before = graph(text, nothing=np.float32(0), zero=np.array([0]), one=np.array([1]), **held)
    after = lifted(before)
    found = optimised(after)
    assert [o for o in found if "Squeeze" not in o and "Unsqueeze" not in o] == [
        "blocked ReorderInput",
        "blocked Conv",
        "blocked Conv",
        "blocked Conv",
        "blocked GlobalMaxPool",
        "blocked ReorderOutput",
    ]
    same_function(before, after, *SHAPES)


def test_a_picture_that_no_form_turns_is_written_so_too() -> None:
    text = "(float[N, 16, 8, L] x) => (float[N, 16, 6, M] y) { u = Conv(x, w) y = PRelu(u, a) }"
    model = ir.from_proto(graph(text, w=weights(C, C, 3, 3), a=np.float32([0.1])))
    assert lift(model)
    assert operators(ir.to_proto(model)) == ["Conv", "LeakyRelu"]
