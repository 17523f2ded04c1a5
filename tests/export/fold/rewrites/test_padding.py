"""A Pad of zeros before a convolution becomes the convolution's own padding."""

from __future__ import annotations

import numpy as np
import pytest
from tests.export.fold.graphs import Array, folded, graph, norm, operators, same_function, weights

LENGTHS = ((2, 3, 12), (3, 3, 23))
PADS = np.array([0, 0, 2, 0, 0, 1])


def padded(pad: str, conv: str = "Conv(p, v)", opset: int = 17, **arrays: Array) -> tuple[list[str], list[int]]:
    text = "(float[N,3,L] x) => (float[N,5,M] y) { p = %s y = %s }"
    model = graph(text % (pad, conv), opset=opset, v=weights(5, 3, 3), **arrays)
    after, _ = folded(model)
    same_function(model, after, *LENGTHS)
    pads = [list(a.ints) for n in after.graph.node for a in n.attribute if n.op_type == "Conv" and a.name == "pads"]
    return operators(after), pads[0] if pads else []


@pytest.mark.parametrize(
    ("pad", "opset"),
    [
        ("Pad(x, pads)", 11),
        ("Pad(x, pads, zero)", 13),
        ("Pad(x, ends, , axes)", 18),
        ('Pad<mode="constant">(x, pads)', 21),
    ],
)
def test_zeros_before_a_convolution_become_its_own(pad: str, opset: int) -> None:
    arrays = {"pads": PADS, "zero": np.float32(0), "ends": np.array([2, 1]), "axes": np.array([-1])}
    assert padded(pad, opset=opset, **arrays) == (["Conv"], [2, 1])


def test_what_only_asks_for_the_type_of_the_padded_tensor_is_in_nobodys_way() -> None:
    # torch's exporter writes the bias of zeros that a convolution lacks in the type of what it reads.
    text = """(float[N,3,L] x) => (float[N,5,M] y) {
        p = Pad(x, pads) o = CastLike(zero, p) b = Expand(o, five) c = Conv(p, v, b) y = Relu(c) }"""
    model = graph(text, v=weights(5, 3, 3), pads=PADS, zero=np.float64(0), five=np.array([5]))
    after, _ = folded(model)
    assert "Pad" not in operators(after)
    same_function(model, after, *LENGTHS)


def test_pads_as_attributes_become_the_convolutions_own() -> None:
    text = "(float[N,3,L] x) => (float[N,5,M] y) { p = Pad<pads=[0,0,2,0,0,1]>(x) y = Conv(p, v) }"
    after, _ = folded(graph(text, opset=10, v=weights(5, 3, 3)))
    assert operators(after) == ["Conv"]


def test_they_are_added_to_what_the_convolution_pads_already() -> None:
    assert padded("Pad(x, pads)", "Conv<pads=[1,3]>(p, v)", pads=PADS) == (["Conv"], [3, 4])


def test_valid_says_that_nothing_is_padded_and_makes_room() -> None:
    assert padded("Pad(x, pads)", 'Conv<auto_pad="VALID">(p, v)', pads=PADS) == (["Conv"], [2, 1])


@pytest.mark.parametrize("auto", ["SAME_UPPER", "SAME_LOWER"])
def test_same_depends_on_the_padded_length_and_is_left(auto: str) -> None:
    assert padded("Pad(x, pads)", f'Conv<auto_pad="{auto}",strides=[2]>(p, v)', pads=PADS)[0] == ["Conv", "Pad"]


@pytest.mark.parametrize(
    ("pad", "arrays"),
    [
        ("Pad(x, pads, one)", {"pads": PADS, "one": np.float32(1)}),
        ('Pad<mode="reflect">(x, pads)', {"pads": PADS}),
        ('Pad<mode="edge">(x, pads)', {"pads": PADS}),
    ],
)
def test_anything_but_zeros_at_the_ends_is_left(pad: str, arrays: dict[str, Array]) -> None:
    assert padded(pad, **arrays)[0] == ["Conv", "Pad"]


def test_channels_of_zeros_are_left() -> None:
    text = "(float[N,3,L] x) => (float[N,5,M] y) { p = Pad(x, pads) y = Conv(p, v) }"
    model = graph(text, v=weights(5, 4, 3), pads=np.array([0, 1, 2, 0, 0, 1]))
    after, _ = folded(model)
    assert operators(after) == ["Conv", "Pad"]
    same_function(model, after, *LENGTHS)


def test_computed_pads_are_left() -> None:
    text = "(float[N,3,L] x, int64[6] pads) => (float[N,5,M] y) { p = Pad(x, pads) y = Conv(p, v) }"
    after, _ = folded(graph(text, v=weights(5, 3, 3)))
    assert operators(after) == ["Conv", "Pad"]


@pytest.mark.parametrize("other", ["z = Sigmoid(p)", "z = MaxPool<kernel_shape=[2]>(p)", "z = ConvTranspose(p, u)"])
def test_a_padded_tensor_that_something_else_reads_is_left(other: str) -> None:
    text = "(float[N,3,L] x) => (float[N,5,M] y, float[N,3,K] z) { p = Pad(x, pads) y = Conv(p, v) %s }"
    model = graph(text % other, v=weights(5, 3, 3), u=weights(3, 3, 1), pads=PADS)
    after, _ = folded(model)
    assert operators(after) == operators(model)
    same_function(model, after, *LENGTHS)


def test_a_padded_tensor_that_is_an_output_is_left() -> None:
    text = "(float[N,3,L] x) => (float[N,5,M] y, float[N,3,K] p) { p = Pad(x, pads) y = Conv(p, v) }"
    model = graph(text, v=weights(5, 3, 3), pads=PADS)
    after, _ = folded(model)
    assert operators(after) == ["Conv", "Pad"]
    same_function(model, after, *LENGTHS)


def test_several_convolutions_take_the_zeros_each() -> None:
    text = """(float[N,3,L] x) => (float[N,5,M] y) {
        p = Pad(x, pads)  a = Conv(p, v)  b = Conv<dilations=[1]>(p, v)  y = Add(a, b) }"""
    model = graph(text, v=weights(5, 3, 3), pads=PADS)
    after, _ = folded(model)
    assert operators(after) == ["Add", "Conv", "Conv"]
    same_function(model, after, *LENGTHS)


def test_a_batchnorm_before_the_pad_then_folds_past_it_with_a_carrier() -> None:
    text = """(float[N,3,L] x) => (float[N,5,M] y) {
        c = Conv(x, w)  r = Relu(c)  n = BN(r, n)  p = Pad(n, pads)  y = Conv(p, v) }"""
    model = graph(text, w=weights(4, 3, 3), v=weights(5, 4, 3), pads=PADS, **norm("n", 4))
    after, report = folded(model)
    assert operators(after) == ["Conv", "Conv", "Relu"]
    assert report.carriers == 1
    same_function(model, after, *LENGTHS)


def test_a_pad_that_one_reader_cannot_take_still_lets_a_shift_pass_to_convolutions() -> None:
    text = """(float[N,3,L] x) => (float[N,5,M] y) {
        c = Conv(x, w)  r = Relu(c)  n = BN(r, n)  p = Pad(n, pads)
        a = Conv(p, v)  b = Conv<auto_pad="SAME_UPPER">(p, v)  q = GlobalAveragePool(b)  y = Add(a, q) }"""
    model = graph(text, w=weights(4, 3, 3), v=weights(5, 4, 3), pads=PADS, **norm("n", 4))
    after, report = folded(model)
    assert report.affines_after == 0
    same_function(model, after, *LENGTHS)


def test_a_2d_pad_becomes_the_convolutions_own() -> None:
    text = "(float[N,2,H,W] x) => (float[N,5,A,B] y) { p = Pad(x, pads) y = Conv(p, v) }"
    model = graph(text, v=weights(5, 2, 3, 3), pads=np.array([0, 0, 1, 2, 0, 0, 3, 4]))
    after, _ = folded(model)
    assert list(next(a.ints for a in after.graph.node[0].attribute if a.name == "pads")) == [1, 2, 3, 4]
    same_function(model, after, (2, 2, 5, 6))
