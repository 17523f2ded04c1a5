"""Linear operators take an affine from before and from behind: what they become is checked by hand and in float64."""

from __future__ import annotations

import numpy as np
import pytest
from tests.export.fold.graphs import (
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

LENGTHS = ((2, 4, 9), (3, 4, 17))
HAND = {
    "n_gamma": np.float32([3]),
    "n_beta": np.float32([5]),
    "n_mean": np.float32([1]),
    "n_var": np.float32([4]),
}  # scale 1.5, shift 3.5 where eps is 0


def by_hand(before: str, after: str) -> str:
    norm = "BatchNormalization<epsilon=0.0>({}, n_gamma, n_beta, n_mean, n_var)"
    return f"(float[N,1,L] x) => (float[N,1,M] y) {{ {before} {after} }}".replace("NORM(x)", norm.format("x")).replace(
        "NORM(c)", norm.format("c")
    )


# --- fold back: s (W x + b) + t = (s W) x + (s b + t) -----------------------------------------------------------------


def test_folding_back_multiplies_weight_and_bias_and_adds_the_shift() -> None:
    text = by_hand("c = Conv(x, w, b)", "y = NORM(c)")
    model = graph(text, w=np.float32([[[2, 4]]]), b=np.float32([10]), **HAND)
    after, _ = folds_to(model, "Conv", (1, 1, 5))
    np.testing.assert_array_equal(weight_of(after, place=1).ravel(), [3, 6])  # 1.5 · [2, 4]
    np.testing.assert_array_equal(weight_of(after, place=2), [18.5])  # 1.5 · 10 + 3.5


def test_folding_back_gives_a_bias_to_a_convolution_without_one() -> None:
    after, _ = folds_to(
        graph(by_hand("c = Conv(x, w)", "y = NORM(c)"), w=np.float32([[[2]]]), **HAND), "Conv", (1, 1, 5)
    )
    np.testing.assert_array_equal(weight_of(after, place=2), [3.5])


CONVOLUTIONS = [
    "",
    "<pads=[1,1]>",
    "<pads=[2,0]>",
    "<strides=[2],pads=[0,1]>",
    "<dilations=[2],pads=[2,2]>",
    '<auto_pad="SAME_UPPER",strides=[2]>',
    '<auto_pad="SAME_LOWER",strides=[2]>',
    '<auto_pad="VALID">',
]


@pytest.mark.parametrize("attributes", CONVOLUTIONS)
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_batchnorm_folds_back_into_any_convolution(attributes: str, groups: int) -> None:
    given = attributes.replace("<", f"<group={groups},") if attributes else f"<group={groups}>"
    text = "(float[N,4,L] x) => (float[N,8,M] y) { c = Conv%s(x, w, b) y = BN(c, n) }"
    model = graph(text % given, w=weights(8, 4 // groups, 3), b=weights(8), **norm("n", 8))
    folds_to(model, "Conv", *LENGTHS)


@pytest.mark.parametrize(("rank", "shape"), [(2, (2, 4, 5, 6)), (3, (2, 4, 3, 4, 5))])
def test_a_batchnorm_folds_back_into_2d_and_3d_convolutions(rank: int, shape: tuple[int, ...]) -> None:
    free = ",".join("HWD"[:rank])
    text = f"(float[N,4,{free}] x) => (float[N,6,{free}] y) {{ c = Conv<pads={[1] * 2 * rank}>(x, w) y = BN(c, n) }}"
    folds_to(graph(text, w=weights(6, 4, *[3] * rank), **norm("n", 6)), "Conv", shape)


TRANSPOSED = [
    "",
    "<strides=[2]>",
    "<strides=[2],pads=[1,1],output_padding=[1]>",
    "<strides=[2],output_shape=[17]>",
    "<strides=[2],output_shape=[15]>",
    "<dilations=[2]>",
    '<auto_pad="SAME_UPPER",strides=[2]>',
    "<group=2,strides=[2]>",
]


@pytest.mark.parametrize("attributes", TRANSPOSED)
def test_a_batchnorm_folds_back_into_any_transposed_convolution(attributes: str) -> None:
    groups = 2 if "group" in attributes else 1
    text = "(float[N,4,L] x) => (float[N,6,M] y) { c = ConvTranspose%s(x, w, b) y = BN(c, n) }"
    model = graph(text % attributes, w=weights(4, 6 // groups, 3), b=weights(6), **norm("n", 6))
    folds_to(model, "ConvTranspose", (2, 4, 9))


GEMMS = [
    ("", (5,)),
    ("<transB=1>", (5,)),
    ("<alpha=0.5,beta=2.0,transB=1>", (5,)),
    ("<alpha=0.5,beta=0.0>", (5,)),
    ("<beta=3.0>", (1, 5)),
    ("<beta=3.0>", (1,)),
    ("<beta=3.0>", ()),
    ("<beta=3.0>", (1, 1)),
    ("<alpha=2.0,beta=3.0>", None),
]


@pytest.mark.parametrize(("attributes", "bias"), GEMMS)
def test_a_batchnorm_folds_into_gemm_from_both_sides_with_alpha_and_beta(
    attributes: str, bias: tuple[int, ...] | None
) -> None:
    c = "" if bias is None else ", c"
    text = "(float[N,4] x) => (float[N,5] y) { a = BN(x, m) g = Gemm%s(a, w%s) y = BN(g, n) }"
    w = weights(5, 4) if "transB" in attributes else weights(5, 4).T.copy()
    given = {} if bias is None else {"c": weights(*bias) if bias else np.float32(0.7)}
    after, _ = folds_to(graph(text % (attributes, c), w=w, **given, **norm("n", 5), **norm("m", 4)), "Gemm", (3, 4))
    (node,) = after.graph.node
    assert not {a.name for a in node.attribute} & {"alpha", "beta"}  # they are in the weights now


def test_gemm_with_alpha_and_beta_is_as_it_was_where_nothing_folds_into_it() -> None:
    text = "(float[N,4] x) => (float[N,5] y) { g = Gemm<alpha=0.5,beta=2.0>(x, w, c) y = Relu(g) }"
    after, _ = folds_to(graph(text, w=weights(4, 5), c=weights(5)), "Gemm Relu", (3, 4))
    assert [a.name for a in after.graph.node[0].attribute] == ["alpha", "beta"]


def test_a_transposed_input_of_gemm_is_left_alone() -> None:
    text = "(float[4,N] x) => (float[N,5] y) { g = Gemm<transA=1>(x, w) r = Relu(g) n = BN(r, n) y = Relu(n) }"
    stays(graph(text, w=weights(4, 5), **norm("n", 5)), "so its numbers may not change", (4, 3))


def test_a_bias_of_gemm_that_differs_by_row_is_left_alone() -> None:
    text = "(float[3,4] x) => (float[3,5] y) { g = Gemm(x, w, c) y = BN(g, n) }"
    stays(
        graph(text, w=weights(4, 5), c=weights(3, 1), **norm("n", 5)),
        "no rule takes a per-channel scale or shift through 'Gemm_0' (Gemm)",
        (3, 4),
    )


ADDS = ["y0 = Identity(p)", "y0 = Add(p, b)", "y0 = Add(b, p)"]


@pytest.mark.parametrize("add", ADDS)
def test_a_batchnorm_folds_back_into_matmul_with_and_without_its_add(add: str) -> None:
    text = "(float[N,4] x) => (float[N,5] y) { p = MatMul(x, w) %s y1 = BN(y0, n) y = Relu(y1) }"
    after, _ = folded(model := graph(text % add, w=weights(4, 5), b=weights(5), **norm("n", 5)))
    assert {n.op_type for n in after.graph.node} <= {"MatMul", "Add", "Relu", "Identity"}
    assert sum(n.op_type == "Add" for n in after.graph.node) == 1
    same_function(model, after, (3, 4))


def test_a_bias_is_added_behind_a_matmul_whose_product_is_the_output() -> None:
    model = graph("(float[N,4] x) => (float[N,5] y) { p = MatMul(x, w) y = BN(p, n) }", w=weights(4, 5), **norm("n", 5))
    folds_to(model, "MatMul Add", (3, 4))


@pytest.mark.parametrize("add", ADDS)
def test_a_batchnorm_folds_forward_into_matmul_over_the_last_axis(add: str) -> None:
    text = """(float[N,4,L] x) => (float[N,L,5] y) {
        n = BN(x, n)  t = Transpose<perm=[0,2,1]>(n)  p = MatMul(t, w)  %s  y = Identity(y0) }"""
    after, report = folded(model := graph(text % add, w=weights(4, 5), b=weights(5), **norm("n", 4)))
    assert report.affines_after == 0
    assert sum(n.op_type == "Add" for n in after.graph.node) == 1
    same_function(model, after, *LENGTHS)


def test_an_add_by_row_behind_a_matmul_is_no_bias_of_its_columns() -> None:
    # (4, 1) and a product of (N, 4, 4): as many entries as columns, but they belong to the rows.
    text = "(float[N,4,3] x) => (float[N,4,4] y) { p = MatMul(x, w) c = Add(p, b) y = Mul(c, s) }"
    model = graph(text, w=weights(3, 4), b=weights(4, 1), s=weights(4))
    after, _ = folded(model)
    same_function(model, after, (2, 4, 3))


@pytest.mark.parametrize("bias", ["c", "(1, c, 1)"])
def test_a_matrix_on_the_left_takes_affines_of_the_axis_before_the_last(bias: str) -> None:
    text = """(float[N,4,L] x) => (float[N,5,L] y) {
        r = Sigmoid(x)  n = BN(r, n)  p = MatMul(w, n)  q = Add(p, b)  m = BN(q, m)  y = Tanh(m) }"""
    shape = (5, 1) if bias == "c" else (1, 5, 1)
    model = graph(text, w=weights(5, 4), b=weights(*shape), **norm("n", 4), **norm("m", 5))
    after, _ = folds_to(model, "Sigmoid MatMul Add Tanh", *LENGTHS)
    assert weight_of(after, place=0, op="MatMul").shape == (5, 4)
    alone = graph(
        text.replace("q = Add(p, b)  m = BN(q, m)", "m = BN(p, m)"), w=weights(5, 4), **norm("n", 4), **norm("m", 5)
    )
    folds_to(alone, "Sigmoid MatMul Add Tanh", *LENGTHS)


def test_a_constant_of_three_axes_on_the_left_is_left_alone() -> None:
    text = "(float[N,4,L] x) => (float[N,5,L] y) { r = Sigmoid(x) n = BN(r, n) y = MatMul(w, n) }"
    stays(graph(text, w=weights(1, 5, 4), **norm("n", 4)), "through 'MatMul_2' (MatMul)", *LENGTHS)


def test_an_add_by_column_behind_a_matrix_on_the_left_is_no_bias_of_its_rows() -> None:
    text = "(float[N,3,4] x) => (float[N,4,4] y) { p = MatMul(w, x) c = Add(p, b) n = BN(c, n) y = Tanh(n) }"
    model = graph(text, w=weights(4, 3), b=weights(4), **norm("n", 4))
    after, _ = folded(model)
    same_function(model, after, (2, 3, 4))


EINSUMS = [
    ("ncl,oc->nol", (5, 4), 1),
    ("ncl,co->nol", (4, 5), 1),
    ("oc,ncl->nol", (5, 4), 0),
    ("co,ncl->nol", (4, 5), 0),
    ("oc, ...cl -> ...ol", (5, 4), 0),
]


@pytest.mark.parametrize("add", ADDS)
@pytest.mark.parametrize(("equation", "shape", "place"), EINSUMS)
def test_an_einsum_with_a_constant_matrix_takes_affines_on_both_sides(
    equation: str, shape: tuple[int, int], place: int, add: str
) -> None:
    text = f"""(float[N,4,L] x) => (float[N,5,L] y) {{
        r = Sigmoid(x)  n = BN(r, n)  p = Einsum<equation="{equation}">({"w, n" if place == 0 else "n, w"})
        {add}  m = BN(y0, m)  y = Tanh(m) }}"""
    model = graph(text, w=weights(*shape), b=weights(5, 1), **norm("n", 4), **norm("m", 5))
    after, report = folded(model)
    assert report.affines_after == 0
    assert sum(n.op_type == "Add" for n in after.graph.node) == 1
    assert weight_of(after, place=place, op="Einsum").shape == shape
    same_function(model, after, *LENGTHS)


@pytest.mark.parametrize(
    ("equation", "result"),
    [
        ("ncl,oc", "N,L,5"),  # no explicit result
        ("ncn,oc->noc", "N,5,4"),  # a diagonal
    ],
)
def test_an_einsum_of_another_form_is_left_alone(equation: str, result: str) -> None:
    shape = "N,4,N" if equation.startswith("ncn") else "N,4,L"
    text = f"""(float[{shape}] x) => (float[{result}] y) {{
        r = Sigmoid(x)  n = BN(r, n)  y = Einsum<equation="{equation}">(n, w) }}"""
    model = graph(text, w=weights(5, 4), **norm("n", 4))
    stays(
        model,
        "no rule takes a per-channel scale or shift through 'Einsum_2' (Einsum)",
        *([] if "ncn" in equation else LENGTHS),
    )


@pytest.mark.parametrize("scales", [np.float32(0.01), np.float32([0.01, 0.02, 0.03])])
def test_quantized_weights_are_named_as_the_reason(scales: np.ndarray) -> None:
    text = """(float[N,4,L] x) => (float[N,3,L] y) {
        w = DequantizeLinear<axis=0>(q, s)  c = Conv(x, w)  n = BN(c, n)  y = Tanh(n) }"""
    model = graph(text, q=np.int8(weights(3, 4, 1) * 100), s=scales, **norm("n", 3))
    after, report = folded(model)
    assert "computes with quantized numbers; fold the network before it is quantized" in "".join(
        report.folds[0].reasons
    )
    same_in_onnxruntime(model, after, *LENGTHS)


def test_a_matmul_does_not_tell_a_constant_position_for_a_constant_channel() -> None:
    # Position 0 of every channel is 1; taken for channel 0 it would be read as a carrier.
    w, b = weights(4, 4), np.float32([1, 0, 0, 0])
    w[:, 0] = 0
    text = """(float[N,4,4] x) => (float[N,4,4] y) {
        p = MatMul(x, w)  q = Add(p, b)  s = Sigmoid(q)  n = BN(s, n)  y = Conv<pads=[1,1]>(n, v) }"""
    model = graph(text, w=w, b=b, v=weights(4, 4, 3), **norm("n", 4))
    after, _ = folded(model)
    same_function(model, after, (2, 4, 4))


# --- fold forward: W (s x + t) + b = (W s) x + (b + W t) where nothing is padded --------------------------------------


def test_folding_forward_multiplies_columns_and_sums_the_shift_into_the_bias() -> None:
    text = by_hand("c = NORM(x)", "y = Conv(c, w, b)")
    after, _ = folds_to(graph(text, w=np.float32([[[2, 4]]]), b=np.float32([10]), **HAND), "Conv", (1, 1, 5))
    np.testing.assert_array_equal(weight_of(after, place=1).ravel(), [3, 6])  # 1.5 · [2, 4]
    np.testing.assert_array_equal(weight_of(after, place=2), [31])  # 10 + 3.5 · (2 + 4)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("attributes", ["strides=[2]", "dilations=[2]", 'auto_pad="VALID"', "pads=[0,0]"])
def test_a_batchnorm_folds_forward_into_any_unpadded_convolution(attributes: str, groups: int) -> None:
    text = "(float[N,4,L] x) => (float[N,8,M] y) { n = BN(x, n) y = Conv<group=%d,%s>(n, w, b) }"
    folds_to(
        graph(text % (groups, attributes), w=weights(8, 4 // groups, 3), b=weights(8), **norm("n", 4)), "Conv", *LENGTHS
    )


@pytest.mark.parametrize("groups", [1, 2])
def test_a_batchnorm_folds_forward_into_a_transposed_convolution_of_one_tap(groups: int) -> None:
    text = "(float[N,4,L] x) => (float[N,6,L] y) { n = BN(x, n) y = ConvTranspose<group=%d>(n, w) }"
    folds_to(graph(text % groups, w=weights(4, 6 // groups, 1), **norm("n", 4)), "ConvTranspose", *LENGTHS)


@pytest.mark.parametrize("attributes", [t for t in TRANSPOSED if "group" not in t])
def test_a_transposed_convolution_reads_the_shift_from_a_carrier_for_its_ends_see_fewer_taps(attributes: str) -> None:
    text = """(float[N,4,L] x) => (float[N,6,M] y) {
        c = Conv(x, u)  r = Relu(c)  n = BN(r, n)  y = ConvTranspose%s(n, w, b) }"""
    model = graph(text % attributes, u=weights(5, 4, 1), w=weights(5, 6, 3), b=weights(6), **norm("n", 5))
    after, report = folds_to(model, "Conv Relu ConvTranspose", (2, 4, 9))
    assert "carrier" in report.folds[0].how
    assert weight_of(after).shape == (6, 4, 1)


GROUPED = [
    ("Conv<group=4,pads=[1,1]>", (4, 1, 3)),
    ("Conv<group=2,pads=[0,1]>", (4, 2, 3)),
    ('Conv<group=4,auto_pad="SAME_UPPER">', (4, 1, 3)),
    ("ConvTranspose<group=2>", (4, 2, 3)),
]


@pytest.mark.parametrize(("reader", "shape"), GROUPED)
def test_a_grouped_reader_that_pads_takes_the_scale_and_leaves_the_shift(reader: str, shape: tuple[int, ...]) -> None:
    text = "(float[N,4,L] x) => (float[N,4,M] y) { s = Sigmoid(x) n = BN(s, n) y = %s(n, w) }"
    model = graph(text % reader, w=weights(*shape), **norm("n", 4))
    after, _ = folded(model)
    assert operators(after) == sorted(["Add", reader.partition("<")[0], "Sigmoid"])
    same_function(model, after, *LENGTHS)


@pytest.mark.parametrize(("reader", "shape"), GROUPED)
def test_a_grouped_reader_that_pads_refuses_a_shift(reader: str, shape: tuple[int, ...]) -> None:
    model = graph("(float[N,4,L] x) => (float[N,4,M] y) { y = %s(x, w) }" % reader, w=weights(*shape))  # noqa: UP031
    op = operator(model, reader.partition("<")[0])
    sentence = "pads with zeros and is depthwise or grouped, so no carrier channel can hold the shift"
    with pytest.raises(Refused, match=sentence):
        op.spread(Gauges({op.inputs[0]: Affine.of(np.ones((1, 1, 1)), 1.0)}))


def test_a_scale_alone_folds_forward_into_a_padded_depthwise_convolution() -> None:
    text = "(float[N,4,L] x) => (float[N,4,L] y) { s = Sigmoid(x) n = Mul(s, g) y = Conv<group=4,pads=[1,1]>(n, w) }"
    folds_to(graph(text, w=weights(4, 1, 3), g=weights(4, 1)), "Sigmoid Conv", *LENGTHS)


def test_an_affine_that_differs_by_position_cannot_go_into_a_convolution() -> None:
    text = "(float[N,4,6] x) => (float[N,4,6] y) { s = Sigmoid(x) n = Mul(s, g) y = Conv(n, w) }"
    sentence = "weighs whole channels, and here the scale differs within one"
    stays(graph(text, w=weights(4, 4, 1), g=weights(6)), sentence, (2, 4, 6))


def test_a_convolution_with_a_computed_weight_is_left_alone() -> None:
    text = "(float[N,4,L] x, float[5,4,1] w) => (float[N,5,L] y) { c = Conv(x, w) y = BN(c, n) }"
    stays(graph(text, **norm("n", 5)), "no rule takes a per-channel scale or shift through 'Conv_0' (Conv)", *LENGTHS)


def test_a_convolution_with_a_computed_bias_is_left_alone() -> None:
    text = "(float[N,4,L] x, float[5] b) => (float[N,5,L] y) { c = Conv(x, w, b) y = BN(c, n) }"
    stays(
        graph(text, w=weights(5, 4, 1), **norm("n", 5)),
        "no rule takes a per-channel scale or shift through 'Conv_0' (Conv)",
        *LENGTHS,
    )


# --- recurrent operators and embeddings -------------------------------------------------------------------------------


@pytest.mark.parametrize(("op", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("directions", [1, 2])
def test_a_batchnorm_folds_forward_into_the_input_weights_of_a_recurrent_operator(
    op: str, gates: int, biased: bool, directions: int
) -> None:
    hidden = 3
    text = """(float[N,4,L] x) => (float[L,%d,N,3] y) {
        n = BN(x, n)  t = Transpose<perm=[2,0,1]>(n)  y = %s<hidden_size=3,direction="%s">(t, w, r%s) }"""
    direction = "forward" if directions == 1 else "bidirectional"
    given = {"b": weights(directions, 2 * gates * hidden)} if biased else {}
    model = graph(
        text % (directions, op, direction, ", b" if biased else ""),
        w=weights(directions, gates * hidden, 4) * 0.3,
        r=weights(directions, gates * hidden, hidden) * 0.3,
        **given,
        **norm("n", 4),
    )
    after, report = folded(model)
    assert report.affines_after == 0
    assert sorted(n.op_type for n in after.graph.node) == sorted(["Transpose", op])
    if directions == 1:
        same_function(model, after, *LENGTHS)
    else:  # ONNX's reference knows one direction only
        same_in_onnxruntime(model, after, *LENGTHS)


@pytest.mark.parametrize(("op", "gates", "c"), [("LSTM", 4, ", c"), ("GRU", 3, ""), ("RNN", 1, "")])
def test_the_initial_state_of_a_recurrent_operator_with_a_constant_input_is_not_taken_for_its_input(
    op: str, gates: int, c: str
) -> None:
    # A decoder that starts from learned tokens. The state has as many channels as the input.
    text = """(float[N,3] x) => (float[5,1,N,4] y) {
        l = MatMul(x, k)  s = Sigmoid(l)  n = BN(s, n)  h = Unsqueeze(n, front)  c = Tanh(h)
        y = %s<hidden_size=4>(X, w, r, , , h%s) }"""
    start = {"X": weights(5, 2, 4), "k": weights(3, 4), "front": np.array([0])}
    model = graph(text % (op, c), w=weights(1, gates * 4, 4), r=weights(1, gates * 4, 4), **start, **norm("n", 4))
    after, report = folded(model)
    assert report.batchnorms_after == 1
    same_in_onnxruntime(model, after, (2, 3))


def test_a_tensor_that_is_both_input_and_state_of_a_recurrent_operator_is_not_scaled() -> None:
    text = """(float[1,N,4] x) => (float[1,1,N,4] y) {
        s = Sigmoid(x)  n = Mul(s, g)  y = GRU<hidden_size=4>(n, w, r, , , n) }"""
    model = graph(text, w=weights(1, 12, 4), r=weights(1, 12, 4), g=weights(4))
    stays(model, "is recurrent: its state and output pass through sigmoid and tanh", (1, 2, 4))


def test_nothing_folds_back_into_a_recurrent_operator() -> None:
    text = """(float[L,N,4] x) => (float[L,N,3] y) {
        h = LSTM<hidden_size=3>(x, w, r)  s = Squeeze(h, a)  y = Mul(s, g) }"""
    model = graph(text, w=weights(1, 12, 4), r=weights(1, 12, 3), a=np.array([1]), g=weights(3))
    stays(model, "is recurrent: its state and output pass through sigmoid and tanh", (5, 2, 4))


def test_a_recurrent_operator_refuses_an_affine_that_differs_by_step() -> None:
    text = "(float[5,N,4] x) => (float[5,1,N,3] y) { n = Mul(x, g) y = LSTM<hidden_size=3>(n, w, r) }"
    model = graph(text, w=weights(1, 12, 4), r=weights(1, 12, 3), g=weights(5, 1, 1))
    stays(model, "'LSTM_1' (LSTM) weighs whole channels, and here the scale differs within one", (5, 2, 4))


def test_a_batchnorm_folds_back_into_the_table_of_an_embedding() -> None:
    text = """(int64[N,L] i) => (float[N,4,L] y) {
        e = Gather(table, i)  t = Transpose<perm=[0,2,1]>(e)  y = BN(t, n) }"""
    model = graph(text, table=weights(2, 4), **norm("n", 4))
    after, _ = folded(model)
    table = next(t for t in after.graph.initializer)
    assert sorted(n.op_type for n in after.graph.node) == ["Gather", "Transpose"]
    assert list(table.dims) == [2, 4]
    same_function(model, after, (2, 7))


def test_a_table_refuses_an_affine_that_differs_by_position() -> None:
    text = "(int64[N,5] i) => (float[N,5,4] y) { e = Gather(table, i) y = Add(e, p) }"
    sentence = "looks up whole rows, and here the scale differs from position to position"
    stays(graph(text, table=weights(2, 4), p=weights(5, 1)), sentence, (2, 5))


# --- one operator alone -----------------------------------------------------------------------------------------------


def test_an_output_scaled_by_0_cannot_be_undone() -> None:
    op = operator(graph("(float[N,4,L] x) => (float[N,4,L] y) { y = Conv(x, w) }", w=weights(4, 4, 1)), "Conv")
    gauge = Affine.along(1, 3, np.float64([1, 0, 1, 1]), np.zeros(4))
    with pytest.raises(Refused, match="a channel is scaled by 0 or nearly so, which 'Conv_0' \\(Conv\\) cannot undo"):
        op.spread(Gauges({op.outputs[0]: gauge}))


def test_a_grouped_convolution_neither_emits_nor_passes_over_one_more_channel() -> None:
    op = operator(graph("(float[N,4,L] x) => (float[N,4,L] y) { y = Conv<group=2>(x, w) }", w=weights(4, 2, 1)), "Conv")
    for tensor in (*op.inputs, *op.outputs):
        with pytest.raises(Refused, match="can neither emit nor pass over one more channel"):
            op.add_channel({tensor: AddedChannel(axis=1, index=4)})


def test_a_matmul_refuses_one_more_channel_on_another_axis_than_its_last() -> None:
    op = operator(graph("(float[N,L,4] x) => (float[N,L,5] y) { y = MatMul(x, w) }", w=weights(4, 5)), "MatMul")
    with pytest.raises(Refused, match="has its channels on another axis"):
        op.add_channel({op.inputs[0]: AddedChannel(axis=1, index=4)})


def test_one_more_channel_is_read_with_zeros_and_emitted_from_the_bias() -> None:
    model = graph(
        "(float[N,2,L] x) => (float[N,1,L] y) { y = Conv(x, w, b) }", w=np.float32([[[3], [4]]]), b=np.float32([5])
    )
    op = operator(model, "Conv")
    (x,), (y,) = op.inputs, op.outputs
    wide = op.with_channel({x: AddedChannel(1, 2), y: AddedChannel(1, 1, value=7.0)})
    np.testing.assert_array_equal(wide.weight[0, :, :, 0], [[3, 4, 0], [0, 0, 0]])
    np.testing.assert_array_equal(wide.bias, [5, 7])


def test_a_recurrent_state_cannot_carry_one_more_channel() -> None:
    model = graph(
        "(float[L,N,4] x) => (float[L,1,N,3] y) { y = LSTM<hidden_size=3>(x, w, r) }",
        w=weights(1, 12, 4),
        r=weights(1, 12, 3),
    )
    op = operator(model, "LSTM")
    with pytest.raises(Refused, match="cannot carry one more channel in its state"):
        op.add_channel({op.outputs[0]: AddedChannel(3, 3), op.inputs[0]: AddedChannel(2, 4)})
    assert op.with_channel({op.inputs[0]: AddedChannel(2, 4)}).weight.shape == (1, 12, 5)


def test_a_table_gets_one_more_constant_column() -> None:
    model = graph("(int64[N,L] i) => (float[N,L,4] y) { y = Gather(table, i) }", table=weights(2, 4))
    op = operator(model, "Gather")
    wide = op.with_channel({op.outputs[0]: AddedChannel(2, 4, value=1.0)})
    np.testing.assert_array_equal(wide[:, 4], [1, 1])
    with pytest.raises(Refused, match="has its channels on another axis"):
        op.add_channel({op.outputs[0]: AddedChannel(1, 4)})
