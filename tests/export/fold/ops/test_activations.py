"""Operators on each entry alone: clamps, sloped activations, affines themselves, and what no affine passes."""

from __future__ import annotations

import numpy as np
import pytest
from tests.export.fold.graphs import (
    Array,
    folded,
    folds_to,
    graph,
    net_of,
    norm,
    operator,
    operators,
    same_function,
    stays,
    weights,
)

from normfold.export.fold.affine import Affine
from normfold.export.fold.channels import AddedChannel
from normfold.export.fold.net import Gauges, Refused

LENGTHS = ((2, 3, 9), (3, 3, 17))


def around(nodes: str, head: str = "c = Conv(x, w)", tail: str = "y = Conv<pads=[1,1]>(z, v)") -> str:
    return f"(float[N,3,L] x) => (float[N,5,M] y) {{ {head} {nodes} {tail} }}"


def convolutions(**more: Array) -> dict[str, Array]:
    return {"w": weights(4, 3, 3), "v": weights(5, 4, 3), **more}


# --- clamps -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", ["positive", "mixed", "negative"])
@pytest.mark.parametrize(
    ("clamp", "becomes"),
    [
        ("Relu(c)", "Relu"),
        ("Clip(c, zero, six)", "Clip"),
        ("Clip(c, zero)", "Relu"),
        ("Clip(c, , six)", "Clip"),
        ("Max(c, zero)", "Relu"),
        ("Min(six, c)", "Clip"),
        ("Max(half, c)", "Clip"),
    ],
)
def test_a_batchnorm_behind_a_clamp_goes_into_the_convolutions_around(clamp: str, becomes: str, gamma: str) -> None:
    bounds = {"zero": np.float32(0), "six": np.float32(6), "half": np.float32(0.5)}
    model = graph(around(f"r = {clamp} z = BN(r, n)"), **convolutions(**bounds, **norm("n", 4, gamma=gamma)))
    folds_to(model, f"Conv Conv {becomes}", *LENGTHS)


def test_a_clip_before_opset_11_keeps_its_bounds_in_attributes() -> None:
    model = graph(around("r = Clip<min=0.0,max=6.0>(c) z = BN(r, n)"), opset=9, **convolutions(**norm("n", 4)))
    folds_to(model, "Clip Conv Conv", *LENGTHS)


def test_a_relu_between_two_batchnorms_becomes_the_max_that_the_inner_shift_makes_of_it() -> None:
    # relu(s u + t) = s max(u, -t/s) + t for s > 0, where u is read elsewhere as it is.
    text = "a = BN(c, n) r = Relu(a) z1 = Conv(r, k) e = Sigmoid(c) z = Add(z1, e)"
    given = convolutions(k=weights(4, 4, 1), **norm("n", 4, gamma="positive"))
    model = graph(around(text), **given)
    after, _ = folds_to(model, "Add Conv Conv Conv Max Sigmoid", *LENGTHS)
    bound = next(t for t in after.graph.initializer if t.name.endswith(".min"))
    gamma, beta, mean, var = (given[f"n_{p}"].astype(np.float64) for p in ("gamma", "beta", "mean", "var"))
    scale = gamma / np.sqrt(var + np.float32(1e-5))
    want = -(beta - mean * scale) / scale
    np.testing.assert_allclose(np.frombuffer(bound.raw_data, np.float32), want, rtol=1e-6)


def test_a_negative_scale_before_a_shared_relu_makes_it_a_min() -> None:
    text = "a = BN(c, n) r = Relu(a) z1 = Conv(r, k) e = Sigmoid(c) z = Add(z1, e)"
    given = convolutions(k=weights(4, 4, 1), **norm("n", 4, gamma="negative"))
    folds_to(graph(around(text), **given), "Add Conv Conv Conv Min Sigmoid", *LENGTHS)


@pytest.mark.parametrize("clip", ["Clip(a, lo, hi)", "Clip(a, hi, lo)"])
@pytest.mark.parametrize("gamma", ["positive", "mixed", "negative"])
def test_clip_bounds_that_cross_hold_every_entry_at_the_upper_one(clip: str, gamma: str) -> None:
    text = "(float[N,3,L] x) => (float[N,4,L] y) { s = Sigmoid(x) a = BN(s, n) r = %s y = Conv(r, v) }"
    given = {"lo": np.float32(-0.3), "hi": np.float32(0.4), "v": weights(4, 3, 1)}
    model = graph(text % clip, **given, **norm("n", 3, gamma=gamma))
    after, _ = folded(model)
    same_function(model, after, *LENGTHS)


def test_a_clip_with_computed_bounds_lets_nothing_pass() -> None:
    text = "(float[N,3,L] x, float b) => (float[N,4,L] y) { c = Sigmoid(x) n = BN(c, n) r = Clip(n, b) y = Conv(r, v) }"
    stays(
        graph(text, v=weights(4, 3, 1), **norm("n", 3)),
        "no rule takes a per-channel scale or shift through 'Clip_2' (Clip)",
        *LENGTHS,
    )


def test_a_channel_scaled_by_0_is_clamped_to_its_constant() -> None:
    # clamp(0 x + t; 0, 6) is 0, t or 6: each channel shows one.
    gamma, beta = np.zeros(4), np.float64([-1, 2, 9, 0])
    given = convolutions(zero=np.float32(0), six=np.float32(6), **norm("n", 4, gamma=gamma, beta=beta))
    model = graph(around("a = BN(c, n) z = Clip(a, zero, six)"), **given)
    after, _ = folded(model)
    assert "BatchNormalization" not in operators(after)
    same_function(model, after, *LENGTHS)


def test_bounds_pass_a_scale_and_a_shift_as_worked_by_hand() -> None:
    op = operator(graph("(float[N,2,L] x) => (float[N,2,L] y) { y = Relu(x) }"), "Relu")
    gauge = Affine.along(1, 3, np.float64([2, -2]), np.float64([6, 6]))
    gauges = Gauges({op.inputs[0]: gauge})
    assert op.spread(gauges)[op.outputs[0]].equals(gauge)
    bounds = op.rewritten(gauges)  # relu(2 x + 6) = 2 max(x, -3) + 6,  relu(-2 x + 6) = -2 min(x, 3) + 6
    np.testing.assert_array_equal(bounds.lo.ravel(), [-3, -np.inf])
    np.testing.assert_array_equal(bounds.hi.ravel(), [np.inf, 3])


# --- LeakyRelu and PRelu ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", ["positive", "mixed", "negative"])
@pytest.mark.parametrize("act", ["LeakyRelu<alpha=0.2>(c)", "LeakyRelu(c)", "PRelu(c, a)", "PRelu(c, one)"])
def test_a_batchnorm_behind_a_sloped_activation_goes_forward_with_a_carrier(act: str, gamma: str) -> None:
    given = convolutions(a=np.abs(weights(4, 1)) + 0.1, one=np.float32([0.3]), **norm("n", 4, gamma=gamma))
    model = graph(around(f"r = {act} z = BN(r, n)"), **given)
    folds_to(model, f"Conv Conv {'PRelu' if act == 'PRelu(c, a)' else 'LeakyRelu'}", *LENGTHS)


@pytest.mark.parametrize("act", ["LeakyRelu<alpha=0.2>(c)", "PRelu(c, a)"])
def test_a_positive_scale_goes_back_through_a_sloped_activation(act: str) -> None:
    given = convolutions(a=np.abs(weights(4, 1)), g=np.abs(weights(4, 1)) + 0.1)
    model = graph(around(f"r = {act} s = Mul(r, g) z = Sigmoid(s)"), **given)
    folds_to(model, f"Conv Conv Sigmoid {act.partition('(')[0].partition('<')[0]}", *LENGTHS)


def test_a_negative_scale_goes_back_through_a_positive_slope_which_turns_over() -> None:
    # f(s x; a) = (a s) f(x; 1/a) for s < 0
    op = operator(
        graph("(float[N,2,L] x) => (float[N,2,L] y) { y = PRelu(x, a) }", a=np.float32([[0.5], [0.25]])), "PRelu"
    )
    (x,), (y,) = op.inputs, op.outputs
    back = op.spread(Gauges({y: Affine.along(1, 3, np.float64([2, -2]), np.zeros(2))}))[x]
    np.testing.assert_array_equal(back.scale.ravel(), [2, -8])
    forward = op.spread(Gauges({x: back}))[y]
    np.testing.assert_array_equal(forward.scale.ravel(), [2, -2])
    np.testing.assert_array_equal(op.rewritten(Gauges({x: back})).ravel(), [0.5, 4])


@pytest.mark.parametrize("gamma", ["mixed", "negative"])
def test_a_negative_scale_before_a_sloped_activation_keeps_the_function(gamma: str) -> None:
    text = "s = Sigmoid(c) a = Mul(s, g) z = PRelu(a, k)"
    sign = -1 if gamma == "negative" else np.float32([[1], [-1], [1], [-1]])
    given = convolutions(k=np.float32([[0.5], [0.25], [0.1], [2]]), g=sign * (np.abs(weights(4, 1)) + 0.1))
    model = graph(around(text), **given)
    after, _ = folded(model)
    same_function(model, after, *LENGTHS)


def test_a_shift_does_not_pass_a_sloped_activation() -> None:
    model = graph(around("s = Sigmoid(c) a = Add(s, t) z = LeakyRelu<alpha=0.2>(a)"), **convolutions(t=weights(4, 1)))
    stays(model, "a shift does not pass through 'LeakyRelu_3' (LeakyRelu)", *LENGTHS)


def test_a_negative_scale_does_not_pass_a_slope_of_0() -> None:
    op = operator(
        graph("(float[N,2,L] x) => (float[N,2,L] y) { y = PRelu(x, a) }", a=np.float32([[0.5], [0]])), "PRelu"
    )
    for tensor in (*op.inputs, *op.outputs):
        with pytest.raises(
            Refused, match="a negative scale passes through 'PRelu_0' \\(PRelu\\) only where its slope is"
        ):
            op.spread(Gauges({tensor: Affine.of(np.full((1, 1, 1), -2.0), 0.0)}))


# --- what nothing passes ----------------------------------------------------------------------------------------------

SMOOTH = ["Sigmoid", "Tanh", "Elu", "Softplus", "Exp", "Erf", "Softsign", "HardSigmoid", "HardSwish", "Gelu"]


@pytest.mark.parametrize("op", SMOOTH)
def test_a_batchnorm_on_a_shared_tensor_before_a_smooth_activation_stays(op: str) -> None:
    text = f"(float[N,3,L] x) => (float[N,3,L] y, float[N,3,L] z) {{ y = Sigmoid(x) a = BN(y, n) z = {op}(a) }}"
    sentence = f"'{op}_2' ({op}) is n"
    stays(graph(text, opset=20, **norm("n", 3)), sentence, *LENGTHS)


@pytest.mark.parametrize("op", ["Sigmoid", "Tanh", "Elu", "Softplus", "Erf", "Gelu"])
def test_a_carrier_passes_a_smooth_activation_as_what_that_makes_of_it(op: str) -> None:
    model = graph(around(f"r = {op}(c) z = BN(r, n)"), opset=20, **convolutions(**norm("n", 4)))
    _, report = folds_to(model, f"Conv Conv {op}", *LENGTHS)
    assert report.carriers == 1


def test_nothing_passes_softmax_over_the_channels() -> None:
    model = graph(around("r = Softmax<axis=1>(c) z = BN(r, n)"), **convolutions(**norm("n", 4)))
    after, report = folded(model)
    assert "BatchNormalization" not in operators(after)  # the shift is put before the convolution in one Pad
    assert "Pad" in operators(after)
    assert report.carriers == 1
    same_function(model, after, *LENGTHS)


# --- affines themselves -----------------------------------------------------------------------------------------------


def test_two_batchnorms_become_one_where_neither_can_go() -> None:
    text = "(float[N,3,L] x) => (float[N,3,L] y) { s = Sigmoid(x) a = BN(s, n) b = BN(a, m) y = Tanh(b) }"
    model = graph(text, **norm("n", 3), **norm("m", 3))
    after, report = folded(model)
    assert operators(after) == ["BatchNormalization", "Sigmoid", "Tanh"]
    assert [f.folded for f in report.folds].count(True) == 1
    same_function(model, after, *LENGTHS)


DECOMPOSED = [
    "a = Sub(u, m) b = Div(a, s) d = Mul(b, g) z = Add(d, t)",
    "a = Mul(u, g) z = Add(a, t)",
    "a = Mul(g, u) z = Add(t, a)",
    "a = Add(u, t) z = Mul(a, g)",
    "a = Sub(t, u) z = Mul(a, g)",
    "a = Div(u, s) z = Sub(a, m)",
]


@pytest.mark.parametrize("nodes", DECOMPOSED)
def test_a_batchnorm_in_pieces_goes_whole(nodes: str) -> None:
    parts = {"m": weights(4, 1, seed=1), "s": 1 + weights(4, 1, seed=2) ** 2}
    parts |= {"g": weights(4, 1, seed=3), "t": weights(4, 1, seed=4)}
    model = graph(around(f"u = Relu(c) {nodes}"), **convolutions(**parts))
    folds_to(model, "Conv Conv Relu", *LENGTHS)


def test_a_constant_divided_by_the_tensor_is_no_affine() -> None:
    model = graph(around("u = Sigmoid(c) d = Div(t, u) z = BN(d, n)"), **convolutions(t=weights(4, 1), **norm("n", 4)))
    assert "Div" in operators(folded(model)[0])
    same_function(model, folded(model)[0], *LENGTHS)


def test_a_constant_larger_than_the_tensor_is_no_affine() -> None:
    text = (
        "(float[N,1,L] x) => (float[N,5,M] y) { r = Sigmoid(x) m = Mul(r, g) z = BN(m, n) y = Conv<pads=[1,1]>(z, v) }"
    )
    model = graph(text, v=weights(5, 4, 3), g=weights(4, 1), **norm("n", 4))
    after, _ = folded(model)
    assert "Mul" in operators(after)
    same_function(model, after, (2, 1, 9))


@pytest.mark.parametrize("divisor", [0.0, 1e-310, np.inf, np.nan])
def test_a_divisor_without_a_finite_reciprocal_is_left_alone(divisor: float) -> None:
    text = "(double[N,3,L] x) => (double[N,4,L] y) { c = Conv(x, w) d = Div(c, s) y = Relu(d) }"
    model = graph(text, w=weights(4, 3, 1, dtype=np.float64), s=np.float64([[divisor], [1], [2], [3]]))
    assert operators(folded(model)[0]) == ["Conv", "Div", "Relu"]


def test_adding_0_and_multiplying_by_1_hide_nothing() -> None:
    nodes = "a = Add(c, zero) b = Mul(a, one) d = Identity(b) z = BN(d, n)"
    model = graph(around(nodes), **convolutions(zero=np.float32(0), one=np.float32([1]), **norm("n", 4)))
    after, report = folded(model)
    assert report.affines_after == 0
    same_function(model, after, *LENGTHS)


@pytest.mark.parametrize(
    ("dropout", "opset"),
    [("Dropout<ratio=0.5>(c)", 11), ("Dropout(c, half)", 13), ("Dropout(c, half, no)", 22), ("Identity(c)", 17)],
)
def test_dropout_in_inference_and_identity_let_everything_pass(dropout: str, opset: int) -> None:
    given = {"half": np.float32(0.5), "no": np.array(False)} if opset > 11 else {}
    model = graph(around(f"r = {dropout} z = BN(r, n)"), opset=opset, **convolutions(**given, **norm("n", 4)))
    after, report = folded(model)
    assert report.affines_after == 0
    same_function(model, after, *LENGTHS)


def test_dropout_in_training_lets_nothing_pass() -> None:
    nodes = "u = Sigmoid(c) r = BN(u, n) z0 = Dropout(r, half, yes) z = Sigmoid(z0)"
    given = convolutions(half=np.float32(0.5), yes=np.array(True), **norm("n", 4))
    _, report = folded(graph(around(nodes), **given))
    assert "no rule takes a per-channel scale or shift through 'Dropout_3' (Dropout)" in "; ".join(
        report.folds[0].reasons
    )


def test_a_scale_of_0_stays_where_nothing_can_be_silenced_before_it() -> None:
    text = "(float[N,3,L] x) => (float[N,3,L] y, float[N,3,L] z) { y = Sigmoid(x) a = BN(y, n) z = Tanh(a) }"
    stays(graph(text, **norm("n", 3, gamma=[0, 1, -1])), "is neither linear nor positively homogeneous", *LENGTHS)


def test_an_affine_in_the_way_takes_one_more_channel_as_it_is() -> None:
    op = operator(graph("(float[N,2,L] x) => (float[N,2,L] y) { y = BN(x, n) }", **norm("n", 2)), "BatchNormalization")
    wide = op.with_channel({op.inputs[0]: AddedChannel(1, 2), op.outputs[0]: AddedChannel(1, 2)})
    assert wide.scale.ravel()[2] == 1
    assert wide.shift.size == 3
    assert wide.shift.ravel()[2] == 0


def test_shape_reads_no_numbers_so_any_scale_will_do_but_one_more_channel_will_not() -> None:
    model = graph("(float[N,3,L] x) => (int64[3] y) { c = Conv(x, w) y = Shape(c) }", w=weights(4, 3, 1))
    op = next(op for op in net_of(model).ops if op.node.op_type == "Shape")
    assert op.spread(Gauges({op.inputs[0]: Affine.of(np.full((1, 1, 1), 2.0), 0.0)})) == {}
    with pytest.raises(Refused, match="cannot carry one more channel"):
        op.add_channel({op.inputs[0]: AddedChannel(1, 4)})
