"""Operators that only move entries let any affine pass, as long as its channels can be followed."""

from __future__ import annotations

import numpy as np
import onnx
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
    weights,
)

from normfold.export.fold.affine import Affine
from normfold.export.fold.channels import AddedChannel
from normfold.export.fold.net import Gauges, Refused
from normfold.export.fold.ops.moving import aligned
from normfold.export.fold.ranges import Range

LENGTHS = ((2, 3, 12), (3, 3, 23))


def behind(nodes: str, out: str = "N,5,M") -> str:
    """A BatchNorm behind a ReLU, so that it goes forward through the nodes."""
    return f"(float[N,3,L] x) => (float[{out}] y) {{ c = Conv(x, w) r = Relu(c) n = BN(r, n) {nodes} }}"


def before(nodes: str, out: str = "N,C,M") -> str:
    """A BatchNorm m before a sigmoid, so that it goes back through the nodes."""
    return f"(float[N,3,L] x) => (float[{out}] y) {{ c = Conv(x, w) {nodes} b = BN(m, n) y = Sigmoid(b) }}"


def given(**more: Array) -> dict[str, Array]:
    return {"w": weights(4, 3, 3), **norm("n", 4), **more}


# --- transpose --------------------------------------------------------------------------------------------------------


def test_an_affine_goes_forward_through_a_transpose() -> None:
    nodes = "t = Transpose<perm=[0,2,1]>(n) p = MatMul(t, v) y = Add(p, b)"
    model = graph(behind(nodes, "N,M,5"), **given(v=weights(4, 5), b=weights(5)))
    folds_to(model, "Conv Relu Transpose MatMul Add", *LENGTHS)


def test_an_affine_goes_back_through_transposes() -> None:
    nodes = "t = Transpose<perm=[0,2,1]>(c) m = Transpose<perm=[0,2,1]>(t)"
    folds_to(graph(before(nodes), **given()), "Conv Transpose Transpose Sigmoid", *LENGTHS)


def test_a_transpose_without_perm_turns_all_axes_over() -> None:
    text = "(float[3,4] x) => (float[4,3] y) { s = Mul(x, g) t = Transpose(s) y = Sigmoid(t) }"
    op = operator(graph(text, g=weights(4)), "Transpose")
    gauge = Affine.along(1, 2, np.arange(1.0, 5), np.zeros(4))
    assert op.spread(Gauges({op.inputs[0]: gauge}))[op.outputs[0]].scale.shape == (4, 1)
    with pytest.raises(Refused, match="moves the channels to another axis, through which no constant is followed"):
        op.add_channel({op.inputs[0]: AddedChannel(1, 4)})


# --- reshape, flatten, squeeze, unsqueeze -----------------------------------------------------------------------------


@pytest.mark.parametrize("opset", [11, 13, 17, 21])
@pytest.mark.parametrize("op", ["Squeeze", "Unsqueeze"])
def test_an_affine_goes_through_axes_of_length_1_named_as_attribute_or_input(op: str, opset: int) -> None:
    attribute, extra = ("", ", a") if opset >= 13 else ("<axes=[-1]>", "")
    arrays = {"a": np.array([-1])} if opset >= 13 else {}
    if op == "Squeeze":
        text = behind(f"g = GlobalAveragePool(n) s = Squeeze{attribute}(g{extra}) y = Gemm(s, v)", "N,5")
        model = graph(text, opset=opset, **given(v=weights(4, 5), **arrays))
        folds_to(model, "Conv Relu GlobalAveragePool Squeeze Gemm", *LENGTHS)
    else:
        text = behind(f"u = Unsqueeze{attribute}(n{extra}) y = Conv(u, v)", "N,5,M,1")
        model = graph(text, opset=opset, **given(v=weights(5, 4, 1, 1), **arrays))
        folds_to(model, "Conv Relu Unsqueeze Conv", *LENGTHS)


@pytest.mark.parametrize(
    "nodes", ["f = Flatten(n)", "f = Flatten<axis=-2>(n)", "f = Reshape(n, all)", "f = Reshape(n, kept)"]
)
def test_a_flattened_affine_goes_into_the_linear_layer_behind(nodes: str) -> None:
    text = behind(f"{nodes} y = Gemm<transB=1>(f, v)", "N,5").replace("float[N,3,L]", "float[N,3,7]")
    model = graph(text, **given(v=weights(5, 20), all=np.array([-1, 20]), kept=np.array([0, -1])))
    folds_to(model, f"Conv Relu {nodes.split()[2].partition('(')[0].partition('<')[0]} Gemm", (2, 3, 7))


def test_an_affine_goes_back_through_a_reshape_that_splits_the_channels() -> None:
    text = """(float[N,3,5] x) => (float[N,4,5] y) {
        c = Conv(x, w)  r = Reshape(c, s)  m = Mul(r, g)  z = Sigmoid(m)  y = Reshape(z, e) }"""
    model = graph(text, w=weights(4, 3, 1), s=np.array([0, 2, 2, 5]), e=np.array([0, 4, 5]), g=weights(2, 1, 1))
    folds_to(model, "Conv Reshape Sigmoid Reshape", (2, 3, 5))


def test_positions_that_are_flattened_with_channels_into_another_axis_are_followed_or_refused() -> None:
    # (N, 4, 6) read as (N, 6, 4): a channel's entries scatter over both axes.
    text = behind("f = Reshape(n, s) y = Conv(f, v)", "N,5,4").replace("float[N,3,L]", "float[N,3,8]")
    model = graph(text, **given(v=weights(5, 6, 1), s=np.array([0, 6, 4])))
    stays(model, "weighs whole channels, and here the scale differs within one", (2, 3, 8))


def test_dynamic_lengths_that_are_mixed_cannot_be_followed() -> None:
    text = "(float[N,3,L] x) => (float[A,B] y) { s = Sigmoid(x) n = BN(s, n) f = Reshape(n, t) y = Tanh(f) }"
    _, report = folded(graph(text, t=np.array([-1, 3]), **norm("n", 3)))
    assert "mixes axes of dynamic length, so no channel can be followed through it" in "; ".join(
        report.folds[0].reasons
    )


def test_a_computed_shape_is_followed_by_the_lengths_that_are_known() -> None:
    nodes = """a = Shape(x)  b = Gather(a, zero)  d = Concat<axis=0>(b, rest)
        p = ReduceMean<axes=[2]>(n)  f = Reshape(p, d)  y = Gemm(f, v)"""
    model = graph(behind(nodes, "N,5"), **given(v=weights(4, 5), zero=np.array([0]), rest=np.array([4])))
    after, report = folded(model)
    assert report.affines_after == 0
    same_function(model, after, *LENGTHS)


@pytest.mark.parametrize(
    ("shape", "target", "groups"),
    [
        (("N", 4, 6), ("N", 24), [((0,), (0,)), ((1, 2), (1,))]),
        (("N", 4, "L"), ("N", 2, 2, "L"), [((0,), (0,)), ((1,), (1, 2)), ((2,), (3,))]),
        (("N", 4, 1, "L"), ("N", 4, "L"), None),
        ((2, 3, 4), (6, 4), [((0, 1), (0,)), ((2,), (1,))]),
        (("N", 4, "L"), ("A", 4), [((0, 1, 2), (0, 1))]),
        (("N", 6, 3, "A", "B"), ("N", 18, "C"), [((0,), (0,)), ((1, 2), (1,)), ((3, 4), (2,))]),
        (("N", 38, 64), ("38*N", 64), [((0, 1), (0,)), ((2,), (1,))]),
        (("38*N", 64), ("N", 38, 64), [((0,), (0, 1)), ((1,), (2,))]),
        (("N", "L", 4), ("L*N", 4), [((0, 1), (0,)), ((2,), (1,))]),
        (("N", "L", 4), ("N + L", 4), [((0, 1), (0,)), ((2,), (1,))]),
        (("2*N", 4), ("N", 4), [((0,), (0,)), ((1,), (1,))]),
        (("N", None, 4), ("M", 4), [((0, 1), (0,)), ((2,), (1,))]),
    ],
)
def test_axes_are_aligned_in_the_finest_groups(shape: tuple, target: tuple, groups: list | None) -> None:
    found = aligned(shape, target)
    if groups is not None:
        assert found == groups
    elif found is not None:  # an axis of length 1 may go with either neighbour
        assert all(len(right) == 1 for _, right in found)


# --- concat, split, slice, gather -------------------------------------------------------------------------------------


def test_a_batchnorm_behind_a_concat_goes_back_into_every_branch() -> None:
    nodes = "d = Conv(x, u) e = Conv<pads=[1,1]>(x, k) m = Concat<axis=1>(c, d, e)"
    arrays = {"w": weights(4, 3, 3), "u": weights(2, 3, 3), "k": weights(3, 3, 5), **norm("n", 9)}
    folds_to(graph(before(nodes), **arrays), "Conv Conv Conv Concat Sigmoid", *LENGTHS)


@pytest.mark.parametrize("gamma", ["positive", "mixed"])
def test_a_batchnorm_passes_circular_padding_of_a_dynamic_length(gamma: str) -> None:
    nodes = "r = Sigmoid(c) n = BN(r, n) a = Slice(n, last, end, two) b = Slice(n, zero, one, two) p = Concat<axis=2>(a, n, b)"
    ends = {"last": [-1], "end": [np.iinfo(np.int64).max], "zero": [0], "one": [1], "two": [2]}
    model = graph(
        f"(float[N,3,L] x) => (float[N,5,M] y) {{ c = Conv(x, w) {nodes} y = Conv(p, v) }}",
        w=weights(4, 3, 3),
        v=weights(5, 4, 3),
        **{name: np.array(value, np.int64) for name, value in ends.items()},
        **norm("n", 4, gamma=gamma),
    )
    folds_to(model, "Conv Sigmoid Slice Slice Concat Conv", (2, 3, 9), (1, 3, 17))


def test_a_batchnorm_passes_cuts_of_positions_before_the_channels() -> None:
    """Windows of frames, positions by channels, as an x-vector joins them: the positions are the second axis."""
    nodes = "t = Transpose<perm=[0,2,1]>(n) a = Slice(t, zero, two, one) b = Slice(t, one, end, one) p = Concat<axis=2>(a, b)"
    ends = {"zero": [0], "one": [1], "two": [-1], "end": [np.iinfo(np.int64).max]}
    model = graph(
        f"(float[N,3,L] x) => (float[N,M,5] y) {{ c = Conv(x, w) s = Sigmoid(c) n = BN(s, n) {nodes} y = MatMul(p, v) }}",
        **given(v=weights(8, 5), **{name: np.array(value, np.int64) for name, value in ends.items()}),
    )
    folds_to(model, "Conv Sigmoid Transpose Slice Slice Concat MatMul Add", *LENGTHS)


def test_positions_of_two_tensors_are_joined_only_where_both_are_scaled_alike() -> None:
    nodes = "a = Conv(x, w) n = BN(a, n) p = Concat<axis=2>(n, x) y = Conv(p, v)"
    model = graph(
        f"(float[N,3,L] x) => (float[N,5,M] y) {{ {nodes} }}", w=weights(3, 3, 1), v=weights(5, 3, 1), **norm("n", 3)
    )
    folds_to(model, "Conv Concat Conv", (2, 3, 9))
    other = graph(
        "(float[N,3,L] x) => (float[N,5,M] y) { a = Sigmoid(x) n = BN(a, n) p = Concat<axis=2>(n, x) y = Conv(p, v) }",
        v=weights(5, 3, 1),
        **norm("n", 3),
    )
    stays(other, "not all of them are scaled alike", (2, 3, 9))


def test_batchnorms_before_a_concat_go_forward_into_its_reader() -> None:
    nodes = """d = Conv(x, u)  e = Sigmoid(d)  o = BN(e, m)  f = Conv(x, u)
        j = Concat<axis=1>(n, f, o)  y = Conv<pads=[1,1]>(j, v)"""
    model = graph(behind(nodes), **given(u=weights(2, 3, 3), v=weights(5, 8, 3), **norm("m", 2)))
    folds_to(model, "Conv Relu Conv Sigmoid Conv Concat Conv", *LENGTHS)


def test_one_tensor_joined_twice_takes_one_affine_only() -> None:
    nodes = "m = Concat<axis=1>(c, c)"
    model = graph(before(nodes), w=weights(4, 3, 3), **norm("n", 8))
    stays(model, "joins 'c' twice, and the two would need different scales", *LENGTHS)


def test_a_tensor_joined_with_itself_takes_the_same_affine_on_both_sides() -> None:
    nodes = "m = Concat<axis=1>(c, c)"
    one = norm("n", 4, gamma="positive")
    model = graph(before(nodes), w=weights(4, 3, 3), **{k: np.tile(v, 2) for k, v in one.items()})
    folds_to(model, "Conv Concat Sigmoid", *LENGTHS)


WIDE = {"pad": "Pad(c, ends)", "more": "Pad(c, sides)"}


@pytest.mark.parametrize("made", WIDE)
def test_a_tensor_joined_with_itself_among_new_channels_takes_one_affine_only(made: str) -> None:
    # Behind the Concat the tensor would be scaled in one way, and its padded copy in another.
    nodes = f"p = {WIDE[made]} m = Concat<axis=1>(c, p)"
    ends = {"ends": np.array([0, 1, 0, 0, 1, 0]), "sides": np.array([0, 0, 0, 0, 2, 0])}
    plain = norm("n", 10, beta=np.zeros(10), mean=np.zeros(10))
    model = graph(before(nodes), w=weights(4, 3, 3), **ends, **plain)
    stays(model, "'c' would need two different scales or shifts at once", *LENGTHS)


def test_a_tensor_joined_with_itself_among_new_channels_takes_the_same_affine_on_both_sides() -> None:
    gamma = np.concatenate([[1.5, 0.5, 2, 0.7], [3], [1.5, 0.5, 2, 0.7], [4]])
    plain = {"beta": np.zeros(10), "mean": np.zeros(10), "var": np.ones(10)}
    model = graph(
        before("p = Pad(c, ends) m = Concat<axis=1>(c, p)"),
        w=weights(4, 3, 3),
        ends=np.array([0, 1, 0, 0, 1, 0]),
        **norm("n", 10, gamma=gamma, **plain),
    )
    folds_to(model, "Conv Pad Concat Sigmoid", *LENGTHS)


def test_no_shift_passes_a_pad_of_channels_and_positions_at_once() -> None:
    # Its new channels hold 0 everywhere; a carrier would give them the shift within the ends.
    kernel, bias = weights(4, 3, 3), weights(4)
    kernel[1], bias[1] = 0, 1
    same = {
        k: np.full(4, v, np.float32) for k, v in {"n_gamma": 1.3, "n_beta": 0.7, "n_mean": 0.2, "n_var": 0.9}.items()
    }
    text = """(float[N,3,L] x) => (float[N,5,M] y) {
        c = Conv(x, w, b) r = Sigmoid(c) n = BN(r, n) p = Pad(n, ends) y = Conv(p, v) }"""
    model = graph(text, w=kernel, b=bias, v=weights(5, 6, 3), ends=np.array([0, 1, 1, 0, 1, 1]), **same)
    after, report = folded(model)
    assert report.affines_after == 1
    same_function(model, after, *LENGTHS)


def test_a_constant_joined_to_the_channels_lets_nothing_pass_and_stays_what_it_is() -> None:
    text = (
        "(float[1,3,6] x) => (float[1,5,6] y) { c = Sigmoid(x) n = BN(c, n) j = Concat<axis=1>(n, k) y = Conv(j, v) }"
    )
    model = graph(text, k=weights(1, 1, 6), v=weights(5, 4, 1), **norm("n", 3))
    after, _ = folded(model)
    same_function(model, after, (1, 3, 6))


SPLITS = [
    ("Split<axis=1,split=[1,3]>(n)", 11),
    ("Split<axis=1,split=[1,3]>(n)", 12),
    ("Split<axis=1>(n, sizes)", 13),
    ("Split<axis=-2>(n, sizes)", 18),
]


@pytest.mark.parametrize(("split", "opset"), SPLITS)
def test_an_affine_goes_forward_through_a_split(split: str, opset: int) -> None:
    nodes = f"a, b = {split} d = Conv<pads=[1,1]>(a, v) e = Conv(b, k) y = Concat<axis=2>(d, e)"
    arrays = {"sizes": np.array([1, 3])} if opset >= 13 else {}
    model = graph(behind(nodes), opset=opset, **given(v=weights(5, 1, 3), k=weights(5, 3, 1), **arrays))
    folds_to(model, "Conv Relu Split Conv Conv Concat", *LENGTHS)


EQUAL = [("Split<axis=1>(n)", 13), ("Split<axis=1,num_outputs=2>(n)", 18)]
EQUAL.insert(0, ("Split<axis=1>(n)", 11))


@pytest.mark.parametrize(("split", "opset"), EQUAL)
def test_a_split_into_equal_parts_names_its_sizes_where_one_part_gets_a_carrier(split: str, opset: int) -> None:
    nodes = f"a, b = {split} d = Conv<pads=[1,1]>(a, v) e = Conv(b, k) y = Concat<axis=2>(d, e)"
    model = graph(behind(nodes), opset=opset, **given(v=weights(5, 2, 3), k=weights(5, 2, 1)))
    folds_to(model, "Conv Relu Split Conv Conv Concat", *LENGTHS)


def test_affines_behind_a_split_go_back_slice_by_slice() -> None:
    text = """(float[N,3,L] x) => (float[N,1,M] y, float[N,3,M] z) {
        c = Conv(x, w)  a, b = Split<axis=1>(c, sizes)  m = BN(a, m)  n = BN(b, n)  y = Sigmoid(m)  z = Tanh(n) }"""
    model = graph(text, w=weights(4, 3, 3), sizes=np.array([1, 3]), **norm("m", 1), **norm("n", 3))
    folds_to(model, "Conv Split Sigmoid Tanh", *LENGTHS)


@pytest.mark.parametrize("sizes", [[0, 4], [4, 0], [1, 0, 3]])
def test_an_empty_part_of_a_split_is_no_trouble(sizes: list[int]) -> None:
    parts = ["a", "b", "d"][: len(sizes)]
    names = ", ".join(parts)
    nodes = f"{names} = Split<axis=1>(n, sizes) j = Concat<axis=1>({names}) y = Conv<pads=[1,1]>(j, v)"
    model = graph(behind(nodes), **given(v=weights(5, 4, 3), sizes=np.array(sizes)))
    after, report = folded(model)
    assert report.affines_after == 0
    same_function(model, after, *LENGTHS)


CHANNELS = [
    ("Slice(n, one, three, axis)", 13),
    ("Slice<starts=[1],ends=[3],axes=[1]>(n)", 9),
    ("Slice(n, one, large, axis, two)", 13),
    ("Slice(n, minus1, far, axis, minus1)", 13),
    ("Gather<axis=1>(n, index)", 13),
    ("Gather<axis=-2>(n, negative)", 13),
]
ENDS = {
    "one": np.array([1]),
    "three": np.array([3]),
    "axis": np.array([1]),
    "two": np.array([2]),
    "large": np.array([2**63 - 1]),
    "minus1": np.array([-1]),
    "far": np.array([-(2**63) + 1]),
    "index": np.array([2, 0, 2]),
    "negative": np.array([-1, 0]),
}


@pytest.mark.parametrize(("pick", "opset"), CHANNELS)
def test_an_affine_goes_with_the_channels_that_are_picked(pick: str, opset: int) -> None:
    count = {"Slice(n, minus1, far, axis, minus1)": 4, "Gather<axis=1>(n, index)": 3}.get(pick, 2)
    model = graph(behind(f"s = {pick} y = Conv(s, v)"), opset=opset, **given(v=weights(5, count, 1), **ENDS))
    after, report = folded(model)
    assert report.affines_after == 0
    assert "BatchNormalization" not in operators(after)
    same_function(model, after, *LENGTHS)


@pytest.mark.parametrize("slice_", ["Slice(n, one, large, axis2)", "Slice(n, one, large, axis2, two)"])
def test_an_affine_goes_through_a_slice_of_positions(slice_: str) -> None:
    model = graph(
        behind(f"s = {slice_} y = Conv<pads=[1,1]>(s, v)"),
        **given(v=weights(5, 4, 3), **ENDS, axis2=np.array([-1])),
    )
    folds_to(model, "Conv Relu Slice Conv", *LENGTHS)


def test_an_affine_goes_through_a_slice_of_positions_with_computed_ends() -> None:
    # Shape inference names no length of such a slice, not that of the channels either; a carrier needs it.
    text = """(float[N,3,L] x, int64[1] e) => (float[A,5,B] y) {
        c = Conv(x, w)  r = Relu(c)  n = BN(r, n)  s = Slice(n, e, large, axis)  y = Conv<pads=[1,1]>(s, v) }"""
    model = graph(text, large=np.array([9]), axis=np.array([2]), **given(v=weights(5, 4, 3)))
    folds_to(model, "Conv Relu Slice Conv", *LENGTHS)


@pytest.mark.parametrize("index", ["places", "k"])
def test_an_affine_goes_through_a_gather_of_positions(index: str) -> None:
    # "places" is computed, "k" is constant and the length that it picks from dynamic.
    nodes = f"""z = Shape<start=2,end=3>(n)  last = Sub(z, k)  places = Concat<axis=0>(k, last)
        g = Gather<axis=2>(n, {index})  y = Conv(g, v)"""
    model = graph(behind(nodes), **given(v=weights(5, 4, 1), k=np.array([1])))
    after, report = folded(model)
    assert report.affines_after == 0
    same_function(model, after, *LENGTHS)


def test_an_affine_of_positions_does_not_go_through_a_gather_by_computed_places() -> None:
    text = """(float[N,3,6] x, int64[2] e) => (float[N,3,2] y) {
        s = Sigmoid(x)  m = Mul(s, g)  k = Gather<axis=2>(m, e)  y = Conv(k, v) }"""
    _, report = folded(graph(text, g=weights(6), v=weights(3, 3, 1)))
    assert "picks entries of an axis along which the scale or shift differs" in "; ".join(report.folds[0].reasons)


@pytest.mark.parametrize("gamma", ["positive", "mixed"])
def test_an_affine_goes_through_an_expand_of_positions(gamma: str) -> None:
    # PointNet repeats what it knows of the whole cloud at each of its points.
    text = """(float[N,3,L] x) => (float[N,5,L] y) {
        c = Conv(x, w)  r = Relu(c)  g = ReduceMax<axes=[2], keepdims=1>(r)  n = BN(g, n)
        i = Shape(r)  e = Expand(n, i)  m = Concat<axis=1>(r, e)  y = Conv(m, v) }"""
    model = graph(text, w=weights(4, 3, 1), v=weights(5, 8, 1), **norm("n", 4, gamma=gamma))
    inferred = onnx.shape_inference.infer_shapes(model)
    inferred.graph.value_info.append(onnx.helper.make_tensor_value_info("e", onnx.TensorProto.FLOAT, ["N", 4, "L"]))
    folds_to(inferred, "Conv Relu ReduceMax Shape Expand Concat Conv", *LENGTHS)


def test_an_affine_by_channel_does_not_go_back_through_an_expand_of_one_channel() -> None:
    text = """(float[N,1,L] x) => (float[N,4,L] y) {
        c = Conv(x, w)  e = Expand(c, s)  n = BN(e, n)  y = Sigmoid(n) }"""
    model = graph(text, w=weights(1, 1, 1), s=np.array([1, 4, 1]), **norm("n", 4))
    stays(model, "mixes channels, and here they have different scales or shifts", (2, 1, 12), (3, 1, 23))


def test_a_slice_with_computed_ends_lets_nothing_pass_along_its_axis() -> None:
    text = """(float[N,3,6] x, int64[1] e) => (float[N,3,M] y) {
        s = Sigmoid(x)  m = Mul(s, g)  k = Slice(m, one, e, axis)  y = Tanh(k) }"""
    model = graph(text, one=np.array([1]), axis=np.array([2]), g=weights(6))
    _, report = folded(model)
    assert "cuts positions, and here the scale differs from position to position" in "; ".join(report.folds[0].reasons)


# --- pad --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["reflect", "edge"])
@pytest.mark.parametrize("gamma", ["positive", "mixed"])
def test_any_affine_goes_through_mirrored_and_repeated_edges(mode: str, gamma: str) -> None:
    text = behind(f'p = Pad<mode="{mode}">(n, pads) y = Conv(p, v)')
    arrays = {"w": weights(4, 3, 3), "v": weights(5, 4, 3), "pads": np.array([0, 0, 2, 0, 0, 1])}
    folds_to(graph(text, **arrays, **norm("n", 4, gamma=gamma)), "Conv Relu Pad Conv", *LENGTHS)


def test_any_affine_goes_through_circular_padding() -> None:
    text = behind('p = Pad<mode="wrap">(n, pads) y = Conv(p, v)')
    model = graph(text, opset=19, **given(v=weights(5, 4, 3), pads=np.array([0, 0, 2, 0, 0, 1])))
    folds_to(model, "Conv Relu Pad Conv", *LENGTHS)


PADS = [
    ("Pad(n, pads)", 11),
    ("Pad(n, pads, zero)", 13),
    ("Pad(n, ends, , axes)", 18),
    ("Pad<pads=[0,0,2,0,0,1]>(n)", 10),
]


@pytest.mark.parametrize(("pad", "opset"), PADS)
def test_zeros_put_before_a_mean_let_a_scale_pass(pad: str, opset: int) -> None:
    text = """(float[N,3,L] x) => (float[N,5,1] y) {
        c = Conv(x, w)  r = Relu(c)  n = Mul(r, g)  p = %s  a = GlobalAveragePool(p)  y = Conv(a, v) }"""
    arrays = {
        "pads": np.array([0, 0, 2, 0, 0, 1]),
        "zero": np.float32(0),
        "ends": np.array([2, 1]),
        "axes": np.array([-1]),
    }
    model = graph(text % pad, opset=opset, w=weights(4, 3, 3), v=weights(5, 4, 1), g=weights(4, 1), **arrays)
    folds_to(model, "Conv Relu Pad GlobalAveragePool Conv", *LENGTHS)


def test_zeros_before_anything_but_a_convolution_do_not_take_a_shift() -> None:
    text = "(float[N,3,L] x) => (float[N,3,M] y) { s = Sigmoid(x) n = BN(s, n) p = Pad(n, pads) y = Tanh(p) }"
    sentence = "'Pad_2' (Pad) pads with zeros, which do not take the shift"
    stays(graph(text, pads=np.array([0, 0, 1, 0, 0, 1]), **norm("n", 3)), sentence, *LENGTHS)


def test_padding_with_another_value_lets_nothing_pass() -> None:
    text = "(float[N,3,L] x) => (float[N,3,M] y) { s = Sigmoid(x) n = BN(s, n) p = Pad(n, pads, one) y = Tanh(p) }"
    model = graph(text, pads=np.array([0, 0, 1, 0, 0, 1]), one=np.float32(1), **norm("n", 3))
    stays(model, "no rule takes a per-channel scale or shift through 'Pad_2' (Pad)", *LENGTHS)


def test_negative_padding_cuts_positions_and_lets_everything_pass() -> None:
    model = graph(
        behind("p = Pad(n, pads) y = Conv(p, v)"), **given(v=weights(5, 4, 1), pads=np.array([0, 0, -1, 0, 0, 0]))
    )
    after, report = folded(model)
    assert report.affines_after == 0
    same_in_onnxruntime(model, after, *LENGTHS)


def test_channels_of_zeros_behind_the_others_take_a_scale_but_no_shift() -> None:
    model = graph("(float[N,2,L] x) => (float[N,4,L] y) { y = Pad(x, p) }", p=np.array([0, 0, 0, 0, 2, 0]))
    op = operator(model, "Pad")
    (x,), (y,) = op.inputs, op.outputs
    back = op.spread(Gauges({y: Affine.along(1, 3, np.arange(1.0, 5), np.float64([6, 7, 0, 0]))}))[x]
    assert back.equals(Affine.along(1, 3, np.float64([1, 2]), np.float64([6, 7])))
    with pytest.raises(Refused, match="adds channels of zeros, which do not take a shift"):
        op.spread(Gauges({y: Affine.along(1, 3, np.ones(4), np.float64([0, 0, 0, 1]))}))


def test_a_batchnorm_behind_channels_of_zeros_keeps_the_function() -> None:
    model = graph(before("m = Pad(c, pads)"), w=weights(4, 3, 3), pads=np.array([0, 0, 0, 0, 2, 0]), **norm("n", 6))
    after, _ = folded(model)
    same_function(model, after, *LENGTHS)


def test_channels_of_zeros_are_not_in_the_way_of_an_affine_before_them() -> None:
    nodes = "p = Pad(n, pads) y = Conv<pads=[1,1]>(p, v)"
    model = graph(behind(nodes), **given(v=weights(5, 6, 3), pads=np.array([0, 0, 0, 0, 2, 0])))
    after, report = folded(model)
    assert report.affines_after == 0
    same_function(model, after, *LENGTHS)


#: The lengths of a Pad in six entries, of which none is known, as "same" padding for any length is written.
COMPUTED = "a = Shape(x) b = Mul(a, last) k = Div(b, four) pads = Concat<axis=0>(k, k)"


@pytest.mark.parametrize("mode", ["constant", "reflect"])
def test_a_pad_of_computed_lengths_keeps_the_channels_that_its_reader_has(mode: str) -> None:
    nodes = f'{COMPUTED} p = Pad<mode="{mode}">(n, pads) y = Conv(p, v)'
    places = {"last": np.array([0, 0, 1]), "four": np.array([4])}
    model = graph(behind(nodes), **given(v=weights(5, 4, 3), **places))
    after, report = folded(model)
    assert report.batchnorms_after == 0
    same_function(model, after, *LENGTHS)


def test_a_pad_of_computed_lengths_lets_nothing_pass_that_may_add_channels() -> None:
    places = {"last": np.array([0, 1, 0]), "four": np.array([3])}
    model = graph(behind(f"{COMPUTED} p = Pad(n, pads) y = Conv(p, v)"), **given(v=weights(5, 6, 1), **places))
    stays(model, "no rule takes a per-channel scale or shift through 'Pad_7' (Pad)", *LENGTHS)


#: The numbers of a Pad that lengthens the first axis by a computed number; beside it they are 0, computed or not.
ROWS = "a = Shape(n) k = Gather(a, last) m = Div(k, nine) h = Div(k, many) pads = Concat<axis=0>(%s)"
NUMBERS = {k: np.array(v) for k, v in {"last": [2], "nine": [9], "many": [99], "row": [1], "ends": [0] * 4}.items()}


def rows_added(rows: str = "m, ends, zero", mode: str = "constant", into: str = "y = Conv(p, v)") -> onnx.ModelProto:
    nodes = f'{ROWS % rows} p = Pad<mode="{mode}">(n, pads) {into}'
    return graph(behind(nodes, "R,5,M"), **given(v=weights(5, 4, 3), zero=np.array([0]), **NUMBERS))


@pytest.mark.parametrize("rows", ["m, ends, zero", "m, h, ends", "row, h, ends"])
def test_rows_of_zeros_added_to_the_batch_take_no_shift(rows: str) -> None:
    after, _ = folded(rows_added(rows))
    same_function(rows_added(rows), after, *LENGTHS)
    if "zero" in rows:
        sentence = "(Pad) pads with zeros, which do not take the shift"
        stays(rows_added(rows, into="z = Tanh(p) y = Conv(z, v)"), sentence, *LENGTHS)


@pytest.mark.parametrize("rows", ["m, ends, zero", "m, h, ends", "row, h, ends"])
def test_rows_that_repeat_others_of_the_batch_take_any_affine(rows: str) -> None:
    model = rows_added(rows, "edge")
    after, report = folded(model)
    assert report.batchnorms_after == 0
    same_function(model, after, *LENGTHS)


def test_rows_of_another_number_than_0_let_nothing_pass() -> None:
    model = rows_added("m, h, ends")
    next(node for node in model.graph.node if node.op_type == "Pad").input.append("five")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(5), "five"))
    stays(model, "no rule takes a per-channel scale or shift through 'Pad_8' (Pad)", *LENGTHS)


def test_along_a_first_axis_that_a_pad_lengthens_no_scale_may_differ() -> None:
    nodes = 't = Transpose<perm=[1,0,2]>(n) p = Pad<mode="edge">(t, pads) y = Sigmoid(p)'
    model = graph(behind(f"{ROWS % 'm, ends, zero'} {nodes}", "R,N,M"), **given(zero=np.array([0]), **NUMBERS))
    stays(model, "(Pad) pads an axis along which the scale differs", *LENGTHS)


# --- one more channel -------------------------------------------------------------------------------------------------

W = AddedChannel(axis=1, index=4)


def test_a_concat_cannot_grow_twice_or_along_another_axis() -> None:
    op = operator(graph("(float[N,4,L] x, float[N,4,L] z) => (float[N,8,L] y) { y = Concat<axis=1>(x, z) }"), "Concat")
    x, z = op.inputs
    assert op.add_channel({x: W})[op.outputs[0]].index == 4
    assert op.add_channel({z: W})[op.outputs[0]].index == 8
    assert op.add_channel({op.outputs[0]: AddedChannel(1, 8)}) == {z: W}
    with pytest.raises(Refused, match="would grow by more than one channel"):
        op.add_channel({x: W, z: W})
    with pytest.raises(Refused, match="joins along another axis than the channels"):
        op.add_channel({x: AddedChannel(2, 4)})


def test_a_tensor_joined_with_itself_gets_no_carrier() -> None:
    op = operator(graph("(float[N,4,L] x) => (float[N,8,L] y) { y = Concat<axis=1>(x, x) }"), "Concat")
    with pytest.raises(Refused, match="joins a tensor with itself"):
        op.add_channel({op.inputs[0]: W})


def test_a_split_grows_with_the_part_that_ends_where_the_new_channel_is() -> None:
    text = "(float[N,4,L] x) => (float[N,1,L] y, float[N,3,L] z) { y, z = Split<axis=1>(x, s) }"
    op = operator(graph(text, s=np.array([1, 3])), "Split")
    (x,), (y, z) = op.inputs, op.outputs
    assert op.add_channel({x: W}) == {z: AddedChannel(1, 3)}
    assert op.add_channel({y: AddedChannel(1, 1)}) == {x: AddedChannel(1, 1)}
    with pytest.raises(Refused, match="carries a new channel only at the end of a part"):
        op.add_channel({z: AddedChannel(1, 0)})
    with pytest.raises(Refused, match="would grow by more than one channel"):
        op.add_channel({y: AddedChannel(1, 1), z: AddedChannel(1, 3)})
    for tensor in (x, y):
        with pytest.raises(Refused, match="splits another axis than the channels"):
            op.add_channel({tensor: AddedChannel(2, 5)})


def test_channels_picked_by_number_get_no_carrier() -> None:
    op = operator(
        graph("(float[N,4,L] x) => (float[N,2,L] y) { y = Gather<axis=1>(x, i) }", i=np.array([0, 2])), "Gather"
    )
    with pytest.raises(Refused, match="picks channels by number"):
        op.add_channel({op.inputs[0]: W})


def test_a_slice_of_positions_lets_a_new_channel_pass_but_not_a_new_position() -> None:
    text = "(float[N,4,L] x) => (float[N,4,M] y) { y = Slice(x, one, large, axis) }"
    op = operator(graph(text, **{k: ENDS[k] for k in ("one", "large")}, axis=np.array([2])), "Slice")
    assert op.add_channel({op.inputs[0]: W}) == {op.outputs[0]: W}
    with pytest.raises(Refused, match="cuts the axis of the channels"):
        op.add_channel({op.inputs[0]: AddedChannel(2, 9)})


def test_a_flatten_lets_a_new_channel_pass_as_a_block_of_its_positions() -> None:
    op = operator(graph("(float[N,4,3] x) => (float[N,12] y) { y = Flatten(x) }"), "Flatten")
    assert op.add_channel({op.inputs[0]: W}) == {op.outputs[0]: AddedChannel(axis=1, index=12, count=3)}
    with pytest.raises(Refused, match="carries one more channel only where its input has one"):
        op.add_channel({op.outputs[0]: AddedChannel(1, 12)})


def test_a_reshape_that_splits_the_channels_cannot_carry_one_more() -> None:
    op = operator(
        graph("(float[N,4,3] x) => (float[N,2,2,3] y) { y = Reshape(x, s) }", s=np.array([0, 2, 2, 3])), "Reshape"
    )
    with pytest.raises(Refused, match="'Reshape_0' \\(Reshape\\) cannot carry one more channel"):
        op.add_channel({op.inputs[0]: W})


def test_a_pad_of_channels_lets_a_new_one_pass_only_beside_its_own() -> None:
    model = graph("(float[N,4,L] x) => (float[N,7,L] y) { y = Pad(x, p) }", p=np.array([0, 1, 0, 0, 2, 0]))
    op = operator(model, "Pad")
    assert op.add_channel({op.inputs[0]: W}) == {op.outputs[0]: AddedChannel(1, 5)}
    with pytest.raises(Refused, match="adds channels of zeros where the new channel would be"):
        op.add_channel({op.outputs[0]: AddedChannel(1, 7)})


def test_a_pad_of_channels_and_positions_at_once_lets_no_new_channel_pass() -> None:
    model = graph("(float[N,4,L] x) => (float[N,5,M] y) { y = Pad(x, p) }", p=np.array([0, 1, 1, 0, 0, 0]))
    op = operator(model, "Pad")
    with pytest.raises(Refused, match="pads channels and positions at once"):
        op.add_channel({op.inputs[0]: W})
    with pytest.raises(Refused, match="pads an axis along which the scale differs"):
        op.spread(Gauges({op.inputs[0]: Affine.along(1, 3, np.arange(1.0, 5), np.zeros(4))}))


@pytest.mark.parametrize(
    ("index", "rest"),
    [
        (np.array([[0, 1, 2], [2, 3, 4]]), "t = Transpose<perm=[0,2,1,3]>(g) f = Reshape(t, flat) y = MatMul(f, u)"),
        (np.array([4, 2, 0]), "y = Conv(g, v)"),
        (np.array(-1), "y = Gemm(g, m)"),
        (np.array(2), "y = Gemm(g, m)"),
    ],
)
@pytest.mark.parametrize("length", ["12", "L"])
def test_any_affine_goes_forward_through_a_gather_of_time_steps(index: np.ndarray, rest: str, length: str) -> None:
    out = {2: "N,2,5", 1: "N,5,3", 0: "N,5"}[index.ndim]
    text = f"""(float[N,3,{length}] x) => (float[{out}] y) {{
        s = Sigmoid(x)  n = BN(s, n)  g = Gather<axis=2>(n, i)  {rest} }}"""
    arrays = {"i": index, "flat": np.array([0, 2, 9]), "u": weights(9, 5), "v": weights(5, 3, 1), "m": weights(3, 5)}
    model = graph(text, **arrays, **norm("n", 3))
    after, report = folded(model)
    assert report.affines_after == 0, report.folds
    same_function(model, after, *(LENGTHS if length == "L" else [(2, 3, 12)]))


@pytest.mark.parametrize("index", [np.array([[0, 1, 2], [2, 3, 4]]), np.array(3)])
def test_any_affine_goes_back_through_a_gather_of_time_steps(index: np.ndarray) -> None:
    out = "N,4,2,3" if index.ndim else "N,4"
    text = (
        f"(float[N,3,L] x) => (float[{out}] y) {{ c = Conv(x, w) g = Gather<axis=2>(c, i) n = BN(g, n) y = Tanh(n) }}"
    )
    folds_to(graph(text, w=weights(4, 3, 1), i=index, **norm("n", 4)), "Conv Gather Tanh", *LENGTHS)


def test_windows_of_time_steps_with_the_time_first_are_a_gather_nd() -> None:
    text = """(float[N,3,L] x) => (float[2,3,N,5] y) {
        s = Sigmoid(x)  n = BN(s, n)  t = Transpose<perm=[2,0,1]>(n)  g = GatherND(t, i)  y = MatMul(g, u) }"""
    model = graph(text, i=np.array([[0, 1, 2], [2, 3, 4]])[..., None], u=weights(3, 5), **norm("n", 3))
    after, report = folded(model)
    assert report.affines_after == 0
    same_function(model, after, *LENGTHS)


@pytest.mark.parametrize("nodes", ["g = Gather<axis=1>(n, i)", "t = Transpose<perm=[1,0,2]>(n) g = GatherND(t, j)"])
@pytest.mark.parametrize("gamma", ["mixed", [0.5, 0.0, -1.0]], ids=["mixed", "zero"])
def test_windows_of_channels_take_an_affine_by_channel_forward(nodes: str, gamma: str | list[float]) -> None:
    turn = "" if "axis=1" in nodes else "h = Transpose<perm=[2,0,1,3]>(g)"
    text = f"""(float[N,3,L] x) => (float[N,5,L] y) {{
        s = Sigmoid(x)  n = BN(s, n)  {nodes}  {turn}  r = Reshape({"h" if turn else "g"}, k)  y = Conv(r, w) }}"""
    windows = np.array([[0, 1], [-2, 2]])
    given = {"i": windows, "j": windows[..., None], "k": np.int64([0, 4, -1]), "w": weights(5, 4, 1)}
    after, report = folded(graph(text, **given, **norm("n", 3, gamma=gamma)))
    assert report.affines_after == 0, report.folds
    same_function(graph(text, **given, **norm("n", 3, gamma=gamma)), after, *LENGTHS)


@pytest.mark.parametrize(
    ("windows", "overlap"), [([[0, 1], [2, 0]], True), ([[0, 3], [2, 1]], False), ([[0, 0], [2, 2]], False)]
)
@pytest.mark.parametrize("gamma", ["mixed", [0.0, -1.0]], ids=["mixed", "zero"])
def test_a_batchnorm_of_windows_of_channels_goes_back_where_no_channel_is_in_two(
    windows: list[list[int]], overlap: bool, gamma: str | list[float]
) -> None:
    text = """(float[N,3,L] x) => (float[N,2,2,L] y) {
        c = Conv(x, w)  g = Gather<axis=1>(c, i)  n = BN(g, n)  y = Tanh(n) }"""
    model = graph(text, i=np.array(windows), w=weights(4, 3, 1), **norm("n", 2, gamma=gamma))
    if overlap:
        stays(model, "'g' would need two different scales or shifts at once", *LENGTHS)
    else:
        folds_to(model, "Conv Gather Tanh", *LENGTHS)


@pytest.mark.parametrize("gamma", ["mixed", [0.5, 0.0, -1.0]], ids=["mixed", "zero"])
@pytest.mark.parametrize("way", ["forward", "back"])
def test_any_affine_passes_a_gather_of_one_time_step_for_each_entry(way: str, gamma: str | list[float]) -> None:
    # The last step before the padding: x.gather(2, lengths).
    nodes = {
        "forward": "s = Sigmoid(x)  n = BN(s, n)  g = GatherElements<axis=2>(n, i)  y = Conv(g, w)",
        "back": "c = Conv(x, w)  g = GatherElements<axis=2>(c, i)  n = BN(g, n)  y = Tanh(n)",
    }
    steps = np.random.default_rng(0).integers(-5, 5, (2, 3, 4))
    model = graph(
        f"(float[2,3,9] x) => (float[2,3,4] y) {{ {nodes[way]} }}",
        i=steps,
        w=weights(3, 3, 1),
        **norm("n", 3, gamma=gamma),
    )
    folds_to(model, "Sigmoid GatherElements Conv" if way == "forward" else "Conv GatherElements Tanh", (2, 3, 9))


@pytest.mark.parametrize(
    ("axis", "shape", "sentence"), [(1, (2, 4, 9), "picks entries of an axis"), (2, (2, 2, 9), "leaves out entries")]
)
def test_no_affine_by_channel_passes_a_gather_of_channels_or_of_fewer(
    axis: int, shape: tuple[int, ...], sentence: str
) -> None:
    text = f"""(float[2,3,9] x) => (float[2,{shape[1]},9] y) {{
        s = Sigmoid(x)  n = BN(s, n)  g = GatherElements<axis={axis}>(n, i)  y = Tanh(g) }}"""
    _, report = folded(graph(text, i=np.random.default_rng(0).integers(0, 3, shape), **norm("n", 3)))
    assert any(sentence in reason for reason in report.folds[0].reasons)


def test_windows_of_channels_whose_number_is_read_from_a_shape_are_known() -> None:
    """``F.unfold`` as torch exports it: a Range up to the size of the axis."""
    text = """(float[N,4,L] x) => (float[N,5,L] y) {
        s = Sigmoid(x)  n = BN(s, n)  a = Shape<start=0>(n)  m = Gather(a, one)  i = Range(zero, m, two)
        g = Gather<axis=1>(n, i)  y = Conv(g, w) }"""
    numbers = {"zero": np.int64(0), "one": np.int64(1), "two": np.int64(2)}
    model = graph(text, **numbers, w=weights(5, 2, 1), **norm("n", 4))
    folds_to(model, "Sigmoid Shape Gather Range Gather Conv", *[(n, 4, length) for n, _, length in LENGTHS])


def test_a_channel_that_is_picked_alone_takes_its_own_scale() -> None:
    text = """(float[N,3,L] x) => (float[N,5] y) {
        s = Sigmoid(x)  n = BN(s, n)  g = Gather<axis=1>(n, i)  y = MatMul(g, w) }"""
    folds_to(
        graph(text.replace("L", "9"), i=np.int64(-1), w=weights(9, 5), **norm("n", 3)),
        "Sigmoid Gather MatMul Add",
        (2, 3, 9),
    )


def test_a_gather_nd_of_single_entries_is_not_read() -> None:
    text = "(float[N,3,L] x) => (float[2,L] y) { s = Sigmoid(x) n = BN(s, n) g = GatherND(n, i) y = Tanh(g) }"
    stays(graph(text, i=np.array([[0, 1], [1, 2]]), **norm("n", 3)), "(GatherND)", (2, 3, 12))


@pytest.mark.parametrize("mode", ["CRD", "DCR"])
def test_an_affine_goes_back_through_a_pixel_shuffle(mode: str) -> None:
    text = f"""(float[N,3,4,5] x) => (float[N,2,8,10] y) {{
        c = Conv(x, w)  d = DepthToSpace<blocksize=2,mode="{mode}">(c)  n = BN(d, n)  y = Sigmoid(n) }}"""
    model = graph(text, w=weights(8, 3, 1, 1), **norm("n", 2, gamma=[0.0, -1.0], beta=[0.5, 2.0]))
    folds_to(model, "Conv DepthToSpace Sigmoid", (2, 3, 4, 5))


def test_channels_of_different_scales_do_not_go_forward_through_a_pixel_shuffle() -> None:
    text = """(float[N,4,4,5] x) => (float[N,1,8,10] y) {
        s = Sigmoid(x)  n = BN(s, n)  d = DepthToSpace<blocksize=2>(n)  y = Conv(d, w) }"""
    stays(graph(text, w=weights(1, 1, 1, 1), **norm("n", 4)), "shuffles channels of different scales", (2, 4, 4, 5))


def test_a_number_taken_out_of_an_array_has_a_range_without_axes() -> None:
    """``x / x.std().item()`` is captured as a Gather whose output has no axis at all."""
    op = operator(graph("(float[3] x) => (float y) { y = Gather(x, i) }", i=np.array(0)), "Gather")
    found = op.range([Range(np.array([-2.0]), np.array([3.0]))])
    assert (found.low, found.high) == (-2.0, 3.0)
    assert found.low.shape == ()
