"""Affines that are added to a linear operator of the same tensor."""

from __future__ import annotations

import numpy as np
import pytest
from tests.export.fold.graphs import folded, folds_to, graph, norm, operators, same_function, weights

GAMMA = np.float32([0.5, -2.0, 0.0, 1e-6])
LENGTHS = [(2, 4, 9), (3, 4, 1), (1, 4, 24)]
CONVS = {
    "dense": ("pads=[1,1]", (4, 4, 3)),
    "depthwise": ("pads=[1,1],group=4", (4, 1, 3)),
    "grouped": ("pads=[2,2],dilations=[2],group=2", (4, 2, 3)),
    "one tap": ("dilations=[1]", (4, 4, 1)),
    "causal": ("pads=[2,0]", (4, 4, 3)),
    "even": ("pads=[1,2]", (4, 4, 4)),
    "same": ('auto_pad="VALID"', (4, 4, 1)),
}


@pytest.mark.parametrize("total", ["Add(c, n)", "Add(n, c)", "Sub(c, n)"])
@pytest.mark.parametrize("conv", CONVS)
def test_a_batchnorm_beside_a_convolution_goes_into_its_tap_in_the_middle(conv: str, total: str) -> None:
    attributes, shape = CONVS[conv]
    text = f"""(float[N,4,L] x) => (float[N,4,L] y) {{
        s = Sigmoid(x)  c = Conv<{attributes}>(s, w)  n = BN(s, n)  a = {total}  y = Tanh(a) }}"""
    model = graph(text, w=weights(*shape), **norm("n", 4, gamma=GAMMA))
    expected = "Sigmoid Conv Tanh" if "auto_pad" not in attributes else ""
    if expected:
        folds_to(model, expected, *LENGTHS)
    else:
        same_function(model, folded(model)[0], *LENGTHS)


def test_the_branches_of_a_repvgg_block_become_convolutions() -> None:
    text = """(float[N,4,L] x) => (float[N,4,L] y) {
        s = Relu(x)  a = Conv<pads=[1,1]>(s, v)  m = BN(a, m)  b = Conv(s, w)  n = BN(b, n)  i = BN(s, i)
        j = Add(m, n)  k = Add(j, i)  y = Relu(k) }"""
    norms = {**norm("m", 4, gamma=GAMMA), **norm("n", 4), **norm("i", 4, gamma=GAMMA[::-1])}
    _, report = folds_to(
        graph(text, v=weights(4, 4, 3), w=weights(4, 4, 1), **norms), "Relu Conv Conv Add Relu", *LENGTHS
    )
    assert "which reads the same tensor" in report.folds[-1].how


@pytest.mark.parametrize("order", ["Add(c, s)", "Add(s, c)", "Sub(c, s)"])
def test_a_skip_before_a_batchnorm_goes_into_the_convolution_that_it_skips(order: str) -> None:
    text = f"""(float[N,4,L] x) => (float[N,4,L] y) {{
        s = Sigmoid(x)  c = Conv<pads=[1,1],group=4>(s, w)  a = {order}  n = BN(a, n)  y = Tanh(n) }}"""
    folds_to(graph(text, w=weights(4, 1, 3), **norm("n", 4, gamma=GAMMA)), "Sigmoid Conv Tanh", *LENGTHS)


@pytest.mark.parametrize("place", ["MatMul(s, w)", "MatMul(w, s)"])
def test_a_batchnorm_beside_a_product_goes_into_its_matrix_where_that_weighs_its_channels(place: str) -> None:
    text = f"""(float[N,4,4] x) => (float[N,4,4] y) {{
        s = Sigmoid(x)  p = {place}  n = BN(s, n)  a = Add(p, n)  y = Tanh(a) }}"""
    model = graph(text, w=weights(4, 4), **norm("n", 4))
    after, _ = folded(model)
    assert ("BatchNormalization" in operators(after)) == (place == "MatMul(s, w)")
    same_function(model, after, (2, 4, 4))


@pytest.mark.parametrize(
    ("nodes", "result"),
    [
        ("c = Conv<pads=[1,1]>(s, w)  n = BN(s, n)  a = Sub(n, c)  y = Tanh(a)", "L"),  # the product is subtracted
        ("c = Conv<pads=[1,1]>(s, w)  n = BN(s, n)  a = Add(n, c)  t = Tanh(c)  y = Add(a, t)", "L"),  # read elsewhere
        ("c = Conv<pads=[1,1]>(s, w)  n = BN(s, n)  a = Add(n, c)  t = Tanh(n)  y = Add(a, t)", "L"),
        ("c = Conv<pads=[1,1]>(x, w)  n = BN(s, n)  a = Add(n, c)  y = Tanh(a)", "L"),  # another tensor
        ("c = Conv<pads=[1,1]>(s, w)  n = BN(s, n)  y = Add(n, c)", "L"),  # the output itself
        ("c = Conv<pads=[1,1]>(s, w)  n = BN(s, n)  a = Add(n, n)  b = Add(a, c)  y = Tanh(b)", "L"),
        ("c = Conv<strides=[2]>(s, w)  n = BN(s, n)  a = Add(n, c)  y = Tanh(a)", "3"),  # one output, spread over all
    ],
)
def test_where_the_two_are_no_one_convolution_the_function_stays(nodes: str, result: str) -> None:
    model = graph(
        f"(float[N,4,{result}] x) => (float[N,4,{result}] y) {{ s = Sigmoid(x) {nodes} }}",
        w=weights(4, 4, 3),
        **norm("n", 4, gamma=GAMMA),
    )
    after, _ = folded(model)
    same_function(model, after, *([(2, 4, 3)] if result == "3" else LENGTHS))


@pytest.mark.parametrize("mean", [3.0, 1000.0])
def test_a_batchnorm_with_a_mean_much_larger_than_its_deviation_stays_beside_the_convolution(mean: float) -> None:
    # The sum of a convolution would round each of its many terms at the size of the mean, which cancels in BN alone.
    text = """(float[N,4,L] x) => (float[N,4,L] y) {
        s = Relu(x)  c = Conv<pads=[1,1]>(s, w)  n = BN(s, n)  a = Add(c, n)  y = Tanh(a) }"""
    far = norm("n", 4, gamma=np.ones(4), beta=np.zeros(4), mean=np.full(4, mean), var=np.full(4, 0.25))
    _, report = folded(graph(text, w=weights(4, 4, 3), **far))
    assert not report.folds[0].folded
    assert "which reads the same tensor" not in report.folds[0].how
