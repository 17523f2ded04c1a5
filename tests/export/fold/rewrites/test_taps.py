"""Taps that meet nothing but zero padding are cut, and no others."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from tests.export.fold.graphs import Array, folded, graph, norm, operators, same_function, weights

from normfold.export.fold import FoldReport


def convolved(
    conv: str, x: str = "N,3,8", v: Array | None = None
) -> tuple[onnx.ModelProto, Array, list[int], FoldReport]:
    """The folded graph of one convolution, its weight and its pads, and the report."""
    text = f"(float[{x}] x) => (float[N,4{',A' * (x.count(',') - 1)}] y) {{ y = {conv} }}"
    model = graph(text, v=weights(4, 3, 64) if v is None else v)
    after, report = folded(model)
    lengths = [8 if part.isalpha() else int(part) for part in x.split(",")[1:]]
    same_function(model, after, (2, *lengths))
    (weight,) = (numpy_helper.to_array(i) for i in after.graph.initializer if len(i.dims) >= 3)
    pads = [list(a.ints) for n in after.graph.node for a in n.attribute if a.name == "pads"]
    return after, weight, pads[0] if pads else [], report


def test_of_64_taps_over_8_positions_15_are_left() -> None:
    given = weights(4, 3, 64)
    _, weight, pads, report = convolved("Conv<pads=[31,32]>(x, v)", v=given)
    assert np.array_equal(weight, given[:, :, 24:39])
    assert pads == [7, 7]
    assert report.parameters_after == 4 * 3 * 15
    assert any("keeps 15 of its 64 taps" in note for note in report.notes)


def test_axes_are_cut_one_by_one() -> None:
    _, weight, pads, _ = convolved("Conv<pads=[0,5,0,5]>(x, v)", "N,3,9,2", weights(4, 3, 3, 11))
    assert weight.shape == (4, 3, 3, 3)
    assert pads == [0, 1, 0, 1]


def test_a_batchnorm_behind_it_is_folded_into_what_is_left() -> None:
    text = "(float[N,3,8] x) => (float[N,4,8] y) { c = Conv<pads=[31,32]>(x, v) y = BN(c, n) }"
    model = graph(text, v=weights(4, 3, 64), **norm("n", 4))
    after, _ = folded(model)
    assert operators(after) == ["Conv"]
    same_function(model, after, (2, 3, 8))


def test_a_weight_that_another_convolution_needs_whole_stays_for_it() -> None:
    text = """(float[N,3,8] x, float[N,3,64] z) => (float[N,4,8] y, float[N,4,64] w) {
        y = Conv<pads=[31,32]>(x, v) w = Conv<pads=[31,32]>(z, v) }"""
    after, _ = folded(graph(text, v=weights(4, 3, 64)))
    assert sorted(i.dims[2] for i in after.graph.initializer) == [15, 64]


@pytest.mark.parametrize(
    ("conv", "x"),
    [
        ("Conv<pads=[31,32]>(x, v)", "N,3,L"),  # another length meets other taps
        ("Conv<pads=[31,32]>(x, v)", "N,3,64"),  # each tap meets a number
        ('Conv<auto_pad="SAME_UPPER">(x, v)', "N,3,8"),
        ("Conv<pads=[0,60]>(x, v)", "N,3,64"),
    ],
)
def test_taps_that_meet_a_number_stay(conv: str, x: str) -> None:
    _, weight, _, report = convolved(conv, x)
    assert weight.shape == (4, 3, 64)
    assert not any("taps" in note for note in report.notes)


def test_lengths_within_are_believed_only_where_the_inputs_are_fixed() -> None:
    """Whoever frees the length of an input often leaves the old lengths of inner values in the file."""
    model = graph(
        "(float[N,3,L] x) => (float[N,4,A] y) { r = Relu(x) y = Conv<pads=[31,32]>(r, v) }", v=weights(4, 3, 64)
    )
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("r", onnx.TensorProto.FLOAT, ["N", 3, 8]))
    after, _ = folded(model)
    assert [i.dims[2] for i in after.graph.initializer] == [64]


@pytest.mark.parametrize("stated", [False, True])
def test_taps_behind_an_einsum_that_is_longer_than_its_first_term_stay(stated: bool) -> None:
    """onnx's shape inference takes the length 1 of the constant, which onnxruntime broadcasts to 8."""
    text = """(float[N,3,8] x) => (float[N,5,A] y) {
        e = Einsum<equation="ol,ncl->nol">(c, x) y = Conv<pads=[1,1]>(e, v) }"""
    model = graph(text, c=weights(4, 1), v=weights(5, 4, 3))
    given = onnx.shape_inference.infer_shapes(model) if stated else model
    after, report = folded(onnx.ModelProto.FromString(given.SerializeToString()))
    assert not report.notes
    same_function(model, after, (2, 3, 8))


def test_a_weight_that_a_caller_may_replace_stays() -> None:
    model = graph("(float[N,3,8] x, float[4,3,64] v) => (float[N,4,8] y) { y = Conv<pads=[31,32]>(x, v) }")
    after, _ = folded(model)
    assert operators(after) == ["Conv"]
    assert [len(value.type.tensor_type.shape.dim) for value in after.graph.input] == [3, 3]


@settings(deadline=None)
@given(
    length=st.integers(1, 9),
    taps=st.integers(1, 12),
    stride=st.integers(1, 4),
    dilation=st.integers(1, 4),
    before=st.integers(0, 24),
    behind=st.integers(0, 24),
)
def test_what_is_cut_changes_nothing_and_what_is_left_cannot_be_spared(
    length: int, taps: int, stride: int, dilation: int, before: int, behind: int
) -> None:
    """Each of the outer taps that are left changes some output, unless the padding is too short to cut more."""
    assume(length + before + behind > dilation * (taps - 1))
    conv = f"Conv<pads=[{before},{behind}],strides=[{stride}],dilations=[{dilation}]>(x, v)"
    model = graph(f"(float[N,2,{length}] x) => (float[N,3,A] y) {{ y = {conv} }}", v=weights(3, 2, taps))
    after, _ = folded(model)
    same_function(model, after, (1, 2, length))
    (weight,) = (numpy_helper.to_array(i) for i in after.graph.initializer)
    reached = np.arange((length + before + behind - dilation * (taps - 1) - 1) // stride + 1)[:, None] * stride
    reached = reached + np.arange(taps) * dilation - before
    useful = ((reached >= 0) & (reached < length)).any(axis=0)
    whole = numpy_helper.to_array(model.graph.initializer[0])
    if not useful.any():
        assert weight.shape == whole.shape
        return
    first, last = np.flatnonzero(useful)[[0, -1]]
    first = min(first, before // dilation)
    last = max(last, taps - 1 - behind // dilation)
    assert np.array_equal(weight, whole[:, :, first : last + 1])
