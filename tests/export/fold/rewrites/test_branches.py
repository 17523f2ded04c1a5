"""An If whose condition follows from shapes of the graph is replaced by the branch that it takes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from tests.export.fold.graphs import folded, graph, norm, operators, same_in_onnxruntime, weights

SHAPES = ((1, 3, 12), (2, 3, 9))
ASKED = "s = Shape(x) k = Gather(s, one) c = Equal(k, {count}) "
HELD = {"one": np.int64(1), "three": np.int64(3), "four": np.int64(4)}


def branching(condition: str, then: str = "r = Relu(u)", otherwise: str = "r = Sigmoid(u)") -> onnx.ModelProto:
    """Return a convolution, an If of two branches that give r, a BatchNorm of it and a convolution."""
    text = f"""(float[N,3,L] x) => (float[N,5,M] y) {{ u = Conv(x, w) {condition}
        i = If(c) <then_branch = yes () => (float[N,4,K] r) {{ {then} }},
                   else_branch = no () => (float[N,4,K] r) {{ {otherwise} }}>
        b = BN(i, n) y = Conv(b, v) }}"""
    held = {k: v for k, v in HELD.items() if k in condition}
    return graph(text, w=weights(4, 3, 1), v=weights(5, 4, 3), **held, **norm("n", 4))


@pytest.mark.parametrize(("count", "taken"), [("three", "Relu"), ("four", "Sigmoid")])
def test_the_branch_that_is_taken_stands_for_it_and_what_is_behind_folds(count: str, taken: str) -> None:
    model = branching(ASKED.format(count=count))
    after, report = folded(model)
    assert report.batchnorms_after == 0
    assert sorted(operators(after)) == ["Conv", "Conv", taken]
    same_in_onnxruntime(model, after, *SHAPES)


def test_a_branch_may_give_what_is_there_without_it() -> None:
    model = branching(ASKED.format(count="four"), otherwise="r = Identity(u)")
    after, _ = folded(model)
    assert "If" not in operators(after)
    same_in_onnxruntime(model, after, *SHAPES)


def test_what_only_the_other_branch_read_is_gone() -> None:
    model = branching("o = Neg(u) " + ASKED.format(count="three"), otherwise="r = Sigmoid(o)")
    after, _ = folded(model)
    assert sorted(operators(after)) == ["Conv", "Conv", "Relu"]
    assert operators(folded(after)[0]) == operators(after)
    same_in_onnxruntime(model, after, *SHAPES)


def test_names_inside_a_branch_do_not_meet_those_outside() -> None:
    model = branching(ASKED.format(count="three"), then="b = Neg(u) r = Relu(b)")
    after, _ = folded(model)
    onnx.checker.check_model(after, full_check=True)
    names = [node.name for node in after.graph.node]
    assert len(set(names)) == len(names)
    same_in_onnxruntime(model, after, *SHAPES)


def test_an_if_of_the_input_stays() -> None:
    condition = "m = ReduceMax<keepdims = 0>(x) c = Greater(m, limit) "
    text = branching(condition)
    text.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(0), "limit"))
    after, _ = folded(text)
    assert "If" in operators(after)
    same_in_onnxruntime(text, after, *SHAPES)


def test_an_if_at_the_output_keeps_its_name() -> None:
    text = f"""(float[N,3,L] x) => (float[N,3,L] y) {{ {ASKED.format(count="three")}
        y = If(c) <then_branch = yes () => (float[N,3,L] r) {{ r = Relu(x) }},
                   else_branch = no () => (float[N,3,L] r) {{ r = Sigmoid(x) }}> }}"""
    model = graph(text, one=HELD["one"], three=HELD["three"])
    after, _ = folded(model)
    assert [o.name for o in after.graph.output] == ["y"]
    assert "If" not in operators(after)
    same_in_onnxruntime(model, after, *SHAPES)
