"""A file that normfold wrote tells the sizes that were proved, and whoever opens it again holds to them."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper

from normfold.cli.main import main
from normfold.export.inputs.sizes import batch_dimension
from normfold.export.inputs.specs import parse_inputs
from normfold.export.sources.onnx_origin import open_onnx
from normfold.export.sources.proved import as_proved

METADATA = {
    "normfold.inputs": "x=FP32[N,3,L]; tokens=INT64[N,L]:0..84",
    "normfold.proved": '{"dimensions": {"N": {"low": 1, "high": null, "step": 1, "tried": [1]}, '
    '"L": {"low": 8, "high": 400, "step": 8, "tried": [8, 16]}}}',
}
NUMBERS = ("low", "high", "step")
SPECS = parse_inputs(["x=FP32[N,3,L]", "tokens=INT64[N,L]"])


def test_ranges_of_sizes_and_values_are_those_of_the_metadata():
    assert list(map(str, as_proved(SPECS, METADATA))) == [
        "x=FP32[N:1..,3,L:8..400:8]",
        "tokens=INT64[N:1..,L:8..400:8]:0..84",
    ]


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {**METADATA, "normfold.proved": "{"},
        {**METADATA, "normfold.proved": "[]"},
        {**METADATA, "normfold.proved": '{"dimensions": {"L": {"low": "8", "high": 9, "step": 1}}}'},
        {**METADATA, "normfold.inputs": "x"},
        *(
            {**METADATA, "normfold.proved": json.dumps({"dimensions": {"L": dict(zip(NUMBERS, given, strict=True))}})}
            for given in (
                (0, 9, 1),
                (-1, 9, 1),
                (9, 8, 1),
                (1, 0, 1),
                (1, 9, 0),
                (True, 9, 1),
                (1, True, 1),
                (1, 9, True),
            )
        ),
    ],
)
def test_metadata_that_cannot_be_read_change_nothing(metadata):
    assert as_proved(SPECS, metadata) == SPECS


def test_values_that_end_at_a_size_that_was_fixed_since_are_not_taken():
    metadata = {**METADATA, "normfold.inputs": "x=FP32[N,3,L]; lengths=INT64[N]:1..L"}
    fixed = parse_inputs(["x=FP32[N,3,40]", "lengths=INT64[N]"])
    assert list(map(str, as_proved(fixed, metadata))) == ["x=FP32[N:1..,3,40]", "lengths=INT64[N:1..]"]
    open_ = parse_inputs(["x=FP32[N,3,L]", "lengths=INT64[N]"])
    assert str(as_proved(open_, metadata)[1]) == "lengths=INT64[N:1..]:1..L"


def file(path: Path, factor: float, **metadata: str) -> Path:
    """A network that doubles; for a length below 8 another function, where ``factor`` is not 2."""
    short = helper.make_graph(
        [helper.make_node("Constant", [], ["f"], value_float=factor), helper.make_node("Mul", ["x", "f"], ["s"])],
        "short", [], [helper.make_tensor_value_info("s", TensorProto.FLOAT, None)],
    )  # fmt: skip
    long = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["l"])],
        "long", [], [helper.make_tensor_value_info("l", TensorProto.FLOAT, None)],
    )  # fmt: skip
    nodes = [
        helper.make_node("Shape", ["x"], ["length"], start=2),
        helper.make_node("Constant", [], ["eight"], value_ints=[8]),
        helper.make_node("Less", ["length", "eight"], ["is_short"]),
        helper.make_node("If", ["is_short"], ["y"], then_branch=short, else_branch=long),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3, "L"]) for name in "xy")
    model = helper.make_model(helper.make_graph(nodes, "g", [x], [y]), opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 8
    helper.set_model_props(model, metadata)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("turned", [False, True])
def test_verify_compares_at_the_sizes_that_one_of_the_files_was_proved_for(tmp_path, turned):
    proved = file(tmp_path / "proved.onnx", 3.0, **METADATA)
    files = [str(file(tmp_path / "net.onnx", 2.0)), str(proved)][:: -1 if turned else 1]
    assert str(open_onnx(proved).specs[0]) == "x=FP32[N:1..,3,L:8..400:8]"
    done = CliRunner().invoke(main, ["verify", *files])
    assert done.exit_code == 0, done.output
    other = [str(tmp_path / "net.onnx"), str(file(tmp_path / "unproved.onnx", 3.0))]
    done = CliRunner().invoke(main, ["verify", *other])
    assert done.exit_code == 1
    assert "not the same network" in done.output


def test_an_input_that_is_described_shares_the_proved_sizes_of_the_others(tmp_path):
    nodes = [helper.make_node("Add", ["x", "u"], ["y"])]
    x, u, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3, "L"]) for name in "xuy")
    model = helper.make_model(helper.make_graph(nodes, "g", [x, u], [y]), opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 8
    helper.set_model_props(model, {**METADATA, "normfold.inputs": "x=FP32[N,3,L]; u=FP32[N,3,L]"})
    onnx.save(model, tmp_path / "net.onnx")
    specs = open_onnx(tmp_path / "net.onnx", parse_inputs(["x=FP32[N,3,L]"])).specs
    assert list(map(str, specs)) == ["x=FP32[N:1..,3,L:8..400:8]", "u=FP32[N:1..,3,L:8..400:8]"]
    assert batch_dimension(specs).name == "N"
    specs = open_onnx(tmp_path / "net.onnx", parse_inputs(["u=FP32[N:2..4,3,L]"])).specs
    assert list(map(str, specs)) == ["x=FP32[N:2..4,3,L:8..400:8]", "u=FP32[N:2..4,3,L:8..400:8]"]
