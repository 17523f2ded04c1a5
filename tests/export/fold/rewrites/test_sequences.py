"""Splits that were written with a sequence become plain ones, under names that no other value has."""

from __future__ import annotations

import numpy as np
from tests.export.fold.graphs import folded, graph, same_function, weights


def test_the_parts_of_two_splits_and_another_value_keep_their_own_names() -> None:
    text = """(float[N,4,L] x) => (float[N,6,L] y) {
        s = SplitToSequence<axis=1>(x, halves) a = SequenceAt(s, zero) b = SequenceAt(s, one)
        s_1 = SplitToSequence<axis=1>(b, ones) c = SequenceAt(s_1, zero) d = SequenceAt(s_1, one)
        s_0 = Concat<axis=1>(a, c, d) y = Conv(s_0, w) }"""
    numbers = {"halves": 2, "zero": 0, "one": 1}
    arrays = {name: np.array(number, np.int64) for name, number in numbers.items()}
    model = graph(text, opset=17, w=weights(6, 4, 1), ones=np.array([1, 1], np.int64), **arrays)
    after, _ = folded(model)
    kinds = [node.op_type for node in after.graph.node]
    assert kinds.count("Split") == 2
    assert not any("Sequence" in kind for kind in kinds)
    names = [name for node in after.graph.node for name in node.output]
    assert len(set(names)) == len(names)
    same_function(model, after, (2, 4, 7))
