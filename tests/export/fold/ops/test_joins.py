"""Where branches meet, their scales must agree; shifts add up in a sum and do not pass a product."""

from __future__ import annotations

import numpy as np
import pytest
from tests.export.fold.graphs import folded, folds_to, graph, norm, operator, operators, same_function, weights

from normfold.export.fold.affine import Affine
from normfold.export.fold.channels import AddedChannel
from normfold.export.fold.net import Gauges, Refused

LENGTHS = ((2, 3, 12), (3, 3, 23))


def text(nodes: str, out: str = "N,4,M") -> str:
    return f"(float[N,3,L] x) => (float[{out}] y) {{ {nodes} }}"


# --- sums -------------------------------------------------------------------------------------------------------------

SUMS = ["Add(a, b)", "Add(b, a)", "Sub(a, b)", "Sub(b, a)", "Sum(a, b)", "Sum(a, b, e)"]


@pytest.mark.parametrize("gamma", ["positive", "mixed"])
@pytest.mark.parametrize("add", SUMS)
def test_a_batchnorm_behind_a_sum_goes_back_into_all_branches(add: str, gamma: str) -> None:
    nodes = f"a = Conv(x, w) b = Conv(x, v) e = Conv(x, u) s = {add} n = BN(s, n) y = Sigmoid(n)"
    model = graph(
        text(nodes),
        w=weights(4, 3, 3),
        v=weights(4, 3, 3, seed=1),
        u=weights(4, 3, 3, seed=2),
        **norm("n", 4, gamma=gamma),
    )
    after, report = folded(model)
    assert report.affines_after == 0
    same_function(model, after, *LENGTHS)


@pytest.mark.parametrize("add", SUMS[:5])
def test_a_batchnorm_on_one_branch_of_a_sum_goes_into_it(add: str) -> None:
    nodes = f"c = Conv(x, w) a = BN(c, n) b = Conv(x, v) s = {add} y = Sigmoid(s)"
    model = graph(text(nodes), w=weights(4, 3, 3), v=weights(4, 3, 3, seed=1), **norm("n", 4))
    folds_to(model, f"Conv Conv {add.partition('(')[0]} Sigmoid", *LENGTHS)


def test_a_shift_before_a_sum_goes_into_the_other_branch() -> None:
    # relu(c) + t + b: the convolution b bears t.
    nodes = "c = Conv(x, w) r = Sigmoid(c) a = Add(r, t) b = Conv(x, v) s = Add(a, b) y = Sigmoid(s)"
    model = graph(text(nodes), w=weights(4, 3, 3), v=weights(4, 3, 3, seed=1), t=weights(4, 1))
    folds_to(model, "Add Conv Conv Sigmoid Sigmoid", *LENGTHS)


def test_a_shift_is_not_put_on_a_branch_of_one_channel_that_is_broadcast() -> None:
    nodes = "c = Conv(x, w) a = Sigmoid(c) b = Conv(x, v) s = Add(a, b) n = Add(s, t) y = Sigmoid(n)"
    model = graph(text(nodes), w=weights(4, 3, 3), v=weights(1, 3, 3), t=weights(4, 1))
    after, _ = folded(model)
    same_function(model, after, *LENGTHS)


def test_a_scale_by_channel_does_not_pass_a_sum_with_a_branch_of_one_channel() -> None:
    model = graph("(float[N,4,L] x, float[N,1,L] z) => (float[N,4,L] y) { y = Add(x, z) }")
    op = operator(model, "Add")
    with pytest.raises(Refused, match="'Add_0' \\(Add\\) broadcasts one of its branches along the channels"):
        op.spread(Gauges({op.outputs[0]: Affine.along(1, 3, np.arange(1.0, 5), np.zeros(4))}))
    with pytest.raises(Refused, match="broadcasts one of its branches"):
        op.add_channel({op.inputs[0]: AddedChannel(1, 4)})


def test_a_sum_of_tensors_of_two_ranks_lets_nothing_pass() -> None:
    op = operator(graph("(float[N,4,L] x, float[4,L] z) => (float[N,4,L] y) { y = Add(x, z) }"), "Add")
    with pytest.raises(Refused, match="broadcasts one of its branches"):
        op.spread(Gauges({op.outputs[0]: Affine.of(np.full((1, 1, 1), 2.0), 0.0)}))


def test_a_sum_adds_no_channel_scaled_by_0_to_one_that_is_not() -> None:
    op = operator(graph("(float[N,2,L] x, float[N,2,L] z) => (float[N,2,L] y) { y = Add(x, z) }"), "Add")
    with pytest.raises(Refused, match="adds a channel that is scaled by 0 to one that is not"):
        op.spread(Gauges({op.inputs[0]: Affine.along(1, 3, np.float64([0, 1]), np.zeros(2))}))


def test_shifts_of_branches_add_up_with_their_signs() -> None:
    op = operator(graph("(float[N,2,L] x, float[N,2,L] z) => (float[N,2,L] y) { y = Sub(x, z) }"), "Sub")
    (x, z), (y,) = op.inputs, op.outputs
    shifted = (
        Affine.along(1, 3, np.float64([2, 2]), np.float64([3, 4])),
        Affine.along(1, 3, np.float64([2, 2]), np.float64([1, 9])),
    )
    found = op.spread(Gauges({x: shifted[0], z: shifted[1]}))[y]  # (2 x + 3) - (2 z + 1) = 2 (x - z) + 2
    assert found.equals(Affine.along(1, 3, np.float64([2, 2]), np.float64([2, -5])))
    with pytest.raises(Refused, match="the branches of 'Sub_0' \\(Sub\\) would need other shifts than they have"):
        op.spread(Gauges({x: shifted[0], z: shifted[1], y: Affine.of(np.full((1, 1, 1), 2.0), 7.0)}))


def test_two_scales_do_not_meet_in_a_sum() -> None:
    # Sigmoids before both branches: neither scale can go back, and they differ.
    nodes = "p = Sigmoid(x) q = Tanh(x) a = Mul(p, g) b = Mul(q, h) s = Add(a, b) y = Sigmoid(s)"
    model = graph(text(nodes, "N,3,L"), g=weights(3, 1), h=weights(3, 1, seed=1))
    after, report = folded(model)
    assert report.affines_after == 2
    same_function(model, after, *LENGTHS)


def test_a_tensor_added_to_itself_is_doubled_with_what_it_is_scaled_by() -> None:
    nodes = "c = Conv(x, w) s = Add(c, c) n = BN(s, n) y = Sigmoid(n)"
    model = graph(text(nodes), w=weights(4, 3, 3), **norm("n", 4))
    after, _ = folded(model)
    same_function(model, after, *LENGTHS)


def test_a_residual_stream_is_rescaled_where_all_its_readers_are_linear() -> None:
    nodes = (
        """c = Conv(x, w)  d = Conv(c, k)  r = Relu(d)  e = Conv(r, k)  s = Add(c, e)  n = BN(s, n)  y = Conv(n, k)"""
    )
    model = graph(text(nodes), w=weights(4, 3, 3), k=weights(4, 4, 1), **norm("n", 4))
    folds_to(model, "Conv Conv Relu Conv Add Conv", *LENGTHS)


def test_a_carrier_passes_a_sum_with_zeros_in_all_branches_but_one() -> None:
    nodes = """c = Conv(x, w)  e = Conv(x, u)  s = Add(c, e)  r = Relu(s)  n = BN(r, n)  y = Conv<pads=[1,1]>(n, v)"""
    model = graph(text(nodes), w=weights(4, 3, 3), u=weights(4, 3, 3, seed=1), v=weights(4, 4, 3), **norm("n", 4))
    _, report = folds_to(model, "Add Conv Conv Conv Relu", *LENGTHS)
    assert report.carriers == 1


def test_a_new_channel_is_refused_where_branches_would_carry_it_at_different_places() -> None:
    op = operator(graph("(float[N,4,L] x, float[N,4,L] z) => (float[N,4,L] y) { y = Add(x, z) }"), "Add")
    x, z = op.inputs
    with pytest.raises(Refused, match="would carry the new channel at different places"):
        op.add_channel({x: AddedChannel(1, 4), z: AddedChannel(1, 2)})
    found = op.add_channel({x: AddedChannel(1, 4, value=3.0)})
    assert found[z].value == 0
    assert found[op.outputs[0]].value == 3


def test_a_tensor_added_to_itself_gets_no_carrier() -> None:
    op = operator(graph("(float[N,4,L] x) => (float[N,4,L] y) { y = Add(x, x) }"), "Add")
    with pytest.raises(Refused, match="adds a tensor to itself"):
        op.add_channel({op.inputs[0]: AddedChannel(1, 4)})


# --- products ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gate", ["Mul(a, b)", "Mul(b, a)", "Div(a, b)"])
def test_a_scale_passes_a_gate_forward(gate: str) -> None:
    nodes = f"p = Sigmoid(x) a = Mul(p, g) q = Tanh(x) t = Exp(q) b = Sigmoid(t) m = {gate} y = Conv<pads=[1,1]>(m, v)"
    model = graph(text(nodes), g=weights(3, 1), v=weights(4, 3, 3))
    folds_to(model, f"Sigmoid Tanh Exp Sigmoid {gate.partition('(')[0]} Conv", *LENGTHS)


def test_a_scale_goes_back_through_squeeze_and_excitation() -> None:
    nodes = """c = Conv(x, w)  p = GlobalAveragePool(c)  q = Conv(p, k)  s = Sigmoid(q)
        m = Mul(c, s)  n = Mul(m, g)  y = Sigmoid(n)"""
    model = graph(text(nodes), w=weights(4, 3, 3), k=weights(4, 4, 1), g=weights(4, 1))
    folds_to(model, "Conv Conv GlobalAveragePool Sigmoid Mul Sigmoid", *LENGTHS)


def test_a_shift_does_not_pass_a_gate() -> None:
    op = operator(graph("(float[N,2,L] x, float[N,2,L] z) => (float[N,2,L] y) { y = Mul(x, z) }"), "Mul")
    for tensor in (*op.inputs, *op.outputs):
        with pytest.raises(
            Refused, match="a shift does not pass through 'Mul_0' \\(Mul\\), which multiplies two computed"
        ):
            op.spread(Gauges({tensor: Affine.of(np.ones((1, 1, 1)), 1.0)}))


def test_a_gate_behind_a_batchnorm_keeps_its_function() -> None:
    nodes = "c = Conv(x, w) r = Relu(c) n = BN(r, n) s = Sigmoid(c) m = Mul(n, s) y = Conv(m, k)"
    model = graph(text(nodes), w=weights(4, 3, 3), k=weights(4, 4, 1), **norm("n", 4))
    after, _ = folded(model)
    same_function(model, after, *LENGTHS)


def test_no_scale_of_0_passes_a_divisor() -> None:
    op = operator(graph("(float[N,2,L] x, float[N,2,L] z) => (float[N,2,L] y) { y = Div(x, z) }"), "Div")
    with pytest.raises(Refused, match="a channel is scaled by 0, and 'Div_0' \\(Div\\) divides by it"):
        op.spread(Gauges({op.inputs[1]: Affine.along(1, 3, np.float64([0, 1]), np.zeros(2))}))


def test_a_square_takes_no_scale_from_behind() -> None:
    nodes = "c = Conv(x, w) m = Mul(c, c) n = Mul(m, g) y = Sigmoid(n)"
    model = graph(text(nodes), w=weights(4, 3, 3), g=np.abs(weights(4, 1)))
    after, report = folded(model)
    assert "would need other scales than they have" in "; ".join(report.folds[0].reasons)
    same_function(model, after, *LENGTHS)


def test_a_product_of_two_ranks_lets_nothing_pass() -> None:
    op = operator(graph("(float[N,4,L] x, float[4,L] z) => (float[N,4,L] y) { y = Mul(x, z) }"), "Mul")
    with pytest.raises(Refused, match="broadcasts one of its inputs"):
        op.spread(Gauges({op.outputs[0]: Affine.of(np.full((1, 1, 1), 2.0), 0.0)}))


def test_one_more_channel_passes_a_product_of_two_tensors_and_no_quotient() -> None:
    mul, div = (
        operator(graph(f"(float[N,4,L] x, float[N,4,L] z) => (float[N,4,L] y) {{ y = {op}(x, z) }}"), op)
        for op in ("Mul", "Div")
    )
    found = mul.add_channel({mul.inputs[0]: AddedChannel(1, 4, value=3.0)})
    assert found[mul.outputs[0]].value == 3
    with pytest.raises(Refused, match="'Div_0' \\(Div\\) cannot carry one more channel"):
        div.add_channel({div.inputs[0]: AddedChannel(1, 4)})
    wide = operator(graph("(float[N,4,L] x, float[N,1,L] z) => (float[N,4,L] y) { y = Mul(x, z) }"), "Mul")
    with pytest.raises(Refused, match="broadcasts one of its inputs"):
        wide.add_channel({wide.inputs[0]: AddedChannel(1, 4)})


@pytest.mark.parametrize("join", ["Mul", "Add", "Sub"])
def test_one_more_channel_is_refused_where_it_would_come_to_two_places_of_a_join(join: str) -> None:
    nodes = f"""c = Conv(x, w)  r = Relu(c)  d = Conv(x, u)  v = Tanh(d)  n = BN(r, n)  k = Conv<pads=[1,1]>(n, k3)
        e = Concat<axis=1>(r, v)  f = Concat<axis=1>(v, r)  p = {join}(e, f)  q = Conv<pads=[1,1]>(p, q3)  y = Add(k, q)"""
    given = {"w": weights(8, 3, 3), "u": weights(8, 3, 3, seed=1), "k3": weights(4, 8, 3), "q3": weights(4, 16, 3)}
    model = graph(text(nodes), **given, **norm("n", 8))
    after, _ = folded(model)
    same_function(model, after, *LENGTHS)


@pytest.mark.parametrize("join", ["Mul", "Add"])
def test_a_join_says_of_every_tensor_where_one_more_channel_comes(join: str) -> None:
    op = operator(graph(f"(float[N,4,L] x, float[N,4,L] z) => (float[N,4,L] y) {{ y = {join}(x, z) }}"), join)
    (x, z), (y,) = op.inputs, op.outputs
    found = op.add_channel({x: AddedChannel(1, 4, value=3.0), y: AddedChannel(1, 2)})
    assert found[y].index == found[x].index == found[z].index == 4


def test_a_gate_of_a_network_of_two_branches_is_folded_around() -> None:
    # WaveNet's tanh(a) · sigmoid(b), a BatchNorm before each and one behind.
    nodes = """a0 = Conv(x, w)  b0 = Conv(x, u)  a1 = BN(a0, n)  b1 = BN(b0, m)  a = Tanh(a1)  b = Sigmoid(b1)
        g = Mul(a, b)  h = BN(g, k)  y = Conv(h, v)"""
    given = {"w": weights(4, 3, 3), "u": weights(4, 3, 3, seed=1), "v": weights(4, 4, 1)}
    model = graph(text(nodes), **given, **norm("n", 4), **norm("m", 4), **norm("k", 4))
    after, report = folds_to(model, "Conv Conv Tanh Sigmoid Mul Conv", *LENGTHS)
    assert "BatchNormalization" not in operators(after)
    assert all(f.folded for f in report.folds)
