"""A channel scaled by 0 holds its constant before the BatchNorm already, so its scale can be undone."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from tests.export.fold.graphs import folded, graph, net_of, norm, onnxruntime, operators, same_function, weights

from normfold.export.fold.engine.silence import silence_zero_scales
from normfold.export.fold.ops.scaling import Scaling

LENGTHS = ((2, 3, 12), (3, 3, 23))
GAMMA, BETA = [1, 0, -1, 0], [1, 2, 3, -4]


def around(nodes: str, more: str = "") -> str:
    return f"(float[N,3,L] x) => (float[N,5,M] y{more}) {{ c = Conv(x, w) {nodes} }}"


def model_of(nodes: str, more: str = "", beta: list[int] = BETA) -> onnx.ModelProto:
    given = norm("n", 4, gamma=GAMMA, beta=beta)
    return graph(around(nodes, more), w=weights(4, 3, 3), v=weights(5, 4, 3), u=weights(4, 3, 3, seed=1), **given)


def silenced(model: onnx.ModelProto) -> tuple[int, Scaling]:
    net = net_of(model)
    target = next(op for op in net.ops if isinstance(op, Scaling))
    return silence_zero_scales(target), target


BETWEEN = [
    "n0 = Identity(c)",
    "n0 = Relu(c)",
    "n0 = LeakyRelu(c)",
    "n0 = Sigmoid(c)",
    "n0 = Clip(c, lo, hi)",
    "a = Relu(c) n0 = MaxPool<kernel_shape=[2]>(a)",
    "a = Relu(c) n0 = AveragePool<kernel_shape=[2]>(a)",
    "b = Conv(x, u) n0 = Add(c, b)",
    "b = Conv(x, u) n0 = Sub(b, c)",
    "n0 = Slice(c, one, large, axis)",
    "n0 = Gather<axis=1>(c, turned)",
    "b = Conv(x, u) m = Concat<axis=1>(b, c) n1, n0 = Split<axis=1>(m, halves)",
]


@pytest.mark.parametrize("between", BETWEEN)
def test_nothing_scales_by_0_after_what_is_private_before_it(between: str) -> None:
    model = model_of(f"{between} n = BN(n0, n) y = Conv<pads=[1,1]>(n, v)")
    held = [onnx.numpy_helper.from_array(np.float32(v), k) for k, v in (("lo", -1.0), ("hi", 1.5))]
    places = {"one": [1], "large": [99], "axis": [2], "turned": [3, 2, 1, 0], "halves": [4, 4]}
    held += [onnx.numpy_helper.from_array(np.array(v), k) for k, v in places.items()]
    model.graph.initializer.extend(held)
    count, target = silenced(model)
    assert count > 0
    assert np.count_nonzero(target.params.scale == 0) == 2 - count
    after, report = folded(model)
    assert report.affines_after == 0
    same_function(model, after, *LENGTHS)


@pytest.mark.parametrize(("picked", "count"), [([0, 2, 2, 3], 1), ([0, 1, 1, 3], 1), ([1, 3, 2, 0], 2)])
def test_a_channel_that_is_picked_twice_is_not_silenced(picked: list[int], count: int) -> None:
    # Channels 1 and 2 show the same channel of the convolution, and only channel 1 is scaled by 0.
    model = model_of("g = Gather<axis=1>(c, twice) n = BN(g, n) y = Conv<pads=[1,1]>(n, v)")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(picked), "twice"))
    found, target = silenced(model)
    assert found == count
    assert (target.params.scale[0, 1, 0] == 0) == (count == 1)
    after, _ = folded(model)
    same_function(model, after, *LENGTHS)


#: What is between a convolution of 4 channels and 10 positions and a BatchNorm of 4 channels, and the output's shape.
MOVED = {
    "transposed twice": ("a = Transpose<perm=[2,0,1]>(c) u = Transpose<perm=[1,2,0]>(a)", "N,4,10"),
    "rows": ("a = Transpose<perm=[0,2,1]>(c) u = Reshape(a, rows)", "M,4"),
    "unsqueezed": ("u = Unsqueeze(c, two)", "N,4,1,10"),
    "shuffled channels": ("a = Reshape(c, halved) b = Transpose<perm=[0,2,1,3]>(a) u = Reshape(b, whole)", "N,4,10"),
    "mirrored": ('u = Pad<mode="reflect">(c, pads)', "N,4,12"),
    "repeated": ('u = Pad<mode="edge">(c, pads)', "N,4,12"),
    "resized": ('u = Resize<mode="nearest">(c, , scales)', "N,4,20"),
}
PLACES = {
    "rows": np.array([-1, 4]),
    "two": np.array([2]),
    "halved": np.array([0, 2, 2, 10]),
    "whole": np.array([0, 4, 10]),
    "pads": np.array([0, 0, 1, 0, 0, 1]),
    "scales": np.float32([1, 1, 2]),
}


@pytest.mark.parametrize("between", MOVED)
def test_a_constant_is_followed_through_what_moves_it_to_another_axis(between: str) -> None:
    # Neither scale nor shift passes the sigmoid, so the BatchNorm goes back or stays.
    nodes, out = MOVED[between]
    text = f"(float[N,3,12] x) => (float[{out}] y) {{ c = Conv(x, w) {nodes} n = BN(u, n) y = Sigmoid(n) }}"
    beta = [1, 2, 3, -4]
    model = graph(text, w=weights(4, 3, 3), **PLACES, **norm("n", 4, gamma=[1, 0, -1, 0], beta=beta))
    after, report = folded(model)
    assert report.affines_after == 0
    same_function(model, after, (2, 3, 12))


def test_a_channel_of_a_tensor_whose_length_is_asked_for_becomes_constant() -> None:
    """The end of a cut, y[..., : y.shape[-1] - 1], is torch's Shape of what the BatchNorm reads."""
    text = """(float[N,3,L] x) => (float[N,4,M] y) {
        c = Conv(x, w)  n = BN(c, n)  q = Shape<start=2,end=3>(c)  e = Sub(q, one)  k = Slice(n, zero, e, two)
        y = Sigmoid(k) }"""
    places = {"one": np.array([1]), "zero": np.array([0]), "two": np.array([2])}
    model = graph(text, w=weights(4, 3, 3), **places, **norm("n", 4, gamma=[1, 0, -1, 0], beta=[1, 2, 3, -4]))
    after, report = folded(model)
    assert report.affines_after == 0
    same_function(model, after, *LENGTHS)


def test_a_function_of_the_users_own_named_size_reads_numbers() -> None:
    model = model_of("n = BN(c, n) y = Conv<pads=[1,1]>(n, v) z = Neg(c)", ", float[N,4,P] z")
    negative = next(node for node in model.graph.node if node.op_type == "Neg")
    negative.op_type, negative.domain = "Size", "own"
    model.opset_import.append(onnx.helper.make_opsetid("own", 1))
    body = [onnx.helper.make_node("Neg", ["a"], ["b"])]
    function = onnx.helper.make_function("own", "Size", ["a"], ["b"], body, [onnx.helper.make_opsetid("", 17)])
    model.functions.append(function)
    assert silenced(model)[0] == 0


def test_a_constant_is_followed_through_a_pixel_shuffle() -> None:
    text = """(float[N,3,12] x) => (float[N,2,20] y) {
        c = Conv(x, w)  a = Reshape(c, narrow)  b = Transpose<perm=[0,1,3,2]>(a)  u = Reshape(b, short)
        n = BN(u, n)  y = Sigmoid(n) }"""
    places = {"narrow": np.array([0, 2, 2, 10]), "short": np.array([0, 2, 20])}
    model = graph(text, w=weights(4, 3, 3), **places, **norm("n", 2, gamma=[0, -1], beta=[2, 1]))
    after, report = folded(model)
    assert report.affines_after == 0
    same_function(model, after, (2, 3, 12))


def test_a_column_of_an_embedding_becomes_constant() -> None:
    text = """(int64[N,L] x) => (float[N,4,L] y) {
        e = Gather(table, x)  t = Transpose<perm=[0,2,1]>(e)  n = BN(t, n)  y = Sigmoid(n) }"""
    model = graph(text, table=weights(5, 4), **norm("n", 4, gamma=[1, 0, -1, 0], beta=[1, 2, 3, -4]))
    after, report = folded(model)
    assert operators(after) == ["Gather", "Sigmoid", "Transpose"]
    assert report.affines_after == 0
    before_run, after_run = (onnxruntime(m, {"x": np.array([[0, 1, 4], [3, 2, 2]])})[0] for m in (model, after))
    np.testing.assert_allclose(after_run, before_run, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("beta", "stays"), [(2.0, 1), (-2.0, 1), (0.0, 0)])
def test_the_zeros_of_a_padding_hold_no_constant_but_0(beta: float, stays: int) -> None:
    text = """(float[N,3,12] x) => (float[N,4,12] y) { c = Conv(x, w) u = Pad(c, pads) n = BN(u, n) y = Sigmoid(n) }"""
    given = norm("n", 4, gamma=[1, 0, 2, 3], beta=[0, beta, 0, 0], mean=[0, 5, 0, 0])
    model = graph(text, w=weights(4, 3, 3), pads=PLACES["pads"], **given)
    after, report = folded(model)
    assert report.affines_after == stays
    same_function(model, after, (2, 3, 12))


def test_a_negative_constant_behind_a_slope_or_a_sigmoid_is_undone_by_the_shift() -> None:
    model = model_of("b = Sigmoid(c) n = BN(b, n) z = Sigmoid(n) y = Conv(z, v)", beta=[1, -2, 3, -4])
    count, target = silenced(model)
    assert count == 2
    assert np.all(target.params.scale != 0)
    after, _ = folded(model)
    same_function(model, after, *LENGTHS)


def test_halves_of_a_concat_are_silenced_each_in_its_branch() -> None:
    text = """(float[N,3,L] x) => (float[N,5,M] y) {
        a = Conv(x, w)  b = Conv(x, u)  j = Concat<axis=1>(a, b)
        r = Relu(j)  n = BN(r, n)  y = Conv<pads=[1,1]>(n, v) }"""
    given = norm("n", 4, gamma=[0, 1, 0, -1], beta=[1, 2, 3, 4])
    model = graph(text, w=weights(1, 3, 3), u=weights(3, 3, 3), v=weights(5, 4, 3), **given)
    assert silenced(model)[0] == 2
    after, report = folded(model)
    assert report.affines_after == 0
    same_function(model, after, *LENGTHS)


@pytest.mark.parametrize(
    ("nodes", "more"),
    [
        ("r = Relu(c) n = BN(r, n) a = Conv(n, v) s = Sigmoid(r) b = Conv(s, v) y = Add(a, b)", ""),
        ("r = Relu(c) n = BN(r, n) y = Conv(n, v)", ", float[N,4,M] r"),
        ("r = Relu(c) n = BN(r, n) y = Conv(n, v)", ", float[N,4,M] c"),
    ],
)
def test_a_channel_that_is_read_elsewhere_too_is_not_silenced(nodes: str, more: str) -> None:
    model = model_of(nodes, more)
    assert silenced(model)[0] == 0
    after, _ = folded(model)
    same_function(model, after, *LENGTHS)


def test_a_channel_of_the_input_is_not_silenced() -> None:
    text = "(float[N,3,L] x) => (float[N,5,M] y) { n = BN(x, n) y = Conv(n, v) }"
    model = graph(text, v=weights(5, 3, 3), **norm("n", 3, gamma=[0, 1, 2]))
    assert silenced(model)[0] == 0
    after, report = folded(model)
    assert operators(after) == ["Conv"]
    assert report.affines_after == 0
    same_function(model, after, *LENGTHS)


def test_a_channel_behind_what_cannot_hold_a_constant_is_not_silenced() -> None:
    model = model_of("s = Softmax<axis=2>(c) n = BN(s, n) y = Conv(n, v)")
    assert silenced(model)[0] == 0
    after, _ = folded(model)
    same_function(model, after, *LENGTHS)


def test_a_mean_that_counts_zeros_does_not_keep_a_constant() -> None:
    model = model_of(
        "p = AveragePool<kernel_shape=[3],pads=[1,1],count_include_pad=1>(c) n = BN(p, n) y = Conv(n, v)",
        beta=[1, 2, 3, 4],
    )
    silenced(model)
    after, _ = folded(model)
    same_function(model, after, *LENGTHS)


def test_all_channels_scaled_by_0_make_a_network_of_constants() -> None:
    given = norm("n", 4, gamma=[0, 0, 0, 0], beta=[1, -2, 0, 3])
    model = graph(
        around("r = Relu(c) n = BN(r, n) y = Conv<pads=[1,1]>(n, v)"), w=weights(4, 3, 3), v=weights(5, 4, 3), **given
    )
    after, report = folded(model)
    assert report.affines_after == 0
    same_function(model, after, *LENGTHS)


def test_gamma_and_beta_of_0_remove_a_channel_altogether() -> None:
    given = norm("n", 4, gamma=[1, 0, -1, 2], beta=[1, 0, 2, 3], mean=[0, 5, 0, 0])
    model = graph(around("r = Relu(c) n = BN(r, n) y = Conv(n, v)"), w=weights(4, 3, 3), v=weights(5, 4, 3), **given)
    after, report = folded(model)
    assert report.channels_removed == 1
    assert operators(after) == ["Conv", "Conv", "Relu"]
    same_function(model, after, *LENGTHS)


def test_a_batchnorm_that_stays_keeps_the_statistics_of_its_other_channels() -> None:
    """They tell a second fold what the first knew: how large its input is, and how far its mean is from 0."""
    given = norm("n", 4, gamma=[1, 0, -1, 2], beta=[1, 2, 3, -4])
    nodes = "a = Relu(c) n = BN(a, n) p = MaxPool<kernel_shape=[2]>(n) y = Conv<group=4, pads=[1,1]>(p, v)"
    model = graph(
        f"(float[N,3,L] x) => (float[N,4,M] y) {{ c = Conv(x, w) {nodes} }}",
        w=weights(4, 3, 3),
        v=weights(4, 1, 3),
        **given,
    )
    after, report = folded(model)
    same_function(model, after, *LENGTHS)
    assert report.batchnorms_after == 1
    (node,) = (n for n in after.graph.node if n.op_type == "BatchNormalization")
    held = {t.name: onnx.numpy_helper.to_array(t) for t in after.graph.initializer}
    gamma, _, mean, variance = (held[name] for name in node.input[1:])
    others = np.array([True, False, True, True])
    for found, came in ((gamma, "n_gamma"), (mean, "n_mean"), (variance, "n_var")):
        np.testing.assert_allclose(found[others], given[came][others], rtol=1e-6)
    assert (gamma[1], mean[1], variance[1]) == (pytest.approx(2.0, rel=1e-4), 0.0, 1.0)
    again, _ = folded(after)
    assert operators(again) == operators(after)


DEAD = {"mean": [0.1, 0.7, -0.2, 0.0474], "var": [1.0, 0.0, 2.0, 1e-12], "gamma": "positive"}


@pytest.mark.parametrize(
    ("nodes", "left"),
    [
        ("s = Sigmoid(c) n = BN(s, n) y = Conv(n, v)", 0),
        ("s = Sigmoid(c) n = BN(s, n) y = Conv<pads=[1,1]>(n, v)", 0),
        ("s = Sigmoid(c) n = BN(s, n) d = Conv(n, v) e = Conv(s, v) y = Add(d, e)", 0),  # s has another reader
        ("s = Sigmoid(c) n = BN(s, n) d = Conv<pads=[1,1]>(s, q) e = Add(d, n) t = Tanh(e) y = Conv(t, v)", 0),
        (
            "n = BN(c, k) d = Conv<pads=[1,1]>(c, q) r = Relu(d) e = Add(n, r) t = Tanh(e) y = Conv(t, v)",
            0,
        ),  # undone in 'd'
        ("n = BN(x, m) c0 = Conv(n, w) s = Sigmoid(c0) y = Conv(s, v)", 1),  # a caller may send other numbers
    ],
)
def test_a_channel_that_never_varies_does_not_keep_the_others_from_the_readers(nodes: str, left: int) -> None:
    w = weights(4, 3, 3)
    w[[1, 3]] = 0  # 'c' holds its bias there, and the mean is as large as what it holds
    bias = np.float32([0.1, 0.8473, 0.2, -3.0])
    arrays = {"w": w, "bias": bias, "v": weights(5, 4, 3), "q": weights(4, 4, 3)}
    few = {k: v[:3] if k != "gamma" else v for k, v in DEAD.items()}
    model = graph(
        f"(float[N,3,L] x) => (float[N,5,M] y) {{ c = Conv(x, w, bias) {nodes} }}",
        **arrays,
        **norm("n", 4, **DEAD),
        **norm("m", 3, **few),
        **norm("k", 4, **{**DEAD, "mean": [0.1, 0.8473, -0.2, -3.0]}),
    )
    after, report = folded(model)
    assert report.affines_after == left
    same_function(model, after, *LENGTHS)
