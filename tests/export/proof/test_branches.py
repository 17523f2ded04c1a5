"""A wrong fold in a branch that no input takes is found; a branch that could not be tried is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper
from tests.export.fold.graphs import graph, norm, weights

from normfold.export.errors import VerificationError
from normfold.export.fold import fold
from normfold.export.graphs.exact import Graph, unrounded
from normfold.export.graphs.runtime import Runtime
from normfold.export.onnx_fold import fold_file
from normfold.export.proof.branches import BranchProof, untaken
from normfold.export.proof.proof import Proof
from normfold.export.proof.verify import Case, Verification

#: A switch by a sampling rate, each side with a BatchNorm of its own, and an If inside one of them.
TEXT = """(float[N, 3, L] x, int64 rate) => (float[N, 4, M] y) {
    c = Conv (x, w)
    k = Equal (rate, high)
    y = If (k) <
        then_branch = high_rate () => (float[N, 4, M] a) { r1 = Relu (c) n1 = BN(r1, n) a = Conv (n1, v) },
        else_branch = low_rate () => (float[N, 4, M] b) {
            j = Less (rate, zero)
            b = If (j) <
                then_branch = none () => (float[N, 4, M] d) { d = Conv (c, v) },
                else_branch = some () => (float[N, 4, M] e) { r2 = Relu (c) n2 = BN(r2, m) e = Conv (n2, v) }
            >
        }
    >
}"""


def model() -> onnx.ModelProto:
    return graph(
        TEXT,
        w=weights(8, 3, 3),
        v=weights(4, 8, 1),
        high=np.int64(16000),
        zero=np.int64(0),
        **norm("n", 8, gamma="positive"),
        **norm("m", 8, gamma="positive"),
    )


def case(rate: int, length: int = 9) -> Case:
    x = np.random.default_rng(0).standard_normal((2, 3, length)).astype(np.float32)
    return Case("random", "", {"x": x, "rate": np.array(rate)})


def graphs() -> tuple[Graph, Graph]:
    """Return the graph before and after the fold."""
    exact = unrounded(ir.from_proto(model()))
    assert exact is not None
    before = Graph.of(exact)
    assert fold(exact).batchnorms_after == 0
    return before, Graph.of(exact)


def differences(unfolded: Graph, exact: bytes, *rates: int) -> Verification:
    assert unfolded.exact is not None
    proof = BranchProof(unfolded.exact, unfolded.content, [case(r) for r in rates])
    return proof.of(exact, Verification((), "", ()))


def test_branches_that_no_case_takes_are_found_by_name() -> None:
    content = model().SerializeToString()
    sides = {str(b).partition(" of ")[0] for b in untaken(content, [case(8000)]) if len(b.path) == 1}
    assert sides == {"the then branch"}
    both = untaken(content, [case(8000), case(16000)])
    assert [len(b.path) for b in both] == [2, 2]  # an inner condition is not seen from outside
    assert len(untaken(content, [case(16000)])) == 3


@pytest.mark.parametrize("rate", [8000, 16000])
def test_a_right_fold_is_proved_in_every_branch(rate: int) -> None:
    before, after = graphs()
    assert after.exact is not None
    found = differences(before, after.exact, rate)
    assert found.passed
    assert len(found.differences) == 3
    assert all(d.relative < 1e-14 for d in found.differences)


@pytest.mark.parametrize(("rate", "wrong"), [(8000, "n"), (16000, "m")])
def test_a_wrong_fold_in_a_branch_that_is_not_taken_fails(rate: int, wrong: str) -> None:
    before, after = graphs()
    assert after.exact is not None
    spoilt = onnx.load_model_from_string(after.exact)
    bias = _bias(spoilt.graph, "then_branch" if wrong == "n" else "else_branch")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + 1e-9, bias.name))
    found = differences(before, spoilt.SerializeToString(), rate)
    assert not found.passed
    assert " branch of " in found.worst.kind


def _bias(graph: Any, side: str) -> onnx.TensorProto:
    """Return the bias of the last convolution in the innermost branch on one side."""
    held: dict[str, onnx.TensorProto] = {}
    while True:
        held |= {t.name: t for t in graph.initializer}
        inner = [a.g for n in graph.node if n.op_type == "If" for a in n.attribute if a.name == side]
        if not inner:
            break
        (graph,) = inner
    name = [n.input[2] for n in graph.node if n.op_type == "Conv"][-1]
    return held[name]


def test_the_export_notes_the_branch_and_refuses_a_wrong_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "net.onnx"
    source.write_bytes(model().SerializeToString())
    report = fold_file(source, tmp_path / "out.onnx", variant="folded")
    assert report.folding.batchnorms_after == 0
    (first,) = [n for n in report.notes if "takes the then branch" in n and "the fold is right there" in n][:1]
    assert first.endswith("a --sample that takes it proves all of it")
    right = Proof.of

    def spoilt(self: Proof, made: Graph) -> Any:
        if made.exact is None or made.exact == self.unfolded.exact:
            return right(self, made)
        wrong = onnx.load_model_from_string(made.exact)
        bias = _bias(wrong.graph, "then_branch")
        bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + 1e-6, bias.name))
        return right(self, Graph(made.content, wrong.SerializeToString()))

    monkeypatch.setattr(Proof, "of", spoilt)
    with pytest.raises(VerificationError, match="branch of 'If"):
        fold_file(source, tmp_path / "wrong.onnx", variant="folded")
    assert not (tmp_path / "wrong.onnx").exists()


def test_a_branch_that_does_not_run_on_the_inputs_is_named() -> None:
    proto = graph(
        """(float[N, D] x, int64 k) => (float[N, M] y) {
        c = Equal (k, big)
        y = If (c) <
            then_branch = t () => (float[N, M] a) { a = MatMul (x, w) },
            else_branch = e () => (float[N, M] b) { b = Relu (x) }
        >
    }""",
        w=weights(4, 4),
        big=np.int64(9),
    )
    exact = unrounded(ir.from_proto(proto))
    assert exact is not None
    both = Graph.of(exact)
    assert both.exact is not None
    inputs = {"x": np.zeros((2, 3), np.float32), "k": np.array(1)}
    proof = BranchProof(both.exact, both.content, [Case("random", "", inputs)])
    (note,) = proof.notes
    assert note.startswith("no input of the proof takes the then branch of 'If_1', and it was not proved (")
    assert proof.of(both.exact, Verification((), "", ())) == Verification((), "", ())


#: The If that TorchScript's exporter writes for squeeze(2): whether the axis has one entry follows from the shapes.
SQUEEZE = """(float[N, 3, L] x) => (float[N, 8] y) {
    c = Conv (x, w)
    b = BN(c, n)
    p = GlobalAveragePool (b)
    s = Shape (p)
    k = Gather (s, two)
    one_entry = Equal (k, one)
    y = If (one_entry) <
        then_branch = t () => (float[N, 8] q) { q = Squeeze (p, axis) },
        else_branch = e () => (float[N, 8, 1] r) { r = Identity (p) }
    >
}"""


def test_the_side_that_no_input_can_take_is_not_compared_and_the_file_is_folded(tmp_path: Path) -> None:
    held = {"w": weights(8, 3, 3), "one": np.int64(1), "two": np.int64(2), "axis": np.int64([2])}
    source = tmp_path / "net.onnx"
    source.write_bytes(graph(SQUEEZE, **held, **norm("n", 8)).SerializeToString())
    report = fold_file(source, tmp_path / "out.onnx", variant="folded")
    assert report.folding.batchnorms_after == 0
    assert not [note for note in report.notes if "branch" in note]
    assert "If" not in {node.op_type for node in onnx.load(tmp_path / "out.onnx").graph.node}


def test_a_branch_within_one_that_is_always_taken_is_named_as_not_proved(tmp_path: Path) -> None:
    source = tmp_path / "net.onnx"
    always = model()
    (switch,) = [node for node in always.graph.node if node.op_type == "Equal"]
    switch.input[0] = "zero"  # 0 == 16000: always the side with an If of its own
    source.write_bytes(always.SerializeToString())
    report = fold_file(source, tmp_path / "out.onnx", variant="folded")
    assert report.folding.batchnorms_after == 0
    notes = [note for note in report.notes if "it was not proved" in note]
    assert [note.split(" branch")[0] for note in notes] == [
        f"no input of the proof takes the {side}" for side in ("then", "else")
    ]
    assert all("inside of an If with a constant condition" in note for note in notes)


def test_a_length_that_the_file_states_from_before_its_inputs_were_free_settles_no_branch(tmp_path: Path) -> None:
    held = {"w": weights(8, 3, 3), "v": weights(4, 8, 1), "two": np.int64(2), "most": np.int64(5000)}
    stale = graph(
        """(float[N, 3, L] x) => (float[N, 4, M] y) {
        c = Conv (x, w)
        s = Shape (c)
        k = Gather (s, two)
        long = Greater (k, most)
        y = If (long) <
            then_branch = t () => (float[N, 4, M] a) { r1 = Relu (c) n1 = BN(r1, n) a = Conv (n1, v) },
            else_branch = e () => (float[N, 4, M] b) { r2 = Relu (c) n2 = BN(r2, m) b = Conv (n2, v) }
        >
    }""",
        **held,
        **norm("n", 8, gamma="positive"),
        **norm("m", 8, gamma="positive"),
    )
    stale.graph.value_info.append(onnx.helper.make_tensor_value_info("c", onnx.TensorProto.FLOAT, [None, 8, 198]))
    source, target = tmp_path / "net.onnx", tmp_path / "out.onnx"
    source.write_bytes(stale.SerializeToString())
    report = fold_file(source, target, variant="folded")
    assert report.folding.batchnorms_after == 0
    assert any("takes the then branch" in note for note in report.notes)
    inputs = {"x": np.random.default_rng(0).standard_normal((1, 3, 5010)).astype(np.float32)}
    before, after = (Runtime(path.read_bytes(), optimised=False).run(inputs)["y"] for path in (source, target))
    np.testing.assert_allclose(after, before, atol=1e-4)
