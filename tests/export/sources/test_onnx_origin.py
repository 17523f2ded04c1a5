"""ONNX files of other exporters are folded, exported and compared; hostile ones are refused before they are run."""

from __future__ import annotations

import json
import os
import resource
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from normfold.cli.fold import fold
from normfold.cli.main import main
from normfold.cli.verify import verify
from normfold.export.errors import ExportError, InputSpecError, PublishError, SourceError
from normfold.export.graphs.float64 import Float64Graph
from normfold.export.graphs.onnx_file import read_onnx
from normfold.export.graphs.runtime import Runtime
from normfold.export.graphs.serialize import to_bytes
from normfold.export.inputs.specs import parse_inputs
from normfold.export.onnx_fold import fold_file
from normfold.export.sources.onnx_origin import open_onnx


class Net(nn.Module):
    """A usual network of convolutions, with a transposed convolution at its end."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv1d(3, 8, 3, padding=1),
            nn.BatchNorm1d(8),
            nn.ReLU(),
            nn.MaxPool1d(2),
            nn.Conv1d(8, 8, 5, padding=4, dilation=2, groups=4),
            nn.BatchNorm1d(8),
            nn.ConvTranspose1d(8, 4, 3, stride=2, padding=1, output_padding=1),
        )
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)

    def forward(self, x):  # type: ignore[no-untyped-def]
        return self.layers(x)


@pytest.fixture(scope="module")
def legacy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write files with torch's legacy exporter in several opsets, with their BatchNorms."""
    folder = tmp_path_factory.mktemp("legacy")
    for opset in (11, 13, 17):
        torch.onnx.export(
            Net().eval(),
            (torch.randn(2, 3, 40),),
            folder / f"{opset}.onnx",
            dynamo=False,
            opset_version=opset,
            input_names=["x"],
            output_names=["y"],
            dynamic_axes={"x": {0: "batch", 2: "time"}, "y": {0: "batch"}},
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False,
        )
    return folder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("opset", [11, 13, 17])
def test_a_legacy_file_is_folded_in_its_own_opset_and_proved_in_float64(
    legacy: Path, tmp_path: Path, opset: int
) -> None:
    target = tmp_path / "folded.onnx"
    report = fold_file(legacy / f"{opset}.onnx", target)
    assert (report.folding.batchnorms_before, report.folding.batchnorms_after) == (2, 0)
    assert report.verification.reference == "ONNX reference, float64"
    assert report.opset == opset
    x = np.random.default_rng(0).standard_normal((3, 3, 31)).astype(np.float32)
    (got,) = onnxruntime.InferenceSession(target, providers=["CPUExecutionProvider"]).run(None, {"x": x})
    with torch.no_grad():
        want = Net().eval().double()(torch.from_numpy(x).double()).numpy()
    np.testing.assert_allclose(got, want, rtol=0, atol=200 * 2**-24 * np.abs(want).max())
    with pytest.raises(PublishError, match="exists"):
        fold_file(legacy / f"{opset}.onnx", target)


def test_a_legacy_file_is_exported_with_its_names_in_the_target_opset(legacy: Path, directory: Path) -> None:
    result = CliRunner().invoke(
        main, ["export", str(legacy / "11.onnx"), "--repository", "repository", "--name", "net", "--json"]
    )
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["opset"] == 18
    assert report["inputs"] == ["x=FP32[batch:1..,3,time:2..]"]
    assert report["notes"] == ["converted from opset 11 to 18"]
    version = directory / "repository" / "net" / "1"
    assert sorted(p.name for p in version.iterdir()) == [
        "export.json",
        "golden.json",
        "manifest.json",
        "model.onnx",
        "report.html",
    ]


def test_float64_agrees_with_pytorch_far_beyond_float32(legacy: Path) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 40)).astype(np.float32)
    got = Float64Graph((legacy / "17.onnx").read_bytes()).run({"x": x})["y"]
    with torch.no_grad():
        want = Net().eval().double()(torch.from_numpy(x).double()).numpy()
    # ONNX keeps epsilon as a float32: 1e-5 is off by 2**-24 of itself, next to variances of at least 0.5
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-11)


def test_the_commands_print_a_report_and_the_files_compare_equal(legacy: Path, directory: Path) -> None:
    runner = CliRunner()
    result = runner.invoke(fold, [str(legacy / "17.onnx"), "out.onnx", "--report", "html"])
    assert result.exit_code == 0, result.output
    assert "BatchNorms  2         0" in result.output
    assert "<!doctype html>" in (directory / "out.html").read_text()
    same = runner.invoke(verify, [str(legacy / "17.onnx"), "out.onnx"])
    assert same.exit_code == 0, same.output
    assert "the same network" in same.output
    model = onnx.load("out.onnx")
    weight = next(w for w in model.graph.initializer if len(w.dims) == 3)
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.001), weight.name))
    onnx.save(model, "other.onnx")
    other = runner.invoke(verify, [str(legacy / "17.onnx"), "other.onnx", "--json"])
    assert other.exit_code == 1
    assert json.loads(other.stdout)["passed"] is False


def test_inputs_that_are_not_the_files_are_refused(legacy: Path) -> None:
    with pytest.raises(InputSpecError, match="has no input 'z'; it has 'x'"):
        open_onnx(legacy / "17.onnx", parse_inputs(["z=FP32[N,3,L]"]))
    for other in ("x=FP32[N,4,L]", "x=FP32[N,3]", "x=FP64[N,3,L]"):
        with pytest.raises(InputSpecError, match="does not fit"):
            open_onnx(legacy / "17.onnx", parse_inputs([other]))
    origin = open_onnx(legacy / "17.onnx", parse_inputs(["x=FP32[b:1..4,3,t:8..]"]))
    assert str(origin.specs[0]) == "x=FP32[b:1..4,3,t:8..]"


GRAPH = """<ir_version: 8, opset_import: ["" : 17{extra}]>
g (float[N, 2] x) => (float[N, 2] y) {{ y = {node} }}"""


def written(path: Path, node: str, extra: str = "") -> Path:
    path.write_bytes(onnx.parser.parse_model(GRAPH.format(node=node, extra=extra)).SerializeToString())
    return path


@pytest.mark.parametrize(
    ("node", "extra", "expected"),
    [
        ("other.Op (x)", ', "other" : 1', "operator other::Op, which is not part of onnxruntime"),
        ("RandomNormalLike (x)", "", "draws random numbers"),
        ("Relu (z)", "", "not valid ONNX"),
    ],
)
def test_a_graph_that_cannot_be_proved_is_refused(tmp_path: Path, node: str, extra: str, expected: str) -> None:
    with pytest.raises(SourceError, match=expected):
        read_onnx(written(tmp_path / "m.onnx", node, extra))


def test_a_file_may_import_its_operators_by_their_other_name_but_in_one_opset(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["ai.onnx" : 11{also}]>
    g (float[N, 4] x) => (float[N, 2] y) {{ y, z = Split <axis = 1, split = [2, 2]> (x) }}"""
    path = tmp_path / "m.onnx"
    for also in ("", ', "" : 11'):
        path.write_bytes(onnx.parser.parse_model(text.format(also=also)).SerializeToString())
        assert read_onnx(path).model.opset_imports == {"": 11}
        assert read_onnx(path, 18).model.opset_imports == {"": 18}
    path.write_bytes(onnx.parser.parse_model(text.format(also=', "" : 18')).SerializeToString())
    with pytest.raises(SourceError, match=r"in the opsets \[11, 18\]; expected one"):
        read_onnx(path)


@pytest.mark.parametrize("imported", ["", "ai.onnx"])
def test_every_node_may_call_its_domain_by_the_other_name(tmp_path: Path, imported: str) -> None:
    text = f"""<ir_version: 8, opset_import: ["{imported}" : 18, "own" : 1]>
    g (float[N, 4] x) => (float[N, 4] y) {{
      s = ReduceSum <keepdims = 0> (x)  zero = Constant <value_float = 0.0> ()  up = Greater (s, zero)
      b = If (up) <
        then_branch = t () => (float[N, 4] t) {{ t = Relu (x) }},
        else_branch = e () => (float[N, 4] e) {{ e = Neg (x) }}
      >
      y = own.Half (b) }}
    <domain: "own", opset_import: ["{imported}" : 18]> Half (u) => (v) {{ two = Constant <value_float = 2.0> ()
      v = Div (u, two) }}"""
    model = onnx.parser.parse_model(text)
    branches = [a.g for node in model.graph.node for a in node.attribute if a.HasField("g")]
    for node in [n for held in (model.graph, *branches, *model.functions) for n in held.node if not n.domain]:
        node.domain = "ai.onnx"
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    x = np.float32([[1, -2, 3, 4], [-1, -2, 1, 1]])
    y = np.float32([[0.5, 0, 1.5, 2], [0, 0, 0.5, 0.5]])
    read = read_onnx(path).model
    assert {node.domain for node in read.graph.all_nodes()} == {""}
    np.testing.assert_array_equal(Runtime(to_bytes(read), optimised=False).run({"x": x})["y"], y)


def test_a_file_whose_nodes_call_their_domain_by_the_other_name_is_folded(legacy: Path, tmp_path: Path) -> None:
    path, model = tmp_path / "m.onnx", onnx.load(legacy / "17.onnx")
    for node in model.graph.node:
        node.domain = "ai.onnx"
    onnx.save(model, path)
    assert fold_file(path, tmp_path / "folded.onnx").folding.batchnorms_after == 0


def test_a_batchnorm_in_training_mode_and_an_ancient_opset_are_refused(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(GRAPH.format(node="Relu (x)", extra=""))
    model.graph.node.add(op_type="BatchNormalization", input=["x"] * 5, output=["a"]).attribute.append(
        helper.make_attribute("training_mode", 1)
    )
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(SourceError, match="exported in training mode"):
        read_onnx(tmp_path / "m.onnx")
    model = onnx.parser.parse_model(GRAPH.format(node="Relu (x)", extra="").replace(": 17", ": 9"))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(SourceError, match="opset 9; expected 11 to"):
        read_onnx(tmp_path / "m.onnx")


TRAINED = (
    '<ir_version: 8, opset_import: ["": {opset}]> g (float[N, 3, L] x) => (float[N, 3, L] y) '
    "<float[3] s = {{1, 2, 3}}, float r = {{0.5}}, float zero = {{0}}, bool yes = {{1}}, bool no = {{0}}> {{ {node} }}"
)


@pytest.mark.parametrize(
    ("opset", "node"),
    [
        (12, "y, mean, var, saved_mean, saved_var = BatchNormalization (x, s, s, s, s)"),
        (12, 'y, "", "", "", "" = BatchNormalization (x, s, s, s, s)'),
        (17, "y = Dropout (x, r, yes)"),
        (17, "y = Dropout (x, , yes)"),
        (17, "t = Constant <value = bool {1}> () y = Dropout (x, r, t)"),
    ],
)
def test_other_operators_in_training_mode_are_refused_too(tmp_path: Path, opset: int, node: str) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(onnx.parser.parse_model(TRAINED.format(opset=opset, node=node)), path)
    with pytest.raises(SourceError, match=r"exported in training mode \(\w+ 'y'\): export it after eval"):
        read_onnx(path)


@pytest.mark.parametrize(
    "node",
    [
        "y = Dropout (x, r, no)",
        "y = Dropout (x, zero, yes)",
        "y = Dropout (x, r)",
        "y = BatchNormalization (x, s, s, s, s)",
    ],
)
def test_what_drops_nothing_is_read(tmp_path: Path, node: str) -> None:
    onnx.save(onnx.parser.parse_model(TRAINED.format(opset=17, node=node)), tmp_path / "m.onnx")
    assert len(list(read_onnx(tmp_path / "m.onnx").model.graph)) == 1


def test_a_function_of_the_file_may_be_called_batchnormalization(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
    g (float[N, 4] x) => (float[N, 4] y) { a, b = own.BatchNormalization (x)  y = Add (a, b) }
    <domain: "own", opset_import: ["" : 17]> BatchNormalization (u) => (v, w) { v = Relu (u)  w = Neg (u) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    assert [node.op_type for node in read_onnx(tmp_path / "m.onnx").model.graph] == ["Relu", "Neg", "Add"]


@pytest.mark.parametrize(
    ("node", "extra"),
    [
        ("c = ConstantOfShape (huge) r = ReduceMax <keepdims = 0> (c) y = Add (x, r)", "int64[1] huge = {2700000000}"),
        ("r = ReduceMax <axes = [1]> (x) y = Expand (r, huge)", "int64[2] huge = {1, 2700000000}"),
        ("y = Pad (x, huge)", "int64[4] huge = {0, 0, 0, 2700000000}"),
        ("q = Mul (huge, huge) c = ConstantOfShape (q) y = Add (x, c)", "int64[2] huge = {1, 52000}"),
    ],
    ids=["ConstantOfShape", "Expand", "Pad", "of a computed shape"],
)  # fmt: skip
def test_a_tensor_of_ten_gigabytes_inside_a_graph_is_refused_before_it_is_made(
    tmp_path: Path, node: str, extra: str
) -> None:
    text = f"""<ir_version: 8, opset_import: ["" : 17]> g (float[N, 2] x) => (float[N, M] y) <{extra}> {{ {node} }}"""
    model = onnx.parser.parse_model(text)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    origin = open_onnx(tmp_path / "m.onnx")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ExportError, match="which is more than the 268435456 elements that are computed here"):
        origin.run({"x": np.zeros((1, 2), np.float32)})
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10


@pytest.mark.parametrize("name", ["y\x1b[31mred", "y\nz", "y\x00", "y\u202eabc"])
@pytest.mark.parametrize("place", ["output", "node", "graph", "dimension"])
def test_names_that_a_terminal_would_obey_are_refused(tmp_path: Path, name: str, place: str) -> None:
    model = onnx.parser.parse_model(GRAPH.format(node="Relu (x)", extra=""))
    if place == "output":
        model.graph.node[0].output[0] = model.graph.output[0].name = name
    elif place == "node":
        model.graph.node[0].name = name
    elif place == "graph":
        model.graph.name = name
    else:
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = name
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(SourceError, match="which has characters that cannot be printed") as caught:
        read_onnx(tmp_path / "m.onnx")
    assert str(caught.value).isprintable()


LOCATIONS = ["weights.bin", "../secret", "a/../../secret", "/etc/passwd", "link", "hard", "pipe"]


@pytest.mark.parametrize("location", LOCATIONS)
@pytest.mark.parametrize("place", ["initializer", "attribute", "sparse", "sparse attribute", "subgraph", "function"])
def test_external_data_is_never_followed_wherever_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, location: str
) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(bytes(64))
    (folder / "weights.bin").write_bytes(bytes(64))
    (folder / "link").symlink_to(tmp_path / "secret")
    os.link(tmp_path / "secret", folder / "hard")
    os.mkfifo(folder / "pipe")
    monkeypatch.chdir(folder)
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    model = onnx.parser.parse_model(GRAPH.format(node="Relu (x)", extra=""))
    constant = helper.make_node("Constant", [], ["c"])
    if place == "initializer":
        model.graph.initializer.append(tensor)
    elif place == "attribute":
        constant.attribute.append(helper.make_attribute("value", tensor))
    else:
        sparse = onnx.SparseTensorProto(values=tensor, dims=[2])
        sparse.indices.CopyFrom(numpy_helper.from_array(np.arange(2)))
        if place == "sparse":
            model.graph.sparse_initializer.append(sparse)
        elif place == "sparse attribute":
            constant.attribute.append(onnx.AttributeProto(name="sparse_value", type=11, sparse_tensor=sparse))
        elif place == "subgraph":
            inner = onnx.GraphProto(name="inner")
            inner.initializer.append(tensor)
            constant.attribute.append(helper.make_attribute("then_branch", inner))
        else:
            function = model.functions.add(name="f", domain="local")
            node = function.node.add(op_type="Constant", output=["c"])
            node.attribute.append(helper.make_attribute("value", tensor))
    if constant.attribute:
        model.graph.node.append(constant)
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *a, **k: pytest.fail("onnxruntime was asked"))
    with pytest.raises(SourceError, match="in another file, which is not followed"):
        read_onnx(folder / "m.onnx")


@pytest.mark.parametrize("content", [b"", bytes(100), b"hello", b"PK\x03\x04", bytes(range(256)) * 16])
def test_a_file_that_is_not_onnx_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(SourceError):
        read_onnx(tmp_path / "m.onnx")


def test_no_truncation_of_a_file_is_taken_for_the_whole(legacy: Path, tmp_path: Path) -> None:
    content = (legacy / "17.onnx").read_bytes()
    for end in range(0, len(content), 97):
        (tmp_path / "m.onnx").write_bytes(content[:end])
        with pytest.raises(ExportError):
            open_onnx(tmp_path / "m.onnx").run({"x": np.zeros((1, 3, 8), np.float32)})


def test_a_file_of_ir_version_3_is_folded_although_its_weights_are_inputs_too(tmp_path: Path) -> None:
    text = """<ir_version: 3, opset_import: ["" : 11]>
    g (float[N, 2, L] x, float[3, 2, 1] w, float[3] g, float[3] b, float[3] m, float[3] v) => (float[N, 3, M] y)
    { c = Conv (x, w) y = BatchNormalization (c, g, b, m, v) }"""
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, shape in (("w", (3, 2, 1)), ("g", 3), ("b", 3), ("m", 3), ("v", 3)):
        held = rng.uniform(0.5, 2, shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(held, name))
    source, target = tmp_path / "old.onnx", tmp_path / "new.onnx"
    source.write_bytes(model.SerializeToString())
    report = fold_file(source, target)
    assert (report.folding.batchnorms_before, report.folding.batchnorms_after) == (1, 0)
    x = rng.standard_normal((2, 2, 5)).astype(np.float32)
    before, after = (
        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        for path in (source, target)
    )
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-6)


def test_sizes_that_the_exporter_traced_with_are_dropped_from_the_outputs_and_the_true_ones_kept(
    tmp_path: Path,
) -> None:
    text = """<ir_version: 8, opset_import: ["" : 18]>
    g (float[N, 3, L] x) => (float[2, 3, 7] y, float[2, 6] z)
    <int64[1] zero = {0}, int64[1] one = {1}, int64[1] six = {6}, int64[1] two = {2}>
    {
      y = Identity (x)  m = ReduceMean <keepdims = 0> (x, two)  b = Concat <axis = 1> (m, m)
      s = Shape (x)  n = Slice (s, zero, one)  target = Concat <axis = 0> (n, six)
      z = Reshape (b, target)
    }"""
    path = tmp_path / "traced.onnx"
    onnx.save(onnx.parser.parse_model(text), path)
    origin = open_onnx(path)
    model = origin.graph(origin.specs, {"N": 2, "L": 7}, 18)
    dims = {v.name: [d if isinstance(d, int) else None for d in v.shape or ()] for v in model.graph.outputs}
    assert dims == {"y": [None, 3, None], "z": [None, 6]}
