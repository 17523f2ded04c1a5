"""A network whose answer to a row depends on the other rows of its batch is published without batching."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import onnxruntime as ort
import pytest
import torch
from torch import nn

import normfold
from normfold.export.pipeline import export_model
from normfold.export.publishing.report import ExportReport
from normfold.export.request import ExportRequest
from normfold.protos import model_config
from normfold.protos.config_text import parse_config

Way = Callable[[torch.Tensor], torch.Tensor]


class Net(nn.Module):
    """A small network; ``before(x)`` of its input goes in, ``after(y)`` of its scores comes out."""

    def __init__(self, before: Way, after: Way) -> None:
        super().__init__()
        self.conv, self.norm, self.before, self.after = nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), before, after
        self.drop = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.after(self.drop(self.norm(torch.relu(self.conv(self.before(x))))).mean(-1))


def same(x: torch.Tensor) -> torch.Tensor:
    return x


def standardised_over_all(x: torch.Tensor) -> torch.Tensor:
    return (x - x.mean()) / (x.std() + 1e-6)


def standardised_by_row(x: torch.Tensor) -> torch.Tensor:
    return (x - x.mean((1, 2), keepdim=True)) / (x.std((1, 2), keepdim=True) + 1e-6)


def over_the_largest(x: torch.Tensor) -> torch.Tensor:
    return x / x.abs().max().clamp(min=5.0)


def exported(network: nn.Module, folder: Path, text: str = "x=FP32[N,2,64]", **options: Any) -> ExportReport:
    torch.manual_seed(0)
    return normfold.export_network(
        network.eval(), inputs=text, repository=folder, name="m", form="folded", version=1, **options
    )


def config_in(folder: Path) -> model_config.ModelConfig:
    return parse_config((folder / "m" / "config.pbtxt").read_text())


def batched(report: ExportReport, folder: Path) -> bool:
    """Whether the version is published with batching; all places that say so must say the same."""
    config = config_in(folder)
    notes = [note for note in report.notes if "requests are not batched" in note]
    found = config.max_batch_size > 0
    assert config.HasField("dynamic_batching") == found
    assert report.max_batch_size == config.max_batch_size
    assert len(notes) == (not found)
    return found


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (standardised_over_all, same),
        (over_the_largest, same),
        (lambda x: x / x.abs().max().clamp(min=1000.0), same),
        (same, lambda y: y.softmax(0)),
        (same, lambda y: y.cumsum(0)),
        (same, lambda y: y - y.flip(0)),
        (same, lambda y: (y == y.amax(0)).long()),
    ],
)
def test_rows_that_are_mixed_are_not_batched(tmp_path: Path, before: Way, after: Way) -> None:
    assert not batched(exported(Net(before, after), tmp_path), tmp_path)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (same, same),
        (standardised_by_row, same),
        (same, lambda y: y.softmax(-1)),
        (same, lambda y: y.argmax(-1)),
        (same, lambda y: y > 0),
        (lambda x: (x - 1e8) + 1e8, same),
    ],
)
def test_rows_that_are_computed_alone_are_batched(tmp_path: Path, before: Way, after: Way) -> None:
    assert batched(exported(Net(before, after), tmp_path), tmp_path)


def test_the_note_says_what_is_written_why_and_what_to_change(tmp_path: Path) -> None:
    report = exported(Net(standardised_over_all, same), tmp_path)
    (note,) = (note for note in report.notes if "not batched" in note)
    for said in (
        "output 'output' of a request moves by",
        "beside another request",
        "max_batch_size 0 and no dynamic_batching",
        "a server runs each request alone",
        "x.mean((1, 2), keepdim=True) in place of x.mean()",
    ):
        assert said in note
    assert report.limits == ("N from 1 up",)
    assert note in (tmp_path / "m" / "1" / "export.json").read_text()
    config = config_in(tmp_path)
    assert [list(tensor.dims) for tensor in (*config.input, *config.output)] == [[-1, 2, 64], [-1, 4]]
    assert [list(warmup.inputs["x"].dims) for warmup in config.model_warmup] == [[2, 2, 64]]


def test_the_change_that_the_note_names_is_the_same_network_for_one_row_and_is_batched(tmp_path: Path) -> None:
    answers = []
    for name, before in (("all", standardised_over_all), ("row", standardised_by_row)):
        torch.manual_seed(1)
        report = exported(Net(before, same), tmp_path / name)
        x = np.random.default_rng(0).standard_normal((1, 2, 64)).astype(np.float32)
        answers += ort.InferenceSession(Path(report.path) / "model.onnx").run(None, {"x": x})
        assert batched(report, tmp_path / name) == (name == "row")
    assert np.abs(answers[0] - answers[1]).max() < 1e-5 * np.abs(answers[0]).max()


@pytest.mark.parametrize(("text", "largest"), [("x=FP32[N:2..3,2,64]", 3), ("x=FP32[N:4..7,2,64]", 7)])
def test_a_batch_that_never_holds_two_requests_is_not_examined(tmp_path: Path, text: str, largest: int) -> None:
    report = exported(Net(standardised_over_all, same), tmp_path, text)
    assert config_in(tmp_path).max_batch_size == report.max_batch_size == largest
    assert not any("not batched" in note for note in report.notes)


def test_a_smallest_batch_of_two_is_examined_with_two_rows_in_each_request(tmp_path: Path) -> None:
    pairs = Net(same, lambda y: y - y.reshape(-1, 2, 4).flip(1).reshape(-1, 4))
    assert batched(exported(pairs, tmp_path / "pairs", "x=FP32[N:2..8:2,2,64]"), tmp_path / "pairs")
    mixed = Net(standardised_over_all, same)
    assert not batched(exported(mixed, tmp_path / "mixed", "x=FP32[N:2..8:2,2,64]"), tmp_path / "mixed")


@pytest.mark.parametrize(
    ("name", "scale", "found"),
    [
        ("dynamic", "q, scale, zero = DynamicQuantizeLinear(x)", False),
        ("static", "q = QuantizeLinear(x, scale, zero)", True),
    ],
)
def test_a_file_that_cannot_be_computed_in_float64_is_examined_too(
    tmp_path: Path, name: str, scale: str, found: bool
) -> None:
    held = "" if name == "dynamic" else "<float scale = {0.1}, uint8 zero = {128}>"
    graph = f"g (float[N,8] x) => (float[N,8] y) {held} {{ {scale} y = DequantizeLinear(q, scale, zero) }}"
    path = tmp_path / "net.onnx"
    onnx.save(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]> {graph}'), path)
    report = export_model(
        ExportRequest(source=str(path), repository=tmp_path, name="m", inputs=("x=FP32[N,8]",), variant="folded")
    )
    assert batched(report, tmp_path) == found


def test_standardised_inputs_are_examined_as_clients_send_them(tmp_path: Path) -> None:
    report = exported(Net(over_the_largest, same), tmp_path, standardize={"x": (1000.0, 1.0)})
    assert not batched(report, tmp_path)


def test_batching_that_an_earlier_version_has_is_not_kept_for_mixed_rows(tmp_path: Path) -> None:
    exported(Net(same, same), tmp_path)
    mixed = Net(standardised_over_all, same).eval()
    with pytest.raises(normfold.ExportError, match=r"size: 64 there, 0 in this export, which .* mixes its rows"):
        normfold.export_network(mixed, inputs="x=FP32[N,2,64]", repository=tmp_path, name="m", form="folded")
