"""The scores behind labels, which the proof compares."""

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest
from onnx.reference import ReferenceEvaluator

from normfold.export.proof.algebra import Algebra
from normfold.export.proof.scores import with_scores
from normfold.export.proof.verify import Case

X = np.random.default_rng(0).standard_normal((4, 6))


def graph(body: str, outputs: str = "label") -> bytes:
    text = f"""<ir_version: 8, opset_import: ["" : 17]> g (double[N,6] x)
        => ({", ".join(f"int64 {name}" for name in outputs.split())})
        <int64[1] one = {{1}}, int64[6] names = {{7, 8, 9, 10, 11, 12}}, double[1] two = {{2.0}}> {{ {body} }}"""
    return onnx.parser.parse_model(text).SerializeToString()


@pytest.mark.parametrize(
    "body",
    [
        "s = Mul (x, two) label = ArgMax <axis = 1> (s)",
        "s = Mul (x, two) a = ArgMin <axis = 1, keepdims = 0> (s) label = Cast <to = 6> (a)",
        "s = Mul (x, two) a = ArgMax <axis = 1> (s) label = Transpose (a)",
        "s = Mul (x, two) a = ArgMax <axis = 1> (s) label = Gather (names, a)",
        "s = Mul (x, two) v, a = TopK (s, one) b = Gather (a, one) label = Squeeze (b)",
        "s = Mul (x, two) a = ArgMax <axis = 1> (s) b = ArgMin <axis = 1> (s) label = Concat <axis = 1> (a, b)",
    ],
)
def test_the_scores_of_a_label_are_found_behind_what_moves_it_or_looks_it_up(body: str) -> None:
    content, added = with_scores(graph(body))
    assert added == {"scores of label"}
    names = [output.name for output in onnx.load_model_from_string(content).graph.output]
    assert names == ["label", "scores of label"]
    _, scores = ReferenceEvaluator(content).run(None, {"x": X})
    np.testing.assert_array_equal(scores, 2 * X)


def test_each_tensor_that_a_label_is_chosen_by_has_its_own_scores() -> None:
    body = "s = Mul (x, two) a = ArgMax <axis = 1> (s) b = ArgMax <axis = 1> (x) label = Concat <axis = 1> (a, b)"
    content, added = with_scores(graph(body))
    assert added == {"scores of label", "scores 2 of label"}
    _, first, second = ReferenceEvaluator(content).run(None, {"x": X})
    np.testing.assert_array_equal(first, 2 * X)
    np.testing.assert_array_equal(second, X)


def test_a_graph_without_labels_stays_as_it_is() -> None:
    content = graph("label = Cast <to = 7> (x)")
    assert with_scores(content) == (content, frozenset())


def test_scores_may_be_another_output_in_a_rewritten_graph() -> None:
    """A fold drops a BatchNorm that changes nothing: then the label is chosen by the output beside it."""
    before = "y = Mul (x, two) s = Identity (y) label = ArgMax <axis = 1> (s)"
    after = "y = Mul (x, two) label = ArgMax <axis = 1> (y)"
    for unfolded, folded in ((before, after), (after, before)):
        algebra = Algebra(graph(unfolded, "label y"), [Case("random", "one", {"x": X})])
        assert list(algebra.reference({"x": X})) == ["label", "y"]
        found = algebra.of(graph(folded, "label y"))
        assert [d.output for d in found.differences] == ["label", "y", "scores of label"]
        assert found.passed
