"""Products with constants that leave some axes alone: an affine along these passes."""

from __future__ import annotations

import numpy as np
import pytest
from tests.export.fold.graphs import folded, folds_to, graph, left, norm, same_function, stays, weight_of, weights

GAMMAS = ["mixed", np.float32([0.5, 0, -1, 1e-6])]


@pytest.mark.parametrize("add", ["", "a = Add(p, b)"])
@pytest.mark.parametrize("gamma", GAMMAS, ids=["mixed", "zero"])
@pytest.mark.parametrize("operator", ["MatMul(c, t)", 'Einsum<equation="ncl,lm->ncm">(c, t)'])
def test_a_batchnorm_behind_a_linear_along_time_goes_back_through_it(
    operator: str, gamma: str | np.ndarray, add: str
) -> None:
    text = f"""(float[N,3,9] x) => (float[N,4,5] y) {{
        c = Conv(x, w)  p = {operator}  {add}  n = BN({"a" if add else "p"}, n)  y = Tanh(n) }}"""
    model = graph(text, w=weights(4, 3, 3), t=weights(7, 5), b=weights(5), **norm("n", 4, gamma=gamma))
    after, _ = folds_to(model, f"Conv {operator[:6]} Add Tanh", (2, 3, 9))
    # The weights along time are those of all channels: they stay as they are.
    np.testing.assert_array_equal(weight_of(after, op=operator[:6]), weights(7, 5))


def test_a_batchnorm_before_a_linear_along_time_goes_on_through_it() -> None:
    text = """(float[N,4,7] x) => (float[N,3,5] y) {
        s = Sigmoid(x)  n = BN(s, n)  p = MatMul(n, t)  a = Add(p, b)  c = Conv(a, w)  y = Tanh(c) }"""
    given = {"w": weights(3, 4, 1), "t": weights(7, 5), "b": weights(5)}
    folds_to(graph(text, **given, **norm("n", 4)), "Sigmoid MatMul Add Conv Tanh", (2, 4, 7))
    # A channel that is scaled by 0 is another constant at each position, which no convolution takes.
    stays(graph(text, **given, **norm("n", 4, gamma=GAMMAS[1])), "'Conv_4' (Conv) weighs whole channels", (2, 4, 7))


def test_batchnorms_on_both_sides_of_a_linear_along_time_become_one_bias() -> None:
    text = """(float[N,3,7] x) => (float[N,4,5] y) {
        c = Conv(x, w)  n = BN(c, n)  p = MatMul(n, t)  m = BN(p, m)  y = Tanh(m) }"""
    model = graph(text, w=weights(4, 3, 1), t=weights(7, 5), **norm("n", 4), **norm("m", 4))
    after, _ = folds_to(model, "Conv MatMul Add Tanh", (2, 3, 7))
    (bias,) = (i for i in after.graph.initializer if i.name.endswith("bias") and list(i.dims)[-2:] == [4, 5])
    assert bias.dims[-1] == 5


def test_no_shift_of_a_padded_tensor_passes_a_linear_along_time() -> None:
    text = """(float[N,4,5] x) => (float[N,4,3] y) {
        s = Sigmoid(x)  n = BN(s, n)  q = Pad(n, k)  p = MatMul(q, t)  y = Tanh(p) }"""
    model = graph(text, k=np.int64([0, 0, 1, 0, 0, 1]), t=weights(7, 3), **norm("n", 4))
    after, _ = folded(model)
    same_function(model, after, (2, 4, 5))


@pytest.mark.parametrize(
    ("equation", "constant"),
    [
        ("nkctv,kvw->nctw", (2, 6, 6)),  # ST-GCN
        ("kvw,nkctv->nctw", (2, 6, 6)),
        ("nkctv,kvw->nkctw", (2, 6, 6)),
        ("nkctv,vwk->nwctk", (6, 3, 2)),
        ("nkctv,kctv->nkctv", (2, 4, 5, 6)),  # an entry for each weight
    ],
)
@pytest.mark.parametrize("add", ["", "a = Add(p, b)"])
def test_batchnorms_around_a_sum_over_a_graphs_edges_fold(equation: str, constant: tuple[int, ...], add: str) -> None:
    terms, result = equation.split("->")
    lengths = {"n": "N", "k": "2", "c": "4", "t": "5", "v": "6", "w": str(dict(zip("vw", (6, 3), strict=True))["w"])}
    shape = dict(zip(next(t for t in terms.split(",") if "n" not in t), constant, strict=True))
    lengths |= {name: str(size) for name, size in shape.items()}
    out, axis = ",".join(lengths[name] for name in result), result.index("c")
    order = [0, axis, *[a for a in range(1, len(result)) if a != axis]]
    turned = ",".join(out.split(",")[a] for a in order)
    inputs = "a, r" if terms[0] == "k" else "r, a"
    text = f"""(float[N,3,5,6] x) => (float[{turned}] y) {{
        c = Conv(x, w)  r = Reshape(c, s)  p = Einsum<equation="{equation}">({inputs.replace("a", "e")})
        {add}  q = Transpose<perm={order}>({"a" if add else "p"})  m = BN(q, m)  y = Tanh(m) }}"""
    given = {"w": weights(8, 3, 1, 1), "s": np.int64([0, 2, 4, 5, 6]), "e": weights(*constant)}
    bias = weights(*[int(lengths[name]) if name in "cv" else 1 for name in result])
    folds_to(graph(text, **given, b=bias, **norm("m", 4)), "Conv Reshape Einsum Add Transpose Tanh", (2, 3, 5, 6))


def test_a_matmul_with_several_matrices_takes_a_batchnorm_back() -> None:
    text = """(float[N,8,6] x) => (float[N,4,2,3] y) {
        c = Conv(x, k)  r = Reshape(c, s)  p = MatMul(r, w)  t = Transpose<perm=[0,2,1,3]>(p)  n = BN(t, n)
        y = Tanh(n) }"""
    model = graph(text, k=weights(8, 8, 1), s=np.int64([0, 2, 4, 6]), w=weights(2, 6, 3), **norm("n", 4))
    after, _ = folds_to(model, "Conv Reshape MatMul Add Transpose Tanh", (2, 8, 6))
    assert weight_of(after, op="MatMul").shape == (2, 6, 3)


@pytest.mark.parametrize(
    ("equation", "shape", "result"),
    [
        ("ncl,oc->nlo", (5, 4), "N,L,5"),  # the channels move
        ("ncl,oc->nclo", (5, 4), "N,4,L,5"),  # nothing is summed
        ("ncl,c->nl", (4,), "N,L"),
        ("ncl,kco->nlo", (3, 4, 5), "N,L,5"),
    ],
)
def test_an_einsum_with_any_constant_takes_an_affine_of_the_axes_that_it_weighs(
    equation: str, shape: tuple[int, ...], result: str
) -> None:
    text = f"""(float[N,4,L] x) => (float[{result}] y) {{
        r = Sigmoid(x)  n = BN(r, n)  y = Einsum<equation="{equation}">(n, w) }}"""
    model = graph(text, w=weights(*shape), **norm("n", 4))
    after, report = folded(model)
    assert not any("no rule" in reasons for reasons in left(report).values())
    same_function(model, after, (2, 4, 9), (3, 4, 17))


def test_a_shift_that_is_added_up_over_a_dynamic_length_stays() -> None:
    text = """(float[N,4,L] x) => (float[N,5] y) {
        r = Sigmoid(x)  n = BN(r, n)  y = Einsum<equation="ncl,oc->no">(n, w) }"""
    model = graph(text, w=weights(5, 4), **norm("n", 4))
    stays(model, "how often it would add the shift is not known", (2, 4, 9), (3, 4, 17))


@pytest.mark.parametrize("seed", range(40))
def test_any_einsum_between_two_batchnorms_is_the_same_function(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = {"n": 2, "a": 4, "b": 3, "c": 5, "d": 3, "e": 4}
    data = ["n", *rng.permutation(list("abc"))[: rng.integers(1, 4)]]
    constant = list(rng.permutation([*rng.permutation(data[1:])[: rng.integers(1, 4)], *"de"[: rng.integers(0, 3)]]))
    either = [name for name in dict.fromkeys([*data[1:], *constant]) if rng.random() < 0.7]
    result = ["n", *rng.permutation(either)] if rng.random() < 0.8 else list(rng.permutation(["n", *either]))
    if len(result) < 2:
        result = ["n", data[1]]
    equation = f"{''.join(data)},{''.join(constant)}->{''.join(result)}"
    x, y = ("[" + ",".join(str(sizes[name]) for name in names) + "]" for names in (data, result))
    gamma = rng.uniform(-1, 1, sizes[data[1]]) * (rng.random(sizes[data[1]]) < 0.8)
    text = f"""(float{x} x) => (float{y} y) {{
        r = Relu(x)  n = BN(r, n)  p = Einsum<equation="{equation}">(n, w)  m = BN(p, m)  y = Relu(m) }}"""
    shape = tuple(sizes[name] for name in constant)
    size = sizes[result[1]]
    model = graph(text, w=weights(*shape, seed=seed), **norm("n", sizes[data[1]], gamma=gamma), **norm("m", size))
    after, _ = folded(model)
    same_function(model, after, tuple(sizes[name] for name in data))


def test_an_einsum_whose_matrix_is_broadcast_along_the_summed_axis_takes_nothing() -> None:
    text = """(float[N,3,7] x) => (float[N,4,7] y) {
        c = Conv(x, w)  n = BN(c, n)  y = Einsum<equation="ncl,oc->nol">(n, m) }"""
    model = graph(text, w=weights(3, 3, 1), m=weights(4, 1), **norm("n", 3))
    same_function(model, folded(model)[0], (2, 3, 7))
    text = text.replace("c = Conv(x, w)", "c = Sigmoid(x)")
    stays(graph(text, m=weights(4, 1), **norm("n", 3)), "no rule takes", (2, 3, 7))
