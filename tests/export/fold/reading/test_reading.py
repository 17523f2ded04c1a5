"""From an ONNX graph to operators and back: opsets, types, shared weights, subgraphs, functions, names."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import parser
from tests.export.fold.graphs import (
    counted,
    folded,
    folds_to,
    graph,
    left,
    net_of,
    norm,
    only,
    operators,
    same_function,
    same_in_onnxruntime,
    stays,
    weight_of,
    weights,
)

from normfold.export.errors import FoldError
from normfold.export.fold import fold
from normfold.export.fold.net import Op
from normfold.export.fold.reading import module_of

LENGTHS = ((2, 3, 12), (3, 3, 23))
BOOK = """(%s[N,3,L] x) => (%s[N,5,L] y) {
    c = Conv<pads=[1,1]>(x, w, b)  r = Relu(c)  n = BN(r, n)  y = Conv<pads=[1,1]>(n, v) }"""


def book(kind: str = "float", dtype: Any = np.float32, **options: Any) -> onnx.ModelProto:
    arrays = {"w": weights(4, 3, 3, dtype=dtype), "b": weights(4, dtype=dtype), "v": weights(5, 4, 3, dtype=dtype)}
    return graph(BOOK % (kind, kind), **options, **arrays, **norm("n", 4, dtype))


# --- opsets and types -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", range(9, 24))
def test_every_opset_is_read_and_written(opset: int) -> None:
    model = book(opset=opset, ir_version=10)
    after, _ = folds_to(model, "Conv Relu Conv", *LENGTHS)
    assert after.opset_import[0].version == opset


@pytest.mark.parametrize("also", [False, True])
def test_operators_may_be_imported_by_their_other_name(also: bool) -> None:
    text = """(float[N,3,L] x) => (float[N,5,L] y) {
        c = Conv(x, w) s = Sigmoid(c) p, q = Split<axis=1,split=[2,2]>(s) m = Mul(p, q) n = BN(m, n)
        y = Conv<pads=[1,1]>(n, v) }"""
    model = graph(text, opset=11, w=weights(4, 3, 1), v=weights(5, 2, 3), **norm("n", 2))
    model.opset_import[0].domain = "ai.onnx"
    if also:
        model.opset_import.add(domain="", version=11)
    after, _ = fold(model)
    onnx.checker.check_model(after, full_check=True)
    assert [(o.domain, o.version) for o in after.opset_import] == [("", 11)]
    assert model.opset_import[0].domain == "ai.onnx"
    same_in_onnxruntime(model, after, *LENGTHS)


@pytest.mark.parametrize("opset", [1, 6, 7, 8])
def test_an_opset_whose_operators_mean_something_else_is_refused(opset: int) -> None:
    with pytest.raises(FoldError, match=f"in opset {opset}; expected 9 or newer"):
        fold(book(opset=opset))


TYPES = [
    ("float16", np.float16, 17),
    ("bfloat16", ml_dtypes.bfloat16, 22),
    ("double", np.float64, 17),
]


@pytest.mark.parametrize(("kind", "dtype", "opset"), TYPES)
def test_weights_keep_the_type_of_the_graph(kind: str, dtype: Any, opset: int) -> None:
    model = book(kind, dtype, opset=opset, ir_version=10)
    after, _ = folds_to(model, "Conv Relu Conv", *LENGTHS)
    want = model.graph.initializer[0].data_type
    assert {t.data_type for t in after.graph.initializer} == {want}


@pytest.mark.parametrize("first", ["float", "float16"])
def test_a_graph_of_two_types_keeps_each_where_it_is(first: str) -> None:
    kinds = {"float": (1, np.float32), "float16": (10, np.float16)}
    second = "float16" if first == "float" else "float"
    text = f"""({first}[N,3,L] x) => ({second}[N,5,L] y) {{
        c = Conv(x, w)  a = BN(c, n)  h = Cast<to={kinds[second][0]}>(a)  d = Conv(h, v)  y = BN(d, m) }}"""
    a, b = kinds[first][1], kinds[second][1]
    arrays = {"w": weights(4, 3, 1, dtype=a), "v": weights(5, 4, 1, dtype=b)}
    model = graph(text, **arrays, **norm("n", 4, a), **norm("m", 5, b))
    after, report = folded(model)
    assert report.affines_after == 0
    assert operators(after) == ["Cast", "Conv", "Conv"]
    assert {weight_of(after, 0).dtype, weight_of(after, 1).dtype} == {np.dtype(a), np.dtype(b)}
    same_function(model, after, *LENGTHS)


def test_no_affine_passes_a_cast_to_another_type() -> None:
    text = "(float[N,3,L] x) => (float16[N,3,L] y) { s = Sigmoid(x) n = BN(s, n) h = Cast<to=10>(n) y = Tanh(h) }"
    _, report = folded(graph(text, **norm("n", 3)))
    assert "no rule takes a per-channel scale or shift through 'Cast_2' (Cast)" in "; ".join(only(report).reasons)


def test_integers_are_not_scaled() -> None:
    text = "(int64[N,3,L] x) => (int64[N,3,L] y) { a = Mul(x, g) y = Add(a, t) }"
    model = graph(text, g=np.array([[1], [2], [3]]), t=np.array([[4], [5], [6]]))
    after, report = folded(model)
    assert operators(after) == ["Add", "Mul"]
    assert report.folds == ()


# --- numerics ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [[1e-12] * 4, [1e12] * 4, [1e-8, 1, 1e8, -1], [-1, -1e-3, 1e3, 0]])
def test_gammas_of_any_size_fold_in_float32(gamma: list[float]) -> None:
    model = graph(
        BOOK % ("float", "float"), w=weights(4, 3, 3), b=weights(4), v=weights(5, 4, 3), **norm("n", 4, gamma=gamma)
    )
    folds_to(model, "Conv Relu Conv", *LENGTHS)


@pytest.mark.parametrize("var", [[1e-12] * 4, [1e30] * 4, [0, 1, 1e10, 1e-10], [3e38] * 4])
def test_variances_of_any_size_fold_in_float32(var: list[float]) -> None:
    model = graph(
        BOOK % ("float", "float"), w=weights(4, 3, 3), b=weights(4), v=weights(5, 4, 3), **norm("n", 4, var=var)
    )
    after, report = folded(model)
    same_function(model, after, *LENGTHS)
    assert report.batchnorms_after == 0 or left(report)


@pytest.mark.filterwarnings("error")
def test_a_variance_that_rounding_left_below_0_folds_without_a_warning() -> None:
    model = graph(
        BOOK % ("float", "float"), w=weights(4, 3, 3), b=weights(4), v=weights(5, 4, 3),
        **norm("n", 4, var=[-5e-6, 0, 1, 2]),
    )  # fmt: skip
    after, report = folded(model)
    assert not left(report)
    same_function(model, after, *LENGTHS)


@pytest.mark.parametrize("eps", [0.0, 1e-12, 1e-3, 1.0])
def test_epsilon_is_the_nodes_own(eps: float) -> None:
    text = "(float[N,3,L] x) => (float[N,4,L] y) { c = Conv(x, w) y = BN(c, n) }"
    model = graph(text, w=weights(4, 3, 1), **norm("n", 4, var=[1e-3, 1e-2, 1, 2]))
    model.graph.node[1].attribute.append(onnx.helper.make_attribute("epsilon", eps))
    folds_to(model, "Conv", *LENGTHS)


def test_a_variance_and_epsilon_of_0_make_no_affine_and_are_left_alone() -> None:
    text = "(float[N,3,L] x) => (float[N,4,L] y) { c = Conv(x, w) y = BatchNormalization<epsilon=0.0>(c, g, t, m, v) }"
    arrays = {k: np.float32([1, 1, 1, 1]) for k in "gtm"} | {"v": np.float32([0, 1, 1, 1])}
    after, _ = folded(graph(text, w=weights(4, 3, 1), **arrays))
    assert operators(after) == ["BatchNormalization", "Conv"]


def test_weights_that_would_overflow_float16_are_refused() -> None:
    text = "(float16[N,3,L] x) => (float16[N,4,L] y) { c = Conv(x, w) y = BN(c, n) }"
    arrays = norm("n", 4, np.float16, gamma=[6e4, 1, 1, 1], var=[1e-3, 1, 1, 1])
    model = graph(text, w=weights(4, 3, 1, dtype=np.float16), **arrays)
    after, report = folded(model)
    assert "would overflow float16" in "; ".join(only(report).reasons)
    assert "BatchNormalization" in operators(after)


def test_weights_that_would_underflow_float16_are_refused() -> None:
    text = "(float16[N,3,L] x) => (float16[N,4,L] y) { c = Conv(x, w) y = BN(c, n) }"
    arrays = norm("n", 4, np.float16, gamma=[2e-5, 1, 1, 1], var=[3, 1, 1, 1])
    model = graph(text, w=weights(4, 3, 1, dtype=np.float16), **arrays)
    after, report = folded(model)
    assert "would underflow float16" in "; ".join(only(report).reasons)
    assert "BatchNormalization" in operators(after)


def test_ordinary_weights_of_a_wide_float16_convolution_fold() -> None:
    # 0.01 is far from float16's least normal number, 6e-5.
    text = "(float16[N,64,L] x) => (float16[N,4,L] y) { c = Conv(x, w) y = BN(c, n) }"
    w = (weights(4, 64, 1) * 0.08).astype(np.float16)
    folds_to(graph(text, w=w, **norm("n", 4, np.float16)), "Conv", (1, 64, 5))


def test_two_batchnorms_that_would_overflow_as_one_stay_two() -> None:
    text = "(float16[N,3,L] x) => (float16[N,3,L] y) { a = BN(x, n) b = BN(a, m) y = Sigmoid(b) }"
    model = graph(text, **norm("n", 3, np.float16, gamma=[400] * 3), **norm("m", 3, np.float16, gamma=[400] * 3))
    after, report = folded(model)
    assert operators(after) == ["BatchNormalization", "BatchNormalization", "Sigmoid"]
    assert report.affines_after == 2


def test_subnormal_weights_lose_no_more_than_they_had() -> None:
    text = "(float[N,3,L] x) => (float[N,4,L] y) { c = Conv(x, w) y = BN(c, n) }"
    w = weights(4, 3, 1)
    w[0] *= 1e-40
    w[1, 0] *= 1e-40
    model = graph(text, w=w, **norm("n", 4))
    after, _ = folded(model)
    same_function(model, after, *LENGTHS)


# --- what is not an inference BatchNorm -------------------------------------------------------------------------------


def test_a_batchnorm_in_training_mode_is_left_alone() -> None:
    text = """(float[N,3,L] x) => (float[N,4,L] y, float[4] m, float[4] v) {
        c = Conv(x, w)  y, m, v = BatchNormalization<training_mode=1>(c, n_gamma, n_beta, n_mean, n_var) }"""
    after, _ = folded(graph(text, w=weights(4, 3, 1), **norm("n", 4)))
    assert operators(after) == ["BatchNormalization", "Conv"]


def test_an_old_batchnorm_with_five_outputs_is_in_training_mode() -> None:
    model = graph(
        """(float[N,3,L] x) => (float[N,4,L] y) {
        c = Conv(x, w)  y, m, v, sm, sv = BatchNormalization(c, n_gamma, n_beta, n_mean, n_var) }""",
        opset=9,
        ir_version=4,
        w=weights(4, 3, 1),
        **norm("n", 4),
    )
    after, report = folded(model)
    assert operators(after) == ["BatchNormalization", "Conv"]
    assert "in training mode" in next(f for f in report.folds if f.kind == "BatchNorm").reason


def test_old_batchnorms_whose_statistics_are_an_output_are_left_alone() -> None:
    model = graph(
        """(float[N,3,L] x) => (float[N,4,L] y, float[4] m) {
        c = Conv(x, w)  y, m, v, sm, sv = BatchNormalization(c, n_gamma, n_beta, n_mean, n_var) }""",
        opset=9,
        w=weights(4, 3, 1),
        **norm("n", 4),
    )
    after, _ = folded(model)
    assert operators(after) == ["BatchNormalization", "Conv"]


def test_a_batchnorm_with_computed_parameters_is_left_alone() -> None:
    text = """(float[N,3,L] x, float[4] g) => (float[N,4,L] y) {
        c = Conv(x, w)  y = BatchNormalization(c, g, n_beta, n_mean, n_var) }"""
    model = graph(text, w=weights(4, 3, 1), **norm("n", 4))
    after, _ = folded(model)
    assert operators(after) == ["BatchNormalization", "Conv"]
    same_function(model, after, *LENGTHS)


def test_a_batchnorm_of_another_domain_is_left_alone() -> None:
    model = graph(
        "(float[N,3,L] x) => (float[N,4,L] y) { c = Conv(x, w) y = BN(c, n) }", w=weights(4, 3, 1), **norm("n", 4)
    )
    model.graph.node[1].domain = "com.example"
    model.opset_import.append(onnx.helper.make_opsetid("com.example", 1))
    after, _ = folded(model)
    assert operators(after) == ["BatchNormalization", "Conv"]


# --- shared weights, several readers, several outputs -----------------------------------------------------------------


def test_one_weight_of_two_convolutions_is_copied_for_the_one_that_changes() -> None:
    text = "(float[N,4,L] x) => (float[N,4,L] y) { c = Conv(x, w) d = BN(c, n) y = Conv(d, w) }"
    model = graph(text, w=weights(4, 4, 1), **norm("n", 4))
    after, _ = folds_to(model, "Conv Conv", (2, 4, 9))
    assert not np.array_equal(weight_of(after, 0), weight_of(after, 1))


def test_a_shared_bias_and_shared_batchnorm_parameters_are_copied() -> None:
    text = """(float[N,4,L] x) => (float[N,4,L] y) {
        c = Conv(x, w, b)  d = BN(c, n)  r = Relu(d)  e = Conv(r, v, b)  y = BN(e, n) }"""
    model = graph(text, w=weights(4, 4, 1), v=weights(4, 4, 1, seed=1), b=weights(4), **norm("n", 4))
    folds_to(model, "Conv Relu Conv", (2, 4, 9))


def test_two_batchnorms_on_one_convolution_never_both_fold_back() -> None:
    # A tool that folds each back into the one convolution is wrong by more than 1 here.
    text = "(float[N,3,L] x) => (float[N,4,L] y, float[N,4,L] z) { c = Conv(x, w) y = BN(c, n) z = BN(c, m) }"
    model = graph(text, w=weights(4, 3, 1), **norm("n", 4), **norm("m", 4))
    after, report = folded(model)
    assert operators(after) in (["BatchNormalization", "Conv"], ["BatchNormalization", "BatchNormalization", "Conv"])
    assert report.batchnorms_after >= 1
    same_function(model, after, *LENGTHS)


def test_two_batchnorms_on_one_convolution_go_forward_each_into_its_reader() -> None:
    text = """(float[N,3,L] x) => (float[N,4,L] y) {
        c = Conv(x, w)  a = BN(c, n)  b = BN(c, m)  d = Conv(a, v)  e = Conv<pads=[1,1]>(b, u)  y = Add(d, e) }"""
    model = graph(text, w=weights(4, 3, 1), v=weights(4, 4, 1), u=weights(4, 4, 3), **norm("n", 4), **norm("m", 4))
    folds_to(model, "Conv Conv Conv Add", *LENGTHS)


@pytest.mark.parametrize("output", ["c", "n", "r"])
def test_an_output_that_is_also_read_keeps_its_numbers(output: str) -> None:
    text = f"""(float[N,3,L] x) => (float[N,5,L] y, float[N,4,L] {output}) {{
        c = Conv(x, w)  r = Relu(c)  n = BN(r, n)  y = Conv<pads=[1,1]>(n, v) }}"""
    model = graph(text, w=weights(4, 3, 1), v=weights(5, 4, 3), **norm("n", 4))
    after, _ = folded(model)
    same_function(model, after, *LENGTHS)


def test_one_value_may_be_two_outputs_under_two_names() -> None:
    text = "(float[N,3,L] x) => (float[N,4,L] y, float[N,4,L] z) { c = Conv(x, w) y = BN(c, n) z = Identity(y) }"
    model = graph(text, w=weights(4, 3, 1), **norm("n", 4))
    after, report = folded(model)
    assert report.batchnorms_after == 0
    same_function(model, after, *LENGTHS)


def test_a_batchnorm_from_input_to_output_stays() -> None:
    model = graph("(float[N,3,L] x) => (float[N,3,L] y) { y = BN(x, n) }", **norm("n", 3))
    after, report = folded(model)
    assert operators(after) == ["BatchNormalization"]
    reasons = "; ".join(only(report).reasons)
    assert "'x' is an input of the network, so its numbers may not change" in reasons
    assert "'y' is an output of the network, so its numbers may not change" in reasons
    same_function(model, after, *LENGTHS)


def test_a_batchnorm_that_changes_nothing_goes_even_between_input_and_output() -> None:
    text = "(float[N,3,L] x) => (float[N,3,L] y) { y = BatchNormalization<epsilon=0.0>(x, g, t, m, v) }"
    one, zero = np.ones(3, np.float32), np.zeros(3, np.float32)
    model = graph(text, g=one, t=zero, m=zero, v=one)
    _, report = folds_to(model, "Identity", *LENGTHS)
    assert only(report).how == "it changed nothing"


def test_batchnorms_on_input_and_output_fold_into_first_and_last_layer() -> None:
    text = (
        "(float[N,3,L] x) => (float[N,4,L] y) { a = BN(x, m) c = Conv(a, w) r = Relu(c) d = Conv(r, v) y = BN(d, n) }"
    )
    model = graph(text, w=weights(4, 3, 1), v=weights(4, 4, 1), **norm("m", 3), **norm("n", 4))
    folds_to(model, "Conv Relu Conv", *LENGTHS)


def test_a_batchnorm_of_rows_folds_into_linear_layers() -> None:
    text = "(float[N,3] x) => (float[N,5] y) { a = Gemm(x, w) r = Relu(a) n = BN(r, n) y = Gemm(n, v) }"
    folds_to(graph(text, w=weights(3, 4), v=weights(4, 5), **norm("n", 4)), "Gemm Relu Gemm", (6, 3))


# --- subgraphs and functions ------------------------------------------------------------------------------------------

BRANCHES = """(float[N,3,L] x, bool c) => (float[N,4,L] y) { %s y = If(c) <
    then_branch = t () => (float[N,4,L] a) { %s },
    else_branch = e () => (float[N,4,L] b) { %s }> }"""


def conditional(outer: str, then: str, other: str) -> onnx.ModelProto:
    arrays = {"w": weights(4, 3, 1), "v": weights(4, 4, 3), **norm("n", 4)}
    return graph(BRANCHES % (outer, then, other), **arrays)


def both_branches(model: onnx.ModelProto, after: onnx.ModelProto) -> None:
    for seed in range(6):  # the condition is drawn with the input
        same_function(model, after, *[(2, 3, 9)] * (seed + 1))


def test_batchnorms_inside_branches_fold_there_under_names_of_their_own() -> None:
    branch = "{0}0 = Conv(x, w) {0} = BN({0}0, n)"
    model = conditional("q0 = Conv(x, w) q = BN(q0, n) z = Relu(q)", branch.format("a"), branch.format("b"))
    after, report = folded(model)
    assert report.batchnorms_after == 0
    assert counted(after)["Conv"] == 3 - (operators(after).count("Conv") == 0)
    both_branches(model, after)


def test_weights_of_a_branch_get_names_that_no_other_graph_has() -> None:
    model = conditional("", "a0 = Conv(x, w) a = BN(a0, n)", "b = Conv(x, w)")  # as torch.cond of a layer is captured
    then, other = (attribute.g for attribute in model.graph.node[0].attribute)
    for named in (*model.graph.initializer, *then.node, *other.node):
        if isinstance(named, onnx.NodeProto):
            named.input[:] = ["layer.weight" if name == "w" else name for name in named.input]
        elif named.name == "w":
            named.name = "layer.weight"
    after, report = folded(model)
    assert report.batchnorms_after == 0
    inner = [tensor.name for attribute in after.graph.node[0].attribute for tensor in attribute.g.initializer]
    assert inner
    assert not {tensor.name for tensor in after.graph.initializer} & set(inner)
    both_branches(model, after)


@pytest.mark.parametrize(
    ("outer", "then", "other"),
    [
        ("p = Conv(x, w) q = BN(p, n)", "a = Relu(q)", "b = Sigmoid(p)"),
        ("p = Conv(x, w) q = BN(p, n)", "a = Relu(q)", "b = Sigmoid(q)"),
        ("p0 = Conv(x, w) p = Relu(p0) q = BN(p, n) r = Conv<pads=[1,1]>(q, v)", "a = Relu(r)", "b = Sigmoid(p)"),
        ("p0 = Conv(x, w) p = Relu(p0) q = BN(p, n) r = Conv<pads=[1,1]>(q, v)", "a = Relu(r)", "b = Sigmoid(q)"),
        ("p0 = Conv(x, w) p = Relu(p0)", "q = BN(p, n) a = Conv<pads=[1,1]>(q, v)", "b = Relu(p)"),
    ],
)
def test_values_that_branches_read_keep_their_numbers(outer: str, then: str, other: str) -> None:
    model = conditional(outer, then, other)
    after, _ = folded(model)
    both_branches(model, after)


def test_a_value_that_a_branch_reads_says_so_when_it_refuses() -> None:
    _, report = folded(conditional("p = Conv(x, w) q = BN(p, n) s = Tanh(q)", "a = Relu(p)", "b = Sigmoid(s)"))
    assert "'p' is read inside an If, Loop or Scan, so its numbers may not change" in "; ".join(only(report).reasons)


def test_zeros_that_a_branch_reads_are_left_to_stand() -> None:
    text = BRANCHES % ("p = Pad(x, pads) q = Conv(p, k)", "a = Relu(q)", "b = Conv(p, k)")
    model = graph(text, k=weights(4, 3, 3), pads=np.array([0, 0, 1, 0, 0, 1]))
    after, _ = folded(model)
    assert "Pad" in operators(after)
    both_branches(model, after)


def test_a_batchnorm_inside_a_loop_folds_there() -> None:
    text = """(float[N,4,L] x) => (float[N,4,L] y) { y = Loop(times, go, x) <
        body = step (int64 i, bool k, float[N,4,L] s) => (bool k2, float[N,4,L] s2) {
            c = Conv(s, w)  n = BN(c, n)  s2 = Relu(n)  k2 = Identity(k) }> }"""
    model = graph(text, times=np.array(3), go=np.array(True), w=weights(4, 4, 1), **norm("n", 4))
    after, report = folded(model)
    assert report.batchnorms_after == 0
    same_function(model, after, (2, 4, 9))


def test_a_batchnorm_on_the_state_of_a_loop_stays() -> None:
    text = """(float[N,4,L] x) => (float[N,4,L] y) { y = Loop(times, go, x) <
        body = step (int64 i, bool k, float[N,4,L] s) => (bool k2, float[N,4,L] s2) {
            n = BN(s, n)  s2 = Tanh(n)  k2 = Identity(k) }> }"""
    model = graph(text, times=np.array(2), go=np.array(True), **norm("n", 4))
    after, report = folded(model)
    assert report.batchnorms_after == 1
    same_function(model, after, (2, 4, 9))


def functional() -> onnx.ModelProto:
    model = parser.parse_model("""
        <ir_version: 9, opset_import: ["": 17, "local": 1]>
        test (float[N,3,L] x) => (float[N,4,L] y) { c = Conv(x, w)  d = local.norm(c, g, t, m, v)  y = Relu(d) }
        <domain: "local", opset_import: ["": 17]>
        norm (x, g, t, m, v) => (y) { y = BatchNormalization(x, g, t, m, v) }""")
    given = {"w": weights(4, 3, 1), "g": norm("n", 4)["n_gamma"], "t": norm("n", 4)["n_beta"]}
    given |= {"m": norm("n", 4)["n_mean"], "v": norm("n", 4)["n_var"]}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(a, k) for k, a in given.items())
    return model


def test_a_model_with_functions_of_its_own_keeps_its_function() -> None:
    model = functional()
    after, _ = folded(model)
    same_function(model, after, *LENGTHS)


# --- names ------------------------------------------------------------------------------------------------------------


def named(**metadata: str) -> str:
    node = ir.node("BatchNormalization", [ir.Value(name="x")], name="node_12")
    node.metadata_props.update({k.replace("__", "."): v for k, v in metadata.items()})
    return module_of(node)


def test_a_module_is_called_by_the_path_that_its_exporter_noted() -> None:
    assert named(normfold__module="features.1") == "features.1"
    assert named(pkg__torch__onnx__name_scopes="['', 'features', 'features.1', 'batch_norm']") == "features.1"
    assert named() == ""


def test_a_module_is_called_by_its_weights_where_the_exporter_noted_nothing() -> None:
    model = graph("(float[N,3,L] x) => (float[N,3,L] y) { y = BN(x, n) }", **norm("n", 3))
    for t, new in zip(model.graph.initializer, ("weight", "bias", "running_mean", "running_var"), strict=True):
        old, t.name = t.name, f"encoder.2.bn.{new}"
        inputs = model.graph.node[0].input
        inputs[list(inputs).index(old)] = t.name
    _, report = folded(model)
    assert only(report).name == "encoder.2.bn"


def test_a_node_without_a_module_is_called_by_its_own_name() -> None:
    _, report = folded(graph("(float[N,3,L] x) => (float[N,3,L] y) { y = BN(x, n) }", **norm("n", 3)))
    assert only(report).name == "BatchNormalization_0"


# --- what is not known ------------------------------------------------------------------------------------------------


def test_an_unknown_operator_lets_nothing_pass_and_is_left_alone() -> None:
    text = "(float[N,3,L] x) => (float[N,4,L] y) { c = Conv(x, w) n = BN(c, n) y = Atan(n) }"
    folds_to(graph(text, w=weights(4, 3, 1), **norm("n", 4)), "Conv Atan", *LENGTHS)
    op = next(op for op in net_of(graph(text, w=weights(4, 3, 1), **norm("n", 4))).ops if op.node.op_type == "Atan")
    assert type(op) is Op


def test_a_graph_without_any_shapes_is_folded_or_left_and_never_wrong() -> None:
    model = book()
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.ClearField("shape")
    copy = ir.from_proto(model)
    fold(copy)
    after, whole = ir.to_proto(copy), book()
    after.graph.input[0].CopyFrom(whole.graph.input[0])
    same_function(whole, after, *LENGTHS)


# --- shapes that TorchScript computes in the graph --------------------------------------------------------------------

COMPUTED = {
    "a chunk": """k = Gather(s, places) h = Div(k, halves) d = Add(h, h)
        p = Slice(r, none, h, places) q = Slice(r, h, d, places) e = Concat<axis=1>(p, q)""",
    "a cut to another's length": """k = Gather(s, two) l = Unsqueeze(k, none)
        p = Slice(r, none, l, axis) q = Slice(r, none, l, axis) g = Concat<axis=1>(p, q) e = Conv(g, fold)""",
}


@pytest.mark.parametrize("nodes", COMPUTED.values(), ids=COMPUTED)
def test_channels_are_followed_through_shapes_that_are_computed(nodes: str) -> None:
    text = f"""(float[N,3,L] x) => (float[N,5,M] y) {{
        c = Conv(x, w) r = Elu(c) n = BN(r, n) s = Shape(n) {nodes.replace("(r,", "(n,")} y = Conv(e, v) }}"""
    held = {
        "places": np.array([1]),
        "halves": np.array([2]),
        "none": np.array([0]),
        "axis": np.array([2]),
        "two": np.int64(2),
        "fold": weights(4, 8, 1),
    }
    held = {k: a for k, a in held.items() if k in nodes}
    model = graph(text, w=weights(4, 3, 1), v=weights(5, 4, 3), **held, **norm("n", 4))
    after, report = folded(model)
    assert report.batchnorms_after == 0
    assert report.affines_after == 0
    same_in_onnxruntime(model, after, *LENGTHS)


def test_a_flattening_over_a_dynamic_batch_is_undone_behind_a_gemm() -> None:
    text = """(float[N,3,6] x) => (float[N,6,5] y) {
        c = Conv(x, w) r = Elu(c) n = BN(r, n) t = Transpose<perm=[0,2,1]>(n) s = Shape(t)
        k = Gather(s, two) l = Unsqueeze(k, none) j = Concat<axis=0>(any, l) f = Reshape(t, j) g = Gemm(f, u)
        b = Gather(s, none) z = Concat<axis=0>(b, six, five) y = Reshape(g, z) }"""
    held = {
        "two": np.int64(2),
        "none": np.array([0]),
        "any": np.array([-1]),
        "six": np.array([6]),
        "five": np.array([5]),
    }
    model = graph(text, w=weights(4, 3, 1), u=weights(4, 5), **held, **norm("n", 4))
    after, report = folded(model)
    assert report.batchnorms_after == 0
    assert report.affines_after == 0
    same_in_onnxruntime(model, after, (2, 3, 6), (5, 3, 6))


@pytest.mark.parametrize("opset", [11, 12, 13, 17])
@pytest.mark.parametrize("batch", ["Gather", "Slice"])
def test_a_view_of_a_computed_batch_and_the_rest_is_followed_in_every_opset(opset: int, batch: str) -> None:
    # TorchScript writes x.view(x.size(0), -1) so; before opset 13 shape inference does not follow it.
    unsqueeze = "Unsqueeze<axes=[0]>(k)" if opset < 13 else "Unsqueeze(k, zero)"
    taken = f"k = Gather(s, first) b = {unsqueeze}" if batch == "Gather" else "b = Slice(s, zero, one)"
    text = f"""(float[N,3,12] x) => (float[N,4] y) {{
        c = Conv(x, w)  r = Relu(c)  s = Shape(r)  {taken}  t = Concat<axis=0>(b, rest)  v = Reshape(r, t)
        a = BN(v, a)  f = Gemm(a, g)  h = Relu(f)  y = BN(h, n) }}"""
    places = {"zero": np.array([0]), "one": np.array([1]), "rest": np.array([-1]), "first": np.array(0)}
    given = norm("a", 40) | norm("n", 4, gamma="positive")
    model = graph(text, opset=opset, w=weights(4, 3, 3), g=weights(40, 4), **places, **given)
    after, report = folded(model)
    assert report.batchnorms_after == 0, report.folds
    same_function(model, after, (2, 3, 12))


def test_the_rank_behind_a_gemm_is_known_where_that_of_its_input_is_not() -> None:
    text = """(float[N,12] x, int64[2] s) => (float[M,4] y) {
        r = Reshape(x, s)  f = Gemm(r, g)  h = Relu(f)  n = BN(h, n)  y = Gemm(n, k) }"""
    model = graph(text, opset=11, g=weights(6, 5), k=weights(5, 4), **norm("n", 5, gamma="positive"))
    del model.graph.input[1].type.tensor_type.shape.dim[:]
    model.graph.input[1].type.tensor_type.shape.dim.add()
    _, report = folded(model)
    assert report.affines_after == 0, report.folds


def as_inputs(model: onnx.ModelProto) -> onnx.ModelProto:
    for t in model.graph.initializer:
        model.graph.input.append(onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims))
    return model


def test_weights_that_an_old_file_lists_as_inputs_too_are_constants() -> None:
    model = as_inputs(book(ir_version=3, opset=11))
    after, report = folded(model)
    assert report.affines_after == 0
    assert [i.name for i in after.graph.input] == ["x"]
    assert "IR version 3" in report.notes[0]
    same_in_onnxruntime(model, after, *LENGTHS)


def test_weights_that_a_caller_may_replace_are_no_constants() -> None:
    model = as_inputs(book())
    after, report = folded(model)
    assert "a caller may replace them" in only(report).reason
    assert len(after.graph.input) == len(model.graph.input)


@pytest.mark.parametrize("known", ["type", "nothing"])
def test_an_output_needs_no_shape(known: str) -> None:
    model = book()
    model.graph.output[0].type.tensor_type.ClearField("shape")
    if known == "nothing":
        model.graph.output[0].ClearField("type")
    copy = ir.from_proto(model)
    assert fold(copy).affines_after == 0


def test_computed_parameters_of_a_batchnorm_are_the_reason_why_it_stays() -> None:
    text = "(float[N,3,L] x, float[3] g) => (float[N,3,M] y) { c = Conv(x, w) h = Relu(g) y = %s }"
    call = "BatchNormalization(c, h, n_beta, n_mean, n_var)"
    _, report = folded(graph(text % call, w=weights(3, 3, 1), **norm("n", 3)))
    assert "computed when the network runs" in only(report).reason


# --- what an operator reads beside its data ---------------------------------------------------------------------------


def test_computed_scales_of_a_resize_keep_their_numbers() -> None:
    # The factors differ from axis to axis, as a scale differs from channel to channel.
    text = """(float[N,3,L] x) => (float[N,4,M] y) { c = Conv(x, w)  s = Shape(c)  t = Cast<to=1>(s)
        u = Mul(t, factors)  d = Div(u, t)  y = Resize<mode="nearest">(c, , d) }"""
    model = graph(text, w=weights(4, 3, 3), factors=np.float32([1, 1, 2]))
    stays(model, "'d' decides what 'Resize_5' (Resize) does", *LENGTHS)


def test_an_operator_that_reads_only_the_type_of_a_tensor_does_not_stop_a_fold() -> None:
    text = """(float[N,3,L] x) => (float[N,5,L] y) {
        c = Conv(x, w)  n = BN(c, n)  r = Relu(n)  z = CastLike(r, n)  y = Conv(z, v) }"""
    model = graph(text, w=weights(4, 3, 1), v=weights(5, 4, 1), **norm("n", 4))
    folds_to(model, "Conv Relu CastLike Conv", *LENGTHS)
