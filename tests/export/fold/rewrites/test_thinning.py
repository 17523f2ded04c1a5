"""Bounds by channel stand behind the max-pool that reads them, where it leaves fewer entries to bound."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tests.export.fold.graphs import Array, folded, folds_to, graph, norm, same_function, same_in_onnxruntime, weights

from normfold.export.fold import fold

LENGTHS = ((2, 3, 12), (3, 3, 23))
CLAMPS = {"lo": np.array([[[-0.5], [0.2], [0.0], [0.1]]], np.float32), "hi": np.array([[[0.6]]], np.float32)}


def order(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def clamped(pool: str, clamp: str = "r = Max(c, lo)", behind: str = "y = Conv(p, v)", **arrays: Array) -> list[str]:
    text = f"(float[N,3,L] x) => (float[N,4,M] y) {{ c = Conv(x, w) {clamp} p = {pool} {behind} }}"
    model = graph(text, w=weights(4, 3, 3), v=weights(4, 4, 1), **(CLAMPS | arrays))
    after, _ = folded(model)
    same_function(model, after, *LENGTHS)
    assert order(folded(after)[0]) == order(after)
    return order(after)


@pytest.mark.parametrize("pads", ["", ",pads=[1,1]", ',auto_pad="SAME_UPPER"'])
def test_a_max_goes_behind_the_pool_that_thins_it_out(pads: str) -> None:
    assert clamped(f"MaxPool<kernel_shape=[3],strides=[2]{pads}>(r)") == ["Conv", "MaxPool", "Max", "Conv"]


def test_a_max_and_a_min_go_behind_it_in_their_order() -> None:
    nodes = clamped("MaxPool<kernel_shape=[2],strides=[2]>(r)", "q = Max(c, lo) r = Min(q, hi)")
    assert nodes == ["Conv", "MaxPool", "Max", "Min", "Conv"]


@pytest.mark.parametrize(
    ("pool", "clamp", "behind"),
    [
        pytest.param("MaxPool<kernel_shape=[2]>(r)", "r = Max(c, lo)", "y = Conv(p, v)", id="as many entries"),
        pytest.param("AveragePool<kernel_shape=[2],strides=[2]>(r)", "r = Max(c, lo)", "y = Conv(p, v)", id="mean"),
        pytest.param(
            "MaxPool<kernel_shape=[2],strides=[2]>(r)", "r = Relu(c)", "y = Conv(p, v)", id="within the convolution"
        ),
        pytest.param(
            "MaxPool<kernel_shape=[2],strides=[2],ceil_mode=1>(r)", "r = Max(c, lo)", "y = Conv(p, v)", id="ceil_mode"
        ),
        pytest.param(
            "MaxPool<kernel_shape=[2],strides=[2],dilations=[2]>(r)", "r = Max(c, lo)", "y = Conv(p, v)", id="dilated"
        ),
        pytest.param(
            "MaxPool<kernel_shape=[2],strides=[2]>(r)",
            "r = Max(c, lo)",
            "e = ReduceMean<axes=[2]>(r) y = Add(p, e)",
            id="read elsewhere too",
        ),
        pytest.param("MaxPool<kernel_shape=[2],strides=[2]>(r)", "r = Max(c, c)", "y = Conv(p, v)", id="computed"),
    ],
)
def test_it_stays_before_a_pool_where(pool: str, clamp: str, behind: str) -> None:
    nodes = clamped(pool, clamp, behind)
    assert nodes.index(clamp.split()[2].split("(")[0]) < nodes.index(pool.split("<")[0])


@pytest.mark.parametrize(
    ("text", "opset", "nodes"),
    [
        ("p = GlobalMaxPool(f) y = Conv(p, v)", 17, ["GlobalMaxPool", "Max", "Min", "Conv"]),
        ("p = ReduceMax<axes=[-1]>(f) y = Conv(p, v)", 13, ["ReduceMax", "Max", "Min", "Conv"]),
        ("p = ReduceMax<axes=[2],keepdims=0>(f) y = Gemm(p, g)", 17, ["ReduceMax", "Max", "Min", "Gemm"]),
        ("p = ReduceMax<keepdims=0>(f, last) y = Gemm(p, g)", 18, ["ReduceMax", "Max", "Min", "Gemm"]),
        (
            # nn.AdaptiveMaxPool1d(1) as torch exports it
            "u = Unsqueeze(f, two) q = ReduceMax(u, lasts) p = Squeeze(q, two) y = Conv(p, v)",
            18,
            ["Unsqueeze", "ReduceMax", "Max", "Min", "Squeeze", "Conv"],
        ),
        (
            "u = Unsqueeze<axes=[3]>(f) p = ReduceMax<axes=[2,3],keepdims=0>(u) y = Gemm(p, g)",
            11,
            ["Unsqueeze", "ReduceMax", "Max", "Min", "Gemm"],
        ),
    ],
)
def test_a_relu_and_batchnorm_before_a_maximum_over_positions_become_bounds_behind_it(
    text: str, opset: int, nodes: list[str]
) -> None:
    """Convolution, ReLU, BatchNorm, maximum over time: gamma of both signs, which no max-pool lets through."""
    model = graph(
        f"(float[N,3,L] x) => (float{[*'NM'] if 'g)' in text else '[N,M,1]'} y) {{ c = Conv(x, w) e = Relu(c) "
        f"f = BN(e, n) {text} }}".replace("'", ""),
        opset,
        w=weights(5, 3, 3),
        v=weights(4, 5, 1),
        g=weights(5, 4),
        two=np.array([2]),
        last=np.array([-1]),
        lasts=np.array([-2, -1]),
        **norm("n", 5),
    )
    after, report = folded(model)
    assert report.batchnorms_after == report.affines_after == 0
    assert order(after) == ["Conv", *nodes]
    same_function(model, after, *LENGTHS)
    read = {name for node in after.graph.node for name in node.input}
    given = {tensor.name for tensor in after.graph.initializer}
    assert not {name for name in given - read if name not in {t.name for t in model.graph.initializer}}


def test_the_moved_bound_takes_the_name_of_no_other_value() -> None:
    behind = "lo_by_channel = Relu(c) m = ReduceMax<axes=[2],keepdims=0>(lo_by_channel) q = Add(p, m) y = Gemm(q, g)"
    text = "(float[N,3,L] x) => (float[N,4] y) { c = Conv(x, w) r = Max(c, lo) p = ReduceMax<axes=[2],keepdims=0>(r) "
    model = graph(f"{text}{behind} }}", opset=17, w=weights(4, 3, 3), g=weights(4, 4), lo=CLAMPS["lo"])
    after, _ = folded(model)
    assert order(after).index("ReduceMax") < order(after).index("Max")
    same_function(model, after, *LENGTHS)


def test_it_stays_before_a_maximum_over_channels() -> None:
    nodes = clamped("ReduceMax<axes=[1]>(r)", behind="y = Mul(p, four)", four=weights(1, 4, 1))
    assert nodes.index("Max") < nodes.index("ReduceMax")


def test_it_stays_before_a_pool_that_is_an_output() -> None:
    text = """(float[N,3,L] x) => (float[N,4,M] y) {
        c = Conv(x, w) r = Max(c, lo) y = MaxPool<kernel_shape=[2],strides=[2]>(r) }"""
    model = graph(text, w=weights(4, 3, 3), lo=CLAMPS["lo"])
    after, _ = folded(model)
    assert order(after) == ["Conv", "Max", "MaxPool"]
    same_function(model, after, *LENGTHS)


def test_a_bound_by_position_stays_before_the_pool() -> None:
    text = """(float[N,3,12] x) => (float[N,4,5] y) {
        c = Conv(x, w) r = Max(c, ramp) p = MaxPool<kernel_shape=[2],strides=[2]>(r) y = Conv(p, v) }"""
    model = graph(
        text, w=weights(4, 3, 3), v=weights(4, 4, 1), ramp=np.linspace(-1, 1, 10, dtype="f").reshape(1, 1, 10)
    )
    after, _ = folded(model)
    assert order(after) == ["Conv", "Max", "MaxPool", "Conv"]
    same_function(model, after, (2, 3, 12))


def test_a_batchnorm_between_2d_convolutions_in_blocks_becomes_bounds_where_a_pool_thins_them_out() -> None:
    # torchcrepe's layer: one channel more would break the blocks, and a Max before the pool would leave them in full.
    text = """(float[N,3,L,1] x) => (float[N,8,M,1] y) { c = Conv(x, w)  e = Relu(c)  f = BN(e, n)
        p = MaxPool<kernel_shape=[2,1],strides=[2,1]>(f)  y = Conv<pads=[1,0,1,0]>(p, v) }"""
    model = graph(text, w=weights(8, 3, 3, 1), v=weights(8, 8, 3, 1), **norm("n", 8, gamma="positive"))
    after, _ = folds_to(model, "Conv MaxPool Max Conv", (2, 3, 16, 1), (1, 3, 27, 1))
    assert order(after) == ["Conv", "MaxPool", "Max", "Conv"]


@pytest.mark.parametrize("fold_all", [False, True])
def test_it_stays_before_a_pool_whose_indices_are_read(fold_all: bool) -> None:
    # SegNet: behind the pool, the largest entry of a window could be one that the bound would have raised to another's.
    text = """(float[N,3,L,1] x) => (float[N,4,M,1] y) { c = Conv(x, w, b)  r = Relu(c)  n = BN(r, n)
        p, i = MaxPool<kernel_shape=[2,1],strides=[2,1]>(n)  y = MaxUnpool<kernel_shape=[2,1],strides=[2,1]>(p, i) }"""
    model = graph(text, w=weights(4, 3, 3, 1), b=weights(4) - 1, **norm("n", 4, gamma="positive"))
    copy = ir.from_proto(model)
    assert not fold(copy, fold_all=fold_all).batchnorms_after
    after = ir.to_proto(copy)
    assert order(after) == ["Conv", "Max", "MaxPool", "MaxUnpool"]
    same_in_onnxruntime(model, after, (2, 3, 12, 1), (1, 3, 26, 1))
