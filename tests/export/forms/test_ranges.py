"""Ranges of values on pieces of the calibrating inputs, and how far they are widened."""

from __future__ import annotations

import numpy as np
from tests.export.fold.graphs import graph

from normfold.export.forms.ranges import Ranges, ranges_of

GRAPH = bytes(graph("(float[N,3] x) => (float[N,3] y) { r = Relu(x) y = Neg(r) }").SerializeToString())


def test_every_value_has_its_ends_on_every_piece() -> None:
    found = ranges_of(GRAPH, [{"x": np.float32([[-1, 2, 0]])}, {"x": np.float32([[3, -4, 0], [1, 1, 1]])}])
    assert found.pieces == 2
    ends = {name: array.tolist() for name, array in found.ends.items()}
    assert ends == {"x": [[-1, 2], [-4, 3]], "r": [[0, 2], [0, 3]], "y": [[-2, 0], [-3, 0]]}


def test_a_range_is_wider_than_all_pieces_by_the_spread_of_their_ends() -> None:
    found = Ranges({"x": np.array([[-1.0, 2.0], [-3.0, 4.0]])})
    assert found.widened(0) == {"x": (-3.0, 4.0)}
    assert found.widened(2) == {"x": (-5.0, 6.0)}, "the ends deviate by 1 on either side"
    assert found.of(slice(0, 1)).widened(2) == {"x": (-1.0, 2.0)}, "one piece has no spread"


def test_zero_is_in_every_range_and_no_range_crosses_it_that_did_not() -> None:
    found = Ranges({"relu": np.array([[0.0, 1.0], [0.5, 3.0]]), "minus": np.array([[-3.0, 0.0], [-2.0, -2.0]])})
    assert found.widened(4) == {"relu": (0.0, 7.0), "minus": (-5.0, 0.0)}


def test_a_value_whose_pieces_all_end_alike_keeps_its_range() -> None:
    assert Ranges({"hot": np.array([[0.0, 1.0]] * 3)}).widened(8) == {"hot": (0.0, 1.0)}


def test_sequences_and_values_that_are_empty_on_a_piece_have_no_range() -> None:
    text = """(float[N,L] x) => (float[N,K] y) {
        s = SplitToSequence<axis=1>(x, three) t = SequenceAt(s, zero) u = Relu(t)
        e = Slice(u, two, nine, one) y = Relu(e) }"""
    held = {
        "three": np.array(3),
        "zero": np.array(0),
        "two": np.array([2]),
        "nine": np.array([9]),
        "one": np.array([1]),
    }
    content = bytes(graph(text, opset=18, **held).SerializeToString())
    found = ranges_of(content, [{"x": np.ones((1, length), np.float32)} for length in (6, 2)])
    assert {name: ends.tolist() for name, ends in found.ends.items()} == {name: [[1, 1], [1, 1]] for name in "xtu"}
