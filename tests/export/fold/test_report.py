"""The report says where each affine went or why it stayed, and its counts are those of the graph."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from normfold.export.errors import ExportError, FoldError
from normfold.export.fold import Fold, FoldReport, fold

from .graphs import counted, folded, graph, left, norm, only, operators, same_function, weight_of, weights

W = {"w": weights(4, 3, 1), "v": weights(5, 4, 3), "k": weights(5, 4, 1)}
LENGTHS = ((2, 3, 12), (3, 3, 23))


def text(nodes: str, out: str = "float[N,5,M] y") -> str:
    return f"(float[N,3,L] x) => ({out}) {{ {nodes} }}"


BACK = "c = Conv(x, w) n = BN(c, n) r = Relu(n) y = Conv(r, k)"
FORWARD = "c = Conv(x, w) r = Relu(c) n = BN(r, n) y = Conv(n, k)"
CARRIED = "c = Conv(x, w) r = Relu(c) n = BN(r, n) y = Conv<pads=[1,1]>(n, v)"
TURNED = "c = Conv(x, w) n = BN(c, n) r = Relu(n) a = Conv(r, k) s = Sigmoid(c) b = Conv(s, k) y = Add(a, b)"


@pytest.mark.parametrize(
    ("nodes", "how"),
    [
        (BACK, "back into 'Conv_0'"),
        (FORWARD, "forward into 'Conv_3'"),
        (CARRIED, "forward into 'Conv_3'; 'Conv_3' reads the shift from a carrier channel"),
        (TURNED, "'Relu_2' becomes Max"),
    ],
)
def test_where_an_affine_went_is_reported_in_words(nodes: str, how: str) -> None:
    _, report = folded(graph(text(nodes), **W, **norm("n", 4, gamma="positive")))
    fold = only(report)
    assert fold.folded
    assert how in fold.how
    assert fold.reasons == ()
    assert fold.reason == ""


def test_many_readers_are_counted_instead_of_named() -> None:
    readers = " ".join(f"a{i} = Conv(n, k)" for i in range(6))
    model = graph(
        text(f"c = Conv(x, w) r = Sigmoid(c) n = BN(r, n) {readers} y = Sum(a0, a1, a2, a3, a4, a5)"),
        **W,
        **norm("n", 4),
    )
    assert only(folded(model)[1]).how == "forward into 'Conv_3', 'Conv_4', 'Conv_5', 'Conv_6' and 2 more"


def test_why_an_affine_stayed_is_reported_for_every_way() -> None:
    model = graph("(float[N,3,L] x) => (float[N,3,L] y) { y = BN(x, n) }", **norm("n", 3))
    fold = only(folded(model)[1])
    assert not fold.folded
    assert fold.how == ""
    sentence = "'x' is an input of the network, so its numbers may not change (tried: all back; and "
    assert fold.reason == fold.reasons[0]
    assert fold.reason.startswith(sentence)
    assert all(" (tried: " in reason for reason in fold.reasons[:-1])
    assert "directly behind a convolution or Linear" in fold.reasons[-1]


def test_a_batchnorm_and_an_affine_are_of_different_kinds() -> None:
    model = graph(
        text("c = Conv(x, w) n = BN(c, n) r = Relu(n) m = Mul(r, g) y = Conv(m, k)"),
        **W,
        g=weights(4, 1),
        **norm("n", 4),
    )
    kinds = {f.name: f.kind for f in folded(model)[1].folds}
    assert kinds == {"BatchNormalization_1": "BatchNorm", "Mul_3": "affine"}


def test_a_batchnorm_that_nothing_reads_is_gone_and_moves_nothing() -> None:
    model = graph(text("c = Conv(x, w) n = BN(c, n) m = Relu(n) r = Relu(c) y = Conv(r, k)"), **W, **norm("n", 4))
    after, report = folded(model)
    assert operators(after) == ["Conv", "Conv", "Relu"]
    assert np.array_equal(weight_of(after), weight_of(model))
    assert only(report) == Fold("BatchNormalization_1", "BatchNorm", True, "nothing read it")
    assert (report.batchnorms_before, report.affines_before, report.affines_after) == (1, 1, 0)


def test_a_uniform_factor_is_no_affine_to_get_rid_of() -> None:
    model = graph(text("c = Conv(x, w) m = Mul(c, half) r = Sigmoid(m) y = Conv(r, k)"), **W, half=np.float32(0.5))
    after, report = folded(model)
    assert report == FoldReport(
        nodes_before=4,
        nodes_after=len(after.graph.node),
        parameters_before=report.parameters_before,
        parameters_after=report.parameters_after,
    )


@pytest.mark.parametrize("nodes", [BACK, FORWARD, CARRIED, TURNED])
def test_counts_are_those_of_the_graph(nodes: str) -> None:
    model = graph(text(nodes), **W, **norm("n", 4, gamma="positive"))
    after, report = folded(model)
    for m, nodes_, norms, parameters in (
        (model, report.nodes_before, report.batchnorms_before, report.parameters_before),
        (after, report.nodes_after, report.batchnorms_after, report.parameters_after),
    ):
        assert nodes_ == sum(counted(m).values())
        assert norms == counted(m)["BatchNormalization"]
        assert parameters == sum(numpy_helper.to_array(t).size for t in m.graph.initializer if t.data_type == 1)
    assert report.affines_before == 1
    assert report.affines_after == 0


def test_a_report_is_json() -> None:
    _, report = folded(graph(text(CARRIED), **W, **norm("n", 4)))
    loaded = json.loads(json.dumps(report.to_dict()))
    assert loaded["folds"][0]["name"] == "BatchNormalization_2"
    assert loaded["carriers"] == 1


def test_a_fold_is_a_value() -> None:
    assert Fold("bn", "BatchNorm", True, "back into 'conv'") == Fold("bn", "BatchNorm", True, "back into 'conv'", ())


def test_an_affine_that_became_a_sign_says_why_the_sign_stays() -> None:
    nodes = "c = Conv(x, w) p = MaxPool<kernel_shape=[2]>(c) n = BN(p, n) y = Sigmoid(n)"
    _, report = folded(graph(text(nodes, "float[N,4,M] y"), **W, **norm("n", 4)))
    assert not only(report).folded
    assert "keeps the largest entry" in "; ".join(only(report).reasons)


def test_a_batchnorm_in_training_mode_is_reported_with_its_reason() -> None:
    nodes = "c = Conv(x, w) y, m, v = BatchNormalization<training_mode=1>(c, n_gamma, n_beta, n_mean, n_var)"
    _, report = folded(graph(text(nodes, "float[N,4,M] y, float[4] m, float[4] v"), w=W["w"], **norm("n", 4)))
    assert only(report).reason == (
        "it is in training mode and normalises with the statistics of the batch; export the network in eval()"
    )


def test_a_batchnorm_with_computed_parameters_is_reported_with_its_reason() -> None:
    nodes = "c = Conv(x, w) g = ReduceMean<axes=[0,1,2],keepdims=0>(c) s = Mul(g, n_gamma) y = BatchNormalization(c, s, n_beta, n_mean, n_var)"
    _, report = folded(graph(text(nodes, "float[N,4,M] y"), w=W["w"], **norm("n", 4)))
    assert "its parameters are computed" in next(f for f in report.folds if f.kind == "BatchNorm").reason


def test_a_reason_is_reported_once_however_many_ways_it_refuses() -> None:
    _, report = folded(graph(text("s = Sigmoid(x) n = BN(s, n) y = Tanh(n)", "float[N,3,L] y"), **norm("n", 3)))
    reasons = only(report).reasons
    sentences = [reason.partition(" (tried: ")[0] for reason in reasons]
    assert len(set(sentences)) == len(sentences)
    assert any("'Sigmoid_0' (Sigmoid) is neither linear" in r and r.endswith(" more ways)") for r in reasons)


DENSE = """c = Conv(x, w)  n = BN(c, n)  e = Elu(n)  d = Conv(e, v)  y = Concat<axis=1>(c, d)"""


def test_a_batchnorm_between_a_shared_tensor_and_a_smooth_activation_is_reported_in_one_sentence() -> None:
    model = graph(text(DENSE, "float[N,8,M] y"), w=W["w"], v=weights(4, 4, 1), **norm("n", 4))
    _, report = folded(model)
    assert only(report).reason == (
        "'Concat_4' (Concat) reads the output of 'Conv_0' (Conv) without the BatchNorm, and 'Elu_2' (Elu) behind the "
        "BatchNorm is smooth: f(s x + t) is no multiple of f(x), so no other weights can replace the BatchNorm"
    )


def test_a_batchnorm_that_goes_back_before_a_smooth_activation_needs_no_such_sentence() -> None:
    nodes = "c = Conv(x, w) n = BN(c, n) e = Elu(n) y = Conv(e, v)"
    _, report = folded(graph(text(nodes, "float[N,4,M] y"), w=W["w"], v=weights(4, 4, 1), **norm("n", 4)))
    assert only(report).folded
    assert only(report).reasons == ()


# --- folding twice, and nothing to fold -------------------------------------------------------------------------------

GRAPHS = {
    "back": BACK,
    "forward": FORWARD,
    "carried": CARRIED,
    "turned": TURNED,
    "shift stays": "s = Sigmoid(x) n = BN(s, m) d = Conv<group=3,pads=[1,1]>(n, g) y = Conv(d, o)",
    "sign stays": "c = Conv(x, w) p = MaxPool<kernel_shape=[2]>(c) n = BN(p, n) s = Sigmoid(n) y = Conv(s, k)",
    "stays": "a = BN(x, m) s = Sigmoid(a) y = Conv(s, o)",
    "put": "a = BN(x, m) y = Conv<pads=[1,1]>(a, q)",
    "flattened": "c = Conv(x, w) n = BN(c, n) r = Relu(n) p = GlobalAveragePool(r) y = Conv(p, k)",
    "zeros": "c = Conv(x, w) r = Relu(c) n = BN(r, z) y = Conv<pads=[1,1]>(n, v)",
    "linear": """t = Transpose<perm=[0,2,1]>(x)  p = MatMul(t, h)  b = Transpose<perm=[0,2,1]>(p)
        n = BN(b, n)  s = Sigmoid(n)  y = Conv(s, k)""",
}


def drawn(nodes: str) -> onnx.ModelProto:
    arrays = {"g": weights(3, 1, 3), "o": weights(5, 3, 1), "q": weights(5, 3, 3), "h": weights(3, 4), **W}
    arrays |= norm("n", 4) | norm("m", 3) | norm("z", 4, gamma=[0, 1, 0, -1], beta=[1, 2, 0, -1])
    model = graph(text(nodes), **arrays)
    read = {i for n in model.graph.node for i in n.input}
    kept = [t for t in model.graph.initializer if t.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return model


@pytest.mark.parametrize("name", GRAPHS)
def test_folding_twice_changes_nothing(name: str) -> None:
    model = drawn(GRAPHS[name])
    once, report = folded(model)
    twice, again = folded(once)
    same_function(model, once, *LENGTHS)
    assert list(twice.graph.node) == list(once.graph.node)
    assert list(twice.graph.initializer) == list(once.graph.initializer)
    assert list(twice.graph.input) == list(once.graph.input)
    assert list(twice.graph.output) == list(once.graph.output)
    assert again.affines_before == report.affines_after
    assert again.carriers == again.channels_removed == 0


PLAIN = {
    "convolutions": "c = Conv<pads=[1,1]>(x, w) r = Relu(c) y = Conv(r, k)",
    "pools": "c = Conv(x, w) r = MaxPool<kernel_shape=[2]>(c) y = Conv<strides=[2]>(r, k)",
    "gates": "c = Conv(x, w) a = Tanh(c) b = Sigmoid(c) m = Mul(a, b) y = Conv(m, k)",
    "clamps": "c = Conv(x, w) r = LeakyRelu(c) d = Conv(r, k) y = Relu(d)",
}


@pytest.mark.parametrize("name", PLAIN)
def test_a_graph_without_affines_stays_as_it_is(name: str) -> None:
    model = drawn(PLAIN[name])
    after, report = folded(model)
    same = ir.to_proto(ir.from_proto(model))
    assert list(after.graph.node) == list(same.graph.node)
    assert list(after.graph.initializer) == list(same.graph.initializer)
    assert left(report) == {}
    assert (report.nodes_before, report.parameters_before) == (report.nodes_after, report.parameters_after)
    assert operators(after) == operators(model)


def test_str_counts_and_says_where_each_went_and_a_notebook_shows_the_same() -> None:
    report = folded(graph(text(FORWARD), **W, **norm("n", 4)))[1]
    first, second = str(report).splitlines()
    assert first.startswith("BatchNorms 1 → 0, affines 1 → 0, nodes 4 → 3, parameters ")
    assert second == "  BatchNormalization_2: forward into 'Conv_3'"
    odd = FoldReport(folds=(Fold("<b>", "BatchNorm", False, "back into 'c'", ("a sigmoid reads it",)),))
    assert str(odd).splitlines()[1] == "  <b>: back into 'c'; the rest is not folded: a sigmoid reads it"
    assert odd._repr_html_().startswith("<pre>BatchNorms")
    assert "&lt;b&gt;" in odd._repr_html_()


def test_str_of_many_folds_is_a_dozen_lines_with_those_that_stayed_first() -> None:
    went = [Fold(f"bn{number}", "BatchNorm", True, "back into 'c'") for number in range(50)]
    report = FoldReport(folds=(*went, Fold("stays", "BatchNorm", False, "", ("a sigmoid reads it",))), notes=("one",))
    lines = str(report).splitlines()
    assert lines[1] == "  stays: not folded: a sigmoid reads it"
    assert lines[-2:] == ["  and 41 more in .folds", "note: one"]
    assert len(lines) == 13


@pytest.mark.parametrize("kind", ["proto", "text", "path"])
def test_fold_takes_a_proto_or_a_path_leaves_it_as_it_is_and_returns_a_folded_proto(tmp_path: Path, kind: str) -> None:
    proto = graph(text(FORWARD), **W, **norm("n", 4))
    path = tmp_path / "net.onnx"
    path.write_bytes(proto.SerializeToString())
    before = proto.SerializeToString()
    given = {"proto": proto, "text": str(path), "path": path}[kind]
    model, report = fold(given)
    assert (report.batchnorms_before, report.batchnorms_after) == (1, 0)
    assert isinstance(model, onnx.ModelProto)
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    onnx.checker.check_model(model)
    assert proto.SerializeToString() == path.read_bytes() == before
    same_function(proto, model, *LENGTHS)


def test_fold_of_a_file_that_is_none_says_so(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no file"):
        fold(tmp_path / "net.onnx")
    (tmp_path / "net.onnx").write_text("no")
    with pytest.raises(ExportError, match="is not an ONNX file: it begins with b'no'"):
        fold(tmp_path / "net.onnx")
    (tmp_path / "cut.onnx").write_bytes(b"\x08\x08:\xdb\x02\n")
    with pytest.raises(ExportError, match=r"it is cut short or damaged \(6 bytes\)"):
        fold(tmp_path / "cut.onnx")
    (tmp_path / "open.onnx").write_bytes(
        onnx.parser.parse_model(
            '<ir_version: 9, opset_import: ["": 18]> g (float[N] x) => (float[N] y) {y = Add (x, z)}'
        ).SerializeToString()
    )
    with pytest.raises(ExportError, match=r"input 'z' of node: .*is not output of any previous nodes"):
        fold(tmp_path / "open.onnx")
    (tmp_path / "pointer.onnx").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 9\n")
    with pytest.raises(ExportError, match="get the file itself with git lfs pull"):
        fold(tmp_path / "pointer.onnx")
    with pytest.raises(TypeError, match="needs no example inputs"):
        fold(str(tmp_path / "net.onnx"), 3)  # type: ignore[call-overload]


@pytest.mark.parametrize("cycle", ["a = Relu (a)", "a = Add (b, c) b = Relu (a)"])
def test_a_graph_with_a_cycle_is_refused(cycle: str) -> None:
    """It was followed round and round, and took more memory each time."""
    text = f"g (float[2] x) => (float[2] y) <float[2] c = {{1, 2}}> {{ {cycle} y = Add (x, a) }}"
    with pytest.raises(FoldError, match="has a cycle"):
        fold(onnx.parser.parse_model('<ir_version: 9, opset_import: ["": 18]> ' + text))


#: Networks whose BatchNorm stays by cost: a Max and a Min for a Relu, a carrier channel in a convolution of few channels.
DEAR = {
    "two bounds": ("c = Conv(x, w) r = Relu(c) n = BN(r, n) y = Relu(n)", "float[N,4,M] y"),
    "a carrier": ("c = Conv(x, w) s = Sigmoid(c) n = BN(s, n) y = Conv<pads=[7,7]>(n, long)", "float[N,4,M] y"),
}


@pytest.mark.parametrize("network", DEAR)
def test_what_stays_by_cost_is_counted_apart_and_goes_with_fold_all(network: str) -> None:
    nodes, out = DEAR[network]
    model = graph(
        text(nodes, out).replace("float[N,3,L]", "float[N,3,4000]"), w=W["w"], long=weights(4, 4, 15), **norm("n", 4)
    )
    after, report = folded(model)
    assert (report.kept_by_cost, report.kept_by_mathematics) == (1, 0)
    assert only(report).by_cost
    assert "--fold-all, or in Python fold_all=True" in only(report).reasons[-1]
    assert "1 stayed by cost" in str(report)
    assert report.to_dict()["kept_by_cost"] == 1
    copy = ir.from_proto(model)
    everything = fold(copy, fold_all=True)
    whole = ir.to_proto(copy)
    onnx.checker.check_model(whole, full_check=True)
    assert everything.affines_after == everything.kept_by_cost == 0
    assert "BatchNormalization" not in operators(whole)
    assert "stayed" not in str(everything)
    for folded_model in (after, whole):
        same_function(model, folded_model, (2, 3, 4000))


def test_fold_all_folds_nothing_that_mathematics_forbids() -> None:
    model = graph("(float[N,3,L] x) => (float[N,3,L] y) { s = Sigmoid(x) n = BN(s, n) y = Tanh(n) }", **norm("n", 3))
    copy = ir.from_proto(model)
    report = fold(copy, fold_all=True)
    assert (report.affines_after, report.kept_by_cost, report.kept_by_mathematics) == (1, 0, 1)
    assert "1 stayed by mathematics" in str(report)
    same_function(model, ir.to_proto(copy), *LENGTHS)
