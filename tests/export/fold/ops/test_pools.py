"""Pools, reductions and resizing: means let any affine pass, maxima a scale that is not negative."""

from __future__ import annotations

import numpy as np
import pytest
from tests.export.fold.graphs import (
    Array,
    folded,
    folds_to,
    graph,
    norm,
    operator,
    operators,
    same_function,
    same_in_onnxruntime,
    stays,
    weight_of,
    weights,
)

from normfold.export.fold.affine import Affine
from normfold.export.fold.channels import AddedChannel
from normfold.export.fold.net import Gauges, Refused

LENGTHS = ((2, 3, 12), (3, 3, 23))


def around(nodes: str, tail: str = "y = Conv(z, v)") -> str:
    return f"(float[N,3,L] x) => (float[N,5,M] y) {{ c = Conv(x, w) r = Relu(c) {nodes} {tail} }}"


def convolutions(taps: int = 1, **more: Array) -> dict[str, Array]:
    return {"w": weights(4, 3, 3), "v": weights(5, 4, taps), **more}


MEANS = [
    "AveragePool<kernel_shape=[3],strides=[2]>",
    "AveragePool<kernel_shape=[3],pads=[1,1]>",
    "AveragePool<kernel_shape=[3],pads=[1,0],strides=[2],ceil_mode=1>",
    "AveragePool<kernel_shape=[3],strides=[2],count_include_pad=1>",
    'AveragePool<kernel_shape=[3],auto_pad="SAME_UPPER">',
    "GlobalAveragePool",
    "ReduceMean<axes=[2],keepdims=1>",
    "ReduceMean<axes=[-1]>",
]


@pytest.mark.parametrize("gamma", ["positive", "mixed"])
@pytest.mark.parametrize("pool", MEANS)
def test_any_affine_goes_forward_through_a_mean(pool: str, gamma: str) -> None:
    model = graph(around(f"n = BN(r, n) z = {pool}(n)"), **convolutions(**norm("n", 4, gamma=gamma)))
    kind = pool.partition("<")[0]
    folds_to(model, f"Conv Relu {kind} Conv", *LENGTHS)


@pytest.mark.parametrize("pool", MEANS)
def test_any_affine_goes_back_through_a_mean(pool: str) -> None:
    text = f"(float[N,3,L] x) => (float[N,4,M] y) {{ c = Conv(x, w) p = {pool}(c) n = BN(p, n) y = Sigmoid(n) }}"
    model = graph(text, w=weights(4, 3, 3), **norm("n", 4))
    folds_to(model, f"Conv {pool.partition('<')[0]} Sigmoid", *LENGTHS)


MAXIMA = [
    "MaxPool<kernel_shape=[3],strides=[2]>",
    "MaxPool<kernel_shape=[3],pads=[1,1]>",
    "MaxPool<kernel_shape=[2],dilations=[2],ceil_mode=1,strides=[2]>",
    'MaxPool<kernel_shape=[4],auto_pad="SAME_LOWER">',
    "GlobalMaxPool",
    "ReduceMax<axes=[2]>",
    "ReduceMin<axes=[2]>",
    "ReduceMin<axes=[-1],keepdims=1>",
]


@pytest.mark.parametrize("pool", MAXIMA)
def test_a_positive_affine_goes_forward_through_a_maximum(pool: str) -> None:
    model = graph(around(f"n = BN(r, n) z = {pool}(n)"), **convolutions(**norm("n", 4, gamma="positive")))
    folds_to(model, f"Conv Relu {pool.partition('<')[0]} Conv", *LENGTHS)


@pytest.mark.parametrize("pool", MAXIMA)
def test_a_positive_affine_goes_back_through_a_maximum(pool: str) -> None:
    text = f"(float[N,3,L] x) => (float[N,4,M] y) {{ c = Conv(x, w) p = {pool}(c) n = BN(p, n) y = Sigmoid(n) }}"
    model = graph(text, w=weights(4, 3, 3), **norm("n", 4, gamma="positive"))
    folds_to(model, f"Conv {pool.partition('<')[0]} Sigmoid", *LENGTHS)


@pytest.mark.parametrize("pool", MAXIMA)
@pytest.mark.parametrize("gamma", ["mixed", "negative"])
def test_a_negative_scale_before_a_maximum_costs_one_node_at_most(pool: str, gamma: str) -> None:
    model = graph(around(f"n = BN(r, n) z = {pool}(n)"), **convolutions(**norm("n", 4, gamma=gamma)))
    after, report = folded(model)
    assert report.batchnorms_after == 0
    assert len(after.graph.node) <= len(model.graph.node)
    same_function(model, after, *LENGTHS)


@pytest.mark.parametrize("pool", MAXIMA)
def test_a_negative_scale_behind_a_maximum_leaves_its_sign(pool: str) -> None:
    text = f"(float[N,3,L] x) => (float[N,4,M] y) {{ c = Conv(x, w) p = {pool}(c) n = BN(p, n) y = Sigmoid(n) }}"
    model = graph(text, w=weights(4, 3, 3), **norm("n", 4, gamma=[1, -1, 1, 1]))
    after, _ = folded(model)
    assert operators(after) == sorted(["Conv", pool.partition("<")[0], "Mul", "Sigmoid"])
    np.testing.assert_array_equal(weight_of(after, op="Mul").ravel(), [1, -1, 1, 1])
    same_function(model, after, *LENGTHS)


def test_a_maximum_says_how_many_channels_come_with_a_negative_scale() -> None:
    op = operator(graph("(float[N,4,L] x) => (float[N,4,M] y) { y = MaxPool<kernel_shape=[2]>(x) }"), "MaxPool")
    gauge = Affine.along(1, 3, np.float64([1, -1, 2, -2]), np.zeros(4))
    for tensor in (*op.inputs, *op.outputs):
        with pytest.raises(
            Refused, match="keeps the largest entry, and 2 of 4 channels are scaled by a negative number"
        ):
            op.spread(Gauges({tensor: gauge}))


def test_a_minimum_keeps_the_smallest_entry_and_none_of_a_negative_scale() -> None:
    op = operator(graph("(float[N,4,L] x) => (float[N,4,M] y) { y = ReduceMin<axes=[2]>(x) }"), "ReduceMin")
    gauge = Affine.along(1, 3, np.float64([1, -1, 2, -2]), np.zeros(4))
    with pytest.raises(Refused, match="keeps the smallest entry, and 2 of 4 channels are scaled by a negative number"):
        op.spread(Gauges({op.inputs[0]: gauge}))


@pytest.mark.parametrize("gamma", ["positive", "mixed"])
@pytest.mark.parametrize("repeats", ["r", "counts"])
@pytest.mark.parametrize("tail", ["y = Conv(z, v)", "y = Conv<pads=[1,1]>(z, v)"])
def test_any_affine_goes_through_a_tile_of_positions(tail: str, repeats: str, gamma: str) -> None:
    # "counts" is computed; its entry for the channels is known.
    text = f"""(float[N,3,L] x) => (float[N,5,M] y) {{ c = Conv(x, w) s = Sigmoid(c) n = BN(s, n)
        l = Shape(x) k = Gather(l, two) h = Div(k, k) d = Add(h, h) counts = Concat<axis=0>(ones, d)
        z = Tile(n, {repeats}) {tail} }}"""
    places = {"r": [2, 1, 3], "two": [2], "ones": [1, 1]}
    arrays = {name: np.array(place) for name, place in places.items()}
    model = graph(text, **convolutions(3, **norm("n", 4, gamma=gamma), **arrays))
    after, report = folded(model)
    assert report.batchnorms_after == 0
    same_function(model, after, *LENGTHS)


def test_nothing_goes_through_a_tile_of_channels_nor_what_differs_by_position() -> None:
    text = "(float[N,3,6] x) => (float[N,A,B] y) { s = Sigmoid(x) n = BN(s, n) z = Tile(n, r) y = Tanh(z) }"
    model = graph(text, **norm("n", 3), r=np.array([1, 2, 1]))
    stays(model, "no rule takes a per-channel scale or shift through 'Tile_2' (Tile)", (2, 3, 6))
    op = operator(graph(text, **norm("n", 3), r=np.array([1, 1, 2])), "Tile")
    with pytest.raises(Refused, match="mixes positions"):
        op.spread(Gauges({op.inputs[0]: Affine.along(2, 3, np.arange(1.0, 7.0), np.zeros(6))}))


@pytest.mark.parametrize("gamma", ["positive", "mixed"])
def test_any_affine_goes_through_a_change_of_sign(gamma: str) -> None:
    model = graph(around("n = BN(r, n) z = Neg(n)"), **convolutions(**norm("n", 4, gamma=gamma)))
    folds_to(model, "Conv Relu Conv", *LENGTHS)  # the sign went with it
    text = "(float[N,3,L] x) => (float[N,4,M] y) { c = Conv(x, w) z = Neg(c) n = BN(z, n) y = Sigmoid(n) }"
    folds_to(graph(text, w=weights(4, 3, 3), **norm("n", 4, gamma=gamma)), "Conv Sigmoid", *LENGTHS)


def test_a_change_of_sign_of_integers_is_no_affine() -> None:
    op = operator(graph("(int64[N,4,L] x) => (int64[N,4,L] y) { y = Neg(x) }"), "Neg")
    assert op.passes_nothing


@pytest.mark.parametrize("beta", [[1, 2, 3, 4], [1, -2, 3, -4], [1, 0, 3, 0]])
def test_a_scale_of_0_goes_forward_through_a_maximum(beta: list[int]) -> None:
    given = norm("n", 4, gamma=[1, 0, 2, 0], beta=beta)
    model = graph(around("n = BN(r, n) z = MaxPool<kernel_shape=[3]>(n)"), **convolutions(**given))
    after, report = folded(model)
    same_function(model, after, *LENGTHS)
    assert report.affines_after == 0


COUNTED = [
    "AveragePool<kernel_shape=[3],pads=[1,1],count_include_pad=1>",
    'AveragePool<kernel_shape=[3],auto_pad="SAME_UPPER",count_include_pad=1>',
]


@pytest.mark.parametrize("pool", COUNTED)
def test_a_mean_that_counts_its_zeros_lets_no_shift_pass(pool: str) -> None:
    text = f"(float[N,3,L] x) => (float[N,3,M] y) {{ s = Sigmoid(x) n = BN(s, n) p = {pool}(n) y = Tanh(p) }}"
    _, report = folded(graph(text, **norm("n", 3)))
    reasons = "; ".join(report.folds[0].reasons)
    assert "'AveragePool_2' (AveragePool) averages its zero padding, which does not take the shift" in reasons


@pytest.mark.parametrize("pool", COUNTED)
def test_a_mean_that_counts_its_zeros_lets_a_scale_pass(pool: str) -> None:
    model = graph(around(f"n = Mul(r, g) z = {pool}(n)"), **convolutions(g=weights(4, 1)))
    after, _ = folded(model)
    assert "Mul" not in operators(after)
    if "auto_pad" not in pool:  # ONNX's reference does not count what auto_pad adds
        same_function(model, after, *LENGTHS)


def test_a_shift_before_a_mean_that_counts_its_zeros_keeps_the_function() -> None:
    model = graph(around(f"n = BN(r, n) z = {COUNTED[0]}(n)"), **convolutions(**norm("n", 4)))
    after, _ = folded(model)
    same_function(model, after, *LENGTHS)


@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize("opset", [11, 13, 17, 18, 21])
def test_a_mean_over_positions_may_name_its_axes_as_attribute_or_input_and_drop_them(keep: int, opset: int) -> None:
    tail = "y = Gemm(z, v)" if not keep else "s = Flatten(z) y = Gemm(s, v)"
    mean = f"ReduceMean<keepdims={keep}>(n, a)" if opset >= 18 else f"ReduceMean<keepdims={keep},axes=[2]>(n)"
    text = around(f"n = BN(r, n) z = {mean}", tail).replace("float[N,5,M] y", "float[N,5] y")
    given = {"a": np.array([2])} if opset >= 18 else {}
    model = graph(text, opset=opset, w=weights(4, 3, 3), v=weights(4, 5), **given, **norm("n", 4))
    folds_to(model, "Conv Relu ReduceMean Gemm" + " Flatten" * keep, *LENGTHS)


def test_a_mean_over_the_channels_mixes_their_scales() -> None:
    text = "(float[N,3,L] x) => (float[N,1,L] y) { s = Sigmoid(x) n = BN(s, n) y = ReduceMean<axes=[1]>(n) }"
    sentence = "'ReduceMean_2' (ReduceMean) mixes channels, and here they have different scales or shifts"
    stays(graph(text, **norm("n", 3)), sentence, *LENGTHS)


@pytest.mark.parametrize("noop", [0, 1])
def test_empty_axes_reduce_everything_or_nothing_as_the_attribute_says(noop: int) -> None:
    shape = "N,4,L" if noop else "A,B,C"
    text = """(float[N,3,L] x) => (float[%s] y) {
        c = Conv(x, w)  r = Relu(c)  n = BN(r, n)  y = ReduceMean<noop_with_empty_axes=%d>(n, a) }"""
    model = graph(text % (shape, noop), opset=18, w=weights(4, 3, 1), a=np.array([], np.int64), **norm("n", 4))
    after, _ = folded(model)
    same_function(model, after, *LENGTHS)


@pytest.mark.parametrize("gamma", [[1, 0, 1, 2], [1, 1, 2, 3], [1, -1, 1, 1]])
def test_indices_of_a_max_pool_that_are_read_keep_what_they_were(gamma: list[int]) -> None:
    text = """(float[N,3,L] x) => (float[N,4,M] y, int64[N,4,M] i) {
        c = Conv(x, w)  n = BN(c, n)  y, i = MaxPool<kernel_shape=[2],strides=[2]>(n) }"""
    model = graph(text, w=weights(4, 3, 1), **norm("n", 4, gamma=gamma))
    after, _ = folded(model)
    same_function(model, after, *LENGTHS)


RESIZES = [
    ("Resize(n, , s)", 17),
    ('Resize<mode="linear">(n, , s)', 17),
    ('Resize<mode="linear",coordinate_transformation_mode="align_corners">(n, , s)', 17),
    ('Resize<mode="nearest",coordinate_transformation_mode="asymmetric",nearest_mode="floor">(n, , s)', 11),
    ("Resize<axes=[2]>(n, , s1)", 18),
    ("Upsample(n, s)", 9),
    ('Upsample<mode="linear">(n, s)', 9),
]


@pytest.mark.parametrize(("resize", "opset"), RESIZES)
def test_any_affine_goes_through_nearest_and_linear_resizing(resize: str, opset: int) -> None:
    given = {"s1": np.float32([2])} if "s1" in resize else {"s": np.float32([1, 1, 2])}
    if opset == 11:
        given["roi"] = np.zeros(0, np.float32)
        resize = resize.replace("n, , s", "n, roi, s")
    model = graph(around(f"n = BN(r, n) z = {resize}"), opset=opset, **convolutions(**given, **norm("n", 4)))
    after, report = folded(model)
    assert report.affines_after == 0
    assert operators(after) == sorted(["Conv", "Relu", resize.partition("(")[0].partition("<")[0], "Conv"])
    if opset > 9:
        same_function(model, after, *LENGTHS)


def test_cubic_resizing_is_left_alone() -> None:
    text = """(float[N,3,L] x) => (float[N,3,M] y) {
        r = Sigmoid(x)  n = BN(r, n)  z = Resize<mode="cubic">(n, , s)  y = Tanh(z) }"""
    _, report = folded(graph(text, s=np.float32([1, 1, 2]), **norm("n", 3)))
    assert "no rule takes a per-channel scale or shift through 'Resize_2' (Resize)" in "; ".join(
        report.folds[0].reasons
    )


def test_resizing_over_the_channels_is_left_alone() -> None:
    text = "(float[N,3,L] x) => (float[N,6,L] y) { r = Sigmoid(x) n = BN(r, n) z = Resize(n, , s) y = Tanh(z) }"
    _, report = folded(graph(text, s=np.float32([1, 2, 1]), **norm("n", 3)))
    assert "no rule takes a per-channel scale or shift through 'Resize_2' (Resize)" in "; ".join(
        report.folds[0].reasons
    )


@pytest.mark.parametrize("op", ["ReduceL2<axes=[2]>", "LpPool<kernel_shape=[2]>"])
def test_other_reductions_let_nothing_pass(op: str) -> None:
    text = f"(float[N,3,L] x) => (float[N,3,M] y) {{ r = Sigmoid(x) n = BN(r, n) z = {op}(n) y = Tanh(z) }}"
    _, report = folded(graph(text, **norm("n", 3)))
    assert "no rule takes a per-channel scale or shift through" in "; ".join(report.folds[0].reasons)


@pytest.mark.parametrize("opset", [11, 17])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_a_sum_over_a_known_number_of_positions_lets_the_shift_pass_that_many_times(opset: int, keepdims: int) -> None:
    total = f"ReduceSum<axes=[2],keepdims={keepdims}>(n)" if opset < 13 else f"ReduceSum<keepdims={keepdims}>(n, a)"
    tail = "y = Conv(z, v)" if keepdims else "y = Gemm(z, g)"
    text = "(float[N,3,12] x) => (float[%s] y) { s = Sigmoid(x) n = BN(s, n) z = %s %s }"
    model = graph(
        text % ("N,5,1" if keepdims else "N,5", total, tail),
        opset=opset,
        **({"v": weights(5, 3, 1)} if keepdims else {"g": weights(3, 5)}),
        **({"a": np.array([-1])} if opset > 12 else {}),
        **norm("n", 3),
    )
    after, _ = folds_to(model, f"Sigmoid ReduceSum {'Conv' if keepdims else 'Gemm'}", (2, 3, 12))
    # By hand: each of the 12 positions adds the shift once.
    shift = model_shift("n", 3)
    weight = weights(5, 3, 1)[:, :, 0] if keepdims else weights(3, 5).T
    bias = weight_of(after, place=2, op="Conv" if keepdims else "Gemm")
    np.testing.assert_allclose(bias, 12 * weight @ shift, rtol=1e-5)


def model_shift(name: str, channels: int) -> Array:
    p = {k.removeprefix(f"{name}_"): v.astype(np.float64) for k, v in norm(name, channels).items()}
    shift: Array = p["beta"] - p["mean"] * p["gamma"] / np.sqrt(p["var"] + 1e-5)
    return shift


def test_a_shift_goes_back_through_a_sum_divided_by_the_number_of_positions() -> None:
    text = """(float[N,3,12] x) => (float[N,4,1] y) {
        c = Conv(x, w)  z = ReduceSum<keepdims=1>(c, a)  n = BN(z, n)  y = Sigmoid(n) }"""
    folds_to(graph(text, w=weights(4, 3, 3), a=np.array([2]), **norm("n", 4)), "Conv ReduceSum Sigmoid", (2, 3, 12))


def test_of_a_sum_over_a_dynamic_number_of_positions_only_the_scale_passes() -> None:
    text = "(float[N,3,L] x) => (float[N,5,1] y) { s = Sigmoid(x) n = BN(s, n) z = ReduceSum(n, a) y = Conv(z, v) }"
    arrays = {"a": np.array([2]), "v": weights(5, 3, 1)}
    stays(graph(text, **arrays, **norm("n", 3)), "adds up a dynamic number of positions", *LENGTHS)
    unshifted = norm("n", 3, mean=np.zeros(3), beta=np.zeros(3))
    folds_to(graph(text, **arrays, **unshifted), "Sigmoid ReduceSum Conv", *LENGTHS)


@pytest.mark.parametrize("gamma", ["positive", "mixed"])
def test_a_masked_mean_lets_the_scale_pass_and_the_shift_goes_back(gamma: str) -> None:
    text = """(float[N,3,L] x, float[2,1,10] m) => (float[N,5,1] y) {
        c = Conv(x, w)  n = BN(c, n)  r = LeakyRelu(n)  b = BN(r, b)  p = Mul(b, m)  t = ReduceSum(p, a)
        k = ReduceSum(m, a)  q = Div(t, k)  y = Conv(q, v) }"""
    given = norm("n", 4, gamma=gamma) | norm("b", 4, gamma=gamma, mean=np.zeros(4), beta=np.zeros(4))
    model = graph(text, w=weights(4, 3, 3), v=weights(5, 4, 1), a=np.array([2]), **given)
    folds_to(model, "Conv LeakyRelu Mul ReduceSum ReduceSum Div Conv", (2, 3, 12))


#: Attention pooling: how the weights are made, how they are applied, and the output's shape.
AVERAGES = [
    ("w = Softmax<axis=2>(s)", "p = Mul(n, w) z = ReduceSum<keepdims=1>(p, two)"),
    ("w = Softmax<axis=-1>(s)", "p = Mul(w, n) z = ReduceSum<keepdims=1>(p, two)"),
    ("w = Softmax<axis=-1>(s)", "p = Mul(w, n) q = ReduceSum<keepdims=0>(p, two) z = Unsqueeze(q, two)"),
    ("w = Softmax<axis=2>(s)", "t = Transpose<perm=[0,2,1]>(w) z = MatMul(n, t)"),
    (
        "w = Softmax<axis=2>(s)",
        "t = Transpose<perm=[0,2,1]>(n) q = MatMul(w, t) z = Transpose<perm=[0,2,1]>(q)",
    ),
    (
        "a = Squeeze(s, one) b = Softmax<axis=1>(a) w = Unsqueeze(b, one)",
        "p = Mul(n, w) z = ReduceSum<keepdims=1>(p, two)",
    ),
]
PLACES = {"one": np.array([1]), "two": np.array([2])}


@pytest.mark.parametrize(("weighed", "applied"), AVERAGES)
@pytest.mark.parametrize("length", ["12", "L"])
def test_an_average_whose_weights_come_from_a_softmax_lets_any_affine_pass(
    weighed: str, applied: str, length: str
) -> None:
    text = f"""(float[N,3,{length}] x) => (float[N,5,1] y) {{
        c = Sigmoid(x)  n = BN(c, n)  s = Conv(n, k)  {weighed}  {applied}  y = Conv(z, v) }}"""
    model = graph(text, k=weights(1, 3, 1), v=weights(5, 3, 1), **PLACES, **norm("n", 3))
    after, report = folded(model)
    assert report.affines_after == 0, report.folds
    same_function(model, after, *(LENGTHS if length == "L" else [(2, 3, 12)]))


@pytest.mark.parametrize(
    ("weighed", "applied"),
    [
        ("w = Softmax<axis=1>(s)", "p = Mul(n, w) z = ReduceSum<keepdims=1>(p, two)"),
        ("w = Softmax<axis=0>(s)", "p = Mul(n, w) z = ReduceSum<keepdims=1>(p, two)"),
        ("w = Sigmoid(s)", "p = Mul(n, w) z = ReduceSum<keepdims=1>(p, two)"),
        ("a = Softmax<axis=2>(s) w = Sqrt(a)", "p = Mul(n, w) z = ReduceSum<keepdims=1>(p, two)"),
        # Of one entry the weight is 1, and the sum is that of all positions.
        (
            "m = ReduceMean<axes=[2]>(s) w = Softmax<axis=2>(m)",
            "p = Mul(n, w) z = ReduceSum<keepdims=1>(p, two)",
        ),
        ("w = Softmax<axis=1>(s)", "t = Transpose<perm=[0,2,1]>(w) z = MatMul(n, t)"),
        ("w = Softmax<axis=2>(s)", "p = Mul(n, w) z = ReduceMean<keepdims=1,axes=[2]>(p)"),
    ],
)
def test_weights_that_do_not_add_up_to_1_over_the_summed_axis_let_no_shift_pass(weighed: str, applied: str) -> None:
    text = f"""(float[N,3,L] x) => (float[N,5,1] y) {{
        c = Sigmoid(x)  n = BN(c, n)  s = Conv(n, k)  {weighed}  {applied}  y = Conv(z, v) }}"""
    model = graph(text, k=weights(1, 3, 1), v=weights(5, 3, 1), **PLACES, **norm("n", 3))
    after, report = folded(model)
    assert report.affines_after == 1
    same_function(model, after, *LENGTHS)


@pytest.mark.parametrize(("opset", "axis", "goes"), [(11, 2, True), (11, 1, False), (13, 2, True)])
def test_before_opset_13_a_softmax_is_over_all_axes_from_its_axis_on(opset: int, axis: int, goes: bool) -> None:
    total = "ReduceSum<axes=[2],keepdims=1>(p)" if opset < 13 else "ReduceSum<keepdims=1>(p, two)"
    text = f"""(float[N,3,12] x, float[2,3,10] s) => (float[N,5,1] y) {{
        c = Conv(x, k)  r = Sigmoid(c)  n = BN(r, n)  w = Softmax<axis={axis}>(s)  p = Mul(n, w)  z = {total}
        y = Conv(z, v) }}"""
    more = {"two": PLACES["two"]} if opset >= 13 else {}
    model = graph(text, opset=opset, k=weights(3, 3, 3), v=weights(5, 3, 1), **more, **norm("n", 3))
    after, report = folded(model)
    assert report.affines_after == (0 if goes else 1)
    same_in_onnxruntime(model, after, (2, 3, 12))


def test_one_more_channel_passes_with_its_constant_but_not_where_zeros_are_counted() -> None:
    plain, counted = (
        operator(graph(f"(float[N,3,L] x) => (float[N,3,M] y) {{ y = {pool}(x) }}"), "AveragePool")
        for pool in ("AveragePool<kernel_shape=[3],pads=[1,1]>", COUNTED[0])
    )
    w = AddedChannel(1, 3, value=2.0)
    assert plain.add_channel({plain.inputs[0]: w}) == {plain.outputs[0]: w}
    with pytest.raises(Refused, match="averages its zero padding, so no channel stays constant through it"):
        counted.add_channel({counted.inputs[0]: w})


def test_one_more_channel_does_not_pass_a_reduction_over_the_channels() -> None:
    op = operator(graph("(float[N,3,L] x) => (float[N,1,L] y) { y = ReduceMean<axes=[1]>(x) }"), "ReduceMean")
    with pytest.raises(Refused, match="works along the channels"):
        op.add_channel({op.inputs[0]: AddedChannel(1, 3)})


def test_dropped_axes_leave_the_channels_where_they_are() -> None:
    op = operator(graph("(float[N,L,3] x) => (float[N,3] y) { y = ReduceMean<axes=[1],keepdims=0>(x) }"), "ReduceMean")
    (x,), (y,) = op.inputs, op.outputs
    gauge = Affine.along(2, 3, np.float64([1, 2, 3]), np.float64([4, 5, 6]))
    assert op.spread(Gauges({x: gauge}))[y].scale.shape == (1, 3)
    assert op.spread(Gauges({y: op.spread(Gauges({x: gauge}))[y]}))[x].equals(gauge)
    assert op.add_channel({x: AddedChannel(2, 3)})[y].axis == 1
    assert op.add_channel({y: AddedChannel(1, 3)})[x].axis == 2
