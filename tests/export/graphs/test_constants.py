"""Constant values: initializers, Constant nodes, and the outputs of operators that read only constants."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tests.export.fold.graphs import folded, folds_to, graph, norm, operators, same_function, weights

from normfold.export.graphs.constants import Constants

LENGTHS = ((2, 3, 12), (3, 3, 23))


def read(model: onnx.ModelProto, name: str) -> np.ndarray | None:
    copy = ir.from_proto(model)
    values = {v.name: v for n in copy.graph.all_nodes() for v in n.outputs}
    values |= {v.name: v for v in (*copy.graph.initializers.values(), *copy.graph.inputs)}
    return Constants(copy.graph, copy.opset_imports[""]).get(values[name])


def of(nodes: str, **arrays: np.ndarray) -> onnx.ModelProto:
    return graph(f"(float[N,3] x) => (float[N,3] y) {{ {nodes} y = Relu(x) }}", **arrays)


A = np.float32([1, 2, 3])

NODES = [
    ("k = Constant<value_floats=[1.0,2.0,3.0]>()", A),
    ("k = Constant<value_float=2.0>()", np.float32(2)),
    ("k = Constant<value=float[3] {1.0,2.0,3.0}>()", A),
    ("k = Identity(a)", A),
    ("i = Identity(a) j = Identity(i) k = Identity(j)", A),
    ("k = Cast<to=11>(a)", A.astype(np.float64)),
    ("k = CastLike(a, d)", A.astype(np.float64)),
    ("k = CastLike(d, x)", A),
    ("h = Sqrt(a) k = CastLike(d, h)", A),
    ("k = Unsqueeze(a, one)", A[:, None]),
    ("s = Sqrt(a) r = Reciprocal(s) k = Mul(r, a)", A / np.sqrt(A)),
    ("s = Shape(a) k = ConstantOfShape(s)", np.zeros(3, np.float32)),
    ("k = Concat<axis=0>(a, a)", np.concatenate([A, A])),
    ("p, k = Split<axis=0>(a, sizes)", A[1:]),
]


@pytest.mark.parametrize(("nodes", "want"), NODES)
def test_what_is_made_of_constants_alone_is_known(nodes: str, want: np.ndarray) -> None:
    got = read(of(nodes, a=A, d=A.astype(np.float64), one=np.array([1]), sizes=np.array([1, 2])), "k")
    assert got is not None
    assert got.dtype == want.dtype
    np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize(
    "nodes",
    [
        "k = Identity(x)",
        "k = Add(a, x)",
        "k = RandomNormal<shape=[3]>()",
        "k = RandomNormalLike(a)",
        "k = CastLike(x, a)",
        "s = Shape(x) k = ConstantOfShape(s)",
    ],
)
def test_what_depends_on_the_input_or_on_chance_is_not_known(nodes: str) -> None:
    assert read(of(nodes, a=A), "k") is None


def test_an_operator_of_another_domain_is_not_run() -> None:
    model = of("k = Identity(a)", a=A)
    model.graph.node[0].domain = "com.example"
    model.opset_import.append(onnx.helper.make_opsetid("com.example", 1))
    assert read(model, "k") is None


def test_a_chain_as_long_as_the_graph_needs_no_recursion() -> None:
    nodes = "k0 = Identity(a) " + " ".join(f"k{i + 1} = Identity(k{i})" for i in range(1500))
    got = read(of(nodes, a=A), "k1500")
    assert got is not None
    np.testing.assert_array_equal(got, A)


def test_integers_of_a_computed_shape_are_known_where_they_are_constant() -> None:
    model = of(
        "s = Shape(x) f = Gather(s, zero) k = Concat<axis=0>(f, rest)", zero=np.array([0]), rest=np.array([4, -1])
    )
    copy = ir.from_proto(onnx.shape_inference.infer_shapes(model))
    value = next(v for n in copy.graph.all_nodes() for v in n.outputs if v.name == "k")
    assert Constants(copy.graph, 17).integers(value) == [None, 4, -1]


@pytest.mark.parametrize(
    ("ends", "place", "want"),
    [("start=0", 1, 3), ("start=1", 0, 3), ("start=-2,end=-1", 0, 3), ("start=0", 2, None), ("end=1", 0, None)],
)
def test_a_fixed_length_that_a_part_of_a_shape_holds_is_known(ends: str, place: int, want: int | None) -> None:
    text = f"(float[N,3,L] x) => (int64 k) {{ s = Shape<{ends}>(x) k = Gather(s, i) }}"
    got = read(graph(text, i=np.int64(place)), "k")
    assert (None if got is None else int(got)) == want


# --- initializers that are inputs too ---------------------------------------------------------------------------------


@pytest.mark.parametrize("ir_version", [4, 9])
def test_an_initializer_that_is_an_input_too_is_a_default_and_no_constant(ir_version: int) -> None:
    text = "(float[N,3,L] x, float[4,3,1] w) => (float[N,4,L] y) { c = Conv(x, w) y = BN(c, n) }"
    model = graph(text, ir_version=ir_version, w=weights(4, 3, 1), **norm("n", 4))
    after, _ = folded(model)
    assert operators(after) == ["BatchNormalization", "Conv"]
    assert [i.name for i in after.graph.input] == [i.name for i in model.graph.input]
    assert {t.name for t in after.graph.initializer} == {t.name for t in model.graph.initializer}


def test_what_is_made_of_a_default_is_no_constant_either() -> None:
    text = "(float[N,3,L] x, float[4,3,1] w) => (float[N,4,L] y) { v = Identity(w) c = Conv(x, v) y = BN(c, n) }"
    after, _ = folded(graph(text, w=weights(4, 3, 1), **norm("n", 4)))
    assert operators(after) == ["BatchNormalization", "Conv", "Identity"]


def test_a_default_of_the_outer_graph_is_no_constant_inside_a_branch() -> None:
    text = """(float[N,3,L] x, bool c, float[4,3,1] w) => (float[N,4,L] y) { y = If(c) <
        then_branch = t () => (float[N,4,L] a) { d = Conv(x, w)  a = BN(d, n) },
        else_branch = e () => (float[N,4,L] b) { b = Conv(x, w) }> }"""
    after, report = folded(graph(text, w=weights(4, 3, 1), **norm("n", 4)))
    assert report.batchnorms_after == 1
    assert "w" in {t.name for t in after.graph.initializer}


# --- constants as exporters leave them --------------------------------------------------------------------------------

FORMS = [
    "g = Identity(n_gamma) t = Identity(n_beta) z = BatchNormalization(u, g, t, n_mean, n_var)",
    "g0 = Identity(n_gamma) g = Identity(g0) z = BatchNormalization(u, g, n_beta, n_mean, n_var)",
    "g = Constant<value_floats=[1.0,-2.0,0.5,3.0]>() z = BatchNormalization(u, g, n_beta, n_mean, n_var)",
    "g = CastLike(wide, u) z = Mul(u, g)",
    "g = Cast<to=1>(wide) z = Mul(u, g)",
    """a = Add(n_var, eps) b = Sqrt(a) d = Div(n_gamma, b) e = Mul(n_mean, d) f = Sub(n_beta, e)
       g = Unsqueeze(d, one) h = Unsqueeze(f, one) p = Mul(u, g) z = Add(p, h)""",
    """g = Reshape(n_gamma, col) p = Mul(u, g) k = Constant<value=float[4,1] {1.0,2.0,3.0,4.0}>() z = Sub(p, k)""",
]


@pytest.mark.parametrize("form", FORMS)
def test_a_batchnorm_folds_however_its_constants_are_written(form: str) -> None:
    text = "(float[N,3,L] x) => (float[N,5,L] y) { c = Conv(x, w) u = Relu(c) %s y = Conv<pads=[1,1]>(z, v) }"
    more = {
        "one": np.array([1]),
        "col": np.array([4, 1]),
        "eps": np.float32(1e-5),
        "wide": weights(4, 1).astype(np.float64),
    }
    model = graph(text % form, w=weights(4, 3, 1), v=weights(5, 4, 3), **more, **norm("n", 4))
    folds_to(model, "Conv Relu Conv", *LENGTHS)


def test_weights_behind_identities_fold_as_well() -> None:
    text = "(float[N,3,L] x) => (float[N,4,L] y) { k = Identity(w) b = Identity(a) c = Conv(x, k, b) y = BN(c, n) }"
    folds_to(graph(text, w=weights(4, 3, 1), a=weights(4), **norm("n", 4)), "Conv", *LENGTHS)


def test_a_constant_that_is_an_output_too_stays_what_it_is() -> None:
    text = "(float[N,3,L] x) => (float[N,4,L] y, float[4] g) { g = Identity(n_gamma) c = Conv(x, w) y = BN(c, n) }"
    model = graph(text, w=weights(4, 3, 1), **norm("n", 4))
    after, report = folded(model)
    assert report.batchnorms_after == 0
    same_function(model, after, *LENGTHS)


@pytest.mark.parametrize(
    ("nodes", "want"),
    [
        ("s = Shape(x) k = Gather(s, i)", 3),
        ("s = Shape<end=1>(x) k = Gather(s, i)", None),
        ("s = Shape<start=1>(x) k = Gather(s, i)", 3),
    ],
)
def test_a_length_is_taken_from_the_part_of_the_shape_that_is_measured(nodes: str, want: int | None) -> None:
    assert read(of(nodes, i=np.array(-1)), "k") == want


@pytest.mark.parametrize("index", [2, -3])
def test_a_length_beyond_the_shape_is_not_known(index: int) -> None:
    assert read(of("s = Shape(x) k = Gather(s, i)", i=np.array(index)), "k") is None
