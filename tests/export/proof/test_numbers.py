"""Networks that give NaN on most random inputs: what is proved of them, on which inputs, and what is refused."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import numpy_helper
from torch import nn

import normfold
from normfold.cli.main import main
from normfold.export.errors import InputSpecError
from normfold.export.inputs.specs import Dimension, parse_inputs
from normfold.export.onnx_fold import fold_file
from normfold.export.proof.accepted_sizes import sizes_of
from normfold.export.proof.compare import Side, compare
from normfold.export.proof.numbers import drawn_for, require_numbers
from normfold.export.proof.verify import Arrays, Case, largest_errors, verify
from normfold.export.publishing.report import ExportReport
from normfold.export.sources.onnx_origin import open_onnx
from normfold.export.sources.origin import Origin

#: Reads numbers from 2 to 4 only, which neither N(0, 1) nor |N(0, 1)| keeps to.
TEXT = """<ir_version: 8, opset_import: ["" : 18]>
g (float[N, 2, L] x) => (float[N, 4, M] y) <float three = {3.0}>
{ d = Sub (x, three)  a = %s  c = Conv (a, w)  s = Sigmoid (c)  n = BatchNormalization (s, g, b, m, v)
  y = Conv (n, u) }"""


class Net(nn.Module):
    """A function of the input before a convolution, a ReLU and a BatchNorm."""

    def __init__(self, before: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.last = nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.Conv1d(4, 3, 1)
        self.norm.running_mean.normal_()  # type: ignore[union-attr, operator]
        self.before = before

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(torch.relu(self.conv(self.before(x))))).mean(-1)


def narrow(x: torch.Tensor) -> torch.Tensor:
    return torch.sqrt(1 - (x - 3) ** 2)


def exported(before: Callable[[torch.Tensor], torch.Tensor], folder: Path, **options: object) -> ExportReport:
    return normfold.export_network(
        Net(before).eval(), inputs="x=FP32[N,2,L]", repository=folder, name="m", form="folded", **options
    )


def golden(folder: Path) -> np.ndarray:
    tensor = json.loads((folder / "m" / "1" / "golden.json").read_text())["outputs"][0]
    return np.frombuffer(base64.b64decode(tensor["data"]), np.float32)


def written(path: Path, before: str, factor: float = 1.0) -> Path:
    model = onnx.parser.parse_model(TEXT % before)
    rng = np.random.default_rng(0)
    shapes = {"w": (4, 2, 3), "u": (4, 4, 1), "g": (4,), "b": (4,), "m": (4,), "v": (4,)}
    arrays = {name: rng.uniform(0.5, 1.5, shape).astype(np.float32) for name, shape in shapes.items()}
    arrays["u"] *= np.float32(factor)
    model.graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in arrays.items())
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("before", [torch.log, lambda x: x**0.3])
def test_a_network_of_positive_numbers_is_proved_on_them(
    before: Callable[[torch.Tensor], torch.Tensor], tmp_path: Path
) -> None:
    report = exported(before, tmp_path)
    assert report.algebra is not None
    assert all(d.relative > 0 for d in report.algebra.differences if d.kind == "random")
    assert np.isfinite(golden(tmp_path)).all()
    assert any("x are drawn positive" in note for note in report.notes)
    assert report.max_batch_size > 1


def test_a_network_without_numbers_is_refused_until_a_sample_gives_some(tmp_path: Path) -> None:
    with pytest.raises(InputSpecError, match=r"'output' is NaN or infinite .* on random inputs, .* Give --sample"):
        exported(narrow, tmp_path)
    assert not (tmp_path / "m").exists()
    sample = np.random.default_rng(0).uniform(2.1, 3.9, (1, 2, 20)).astype(np.float32)
    report = exported(narrow, tmp_path, samples=sample)
    assert {d.kind for d in report.verification.differences} == {"sample"}
    assert np.isfinite(golden(tmp_path)).all()
    assert any("on all random inputs, so they prove nothing of it" in note for note in report.notes)
    assert any("could not be seen whether" in note for note in report.notes)
    assert report.max_batch_size == 0


def test_a_file_of_positive_numbers_is_folded(tmp_path: Path) -> None:
    report = fold_file(written(tmp_path / "log.onnx", "Log (x)"), tmp_path / "folded.onnx")
    assert report.folding.batchnorms_after == 0
    assert report.inputs == ("x=FP32[N:1..,2,L:3..]",)


def test_a_file_without_numbers_is_folded_with_a_sample(tmp_path: Path) -> None:
    source, target = written(tmp_path / "acos.onnx", "Acos (d)"), tmp_path / "folded.onnx"
    with pytest.raises(InputSpecError, match="Give --sample"):
        fold_file(source, target)
    np.save(tmp_path / "x.npy", np.zeros((1, 2, 19), np.float32))
    with pytest.raises(InputSpecError, match="on random inputs and on every sample"):
        fold_file(source, target, samples=[tmp_path / "x.npy"])
    np.save(tmp_path / "x.npy", np.random.default_rng(0).uniform(2.1, 3.9, (1, 2, 19)).astype(np.float32))
    report = fold_file(source, target, samples=[tmp_path / "x.npy"])
    assert report.folding.batchnorms_after == 0
    assert report.inputs == ("x=FP32[N:1..,2,L:3..]",)


def test_files_are_compared_on_positive_numbers_and_never_on_none(tmp_path: Path) -> None:
    def side(name: str, before: str, factor: float = 1.0) -> tuple[Side, Origin]:
        origin = open_onnx(written(tmp_path / name, before, factor))
        return Side(name, origin.run, origin), origin

    (first, _), (same, _), (other, _) = side("a", "Log (x)"), side("b", "Log (x)"), side("c", "Log (x)", 1.001)
    assert compare(first, same).passed
    assert not compare(first, other).passed
    (first, _), (other, _) = side("a", "Acos (d)"), side("c", "Acos (d)", 1.001)
    with pytest.raises(InputSpecError, match="nothing can be proved"):
        compare(first, other)
    sample = np.full((1, 2, 8), 3.1, np.float32)
    assert not compare(first, other, [Case("sample", "x.npy", {"x": sample})]).passed


def test_a_kind_without_numbers_is_no_part_of_the_result() -> None:
    def logarithm(inputs):  # type: ignore[no-untyped-def]
        with np.errstate(invalid="ignore"):
            return {"y": np.log(inputs["x"])}

    cases = [Case("random", "one", {"x": -np.ones(3)}), Case("sample", "two", {"x": np.ones(3)})]
    own = largest_errors(logarithm, [logarithm], cases)
    found = verify(logarithm, logarithm, cases, "exact", own, lambda own, integers: 1e-9)
    assert [d.kind for d in found.differences] == ["sample"]
    assert found.cases == ("one", "two")


def two_outputs(path: Path, second: str, factor: float = 1.0) -> Path:
    """A convolution behind a LeakyRelu, whose negative branch multiplies by ``factor``, and another output."""
    text = f"""<ir_version: 8, opset_import: ["" : 18]> g (float[N, 2, L] x) => (float[N, 4, M] y, float[N, K, Q] z)
    {{ r = LeakyRelu <alpha = {0.1 * factor}> (x)  c = Conv (r, w)  s = Sigmoid (c)
      n = BatchNormalization (s, g, b, m, v)  y = Conv (n, u)  {second} }}"""
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    shapes = {"w": (4, 2, 3), "u": (4, 4, 1), "g": (4,), "b": (4,), "m": (4,), "v": (4,)}
    arrays = {name: rng.uniform(0.5, 1.5, shape).astype(np.float32) for name, shape in shapes.items()}
    arrays["never"] = np.float32(-np.inf)
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(a), name) for name, a in arrays.items())
    path.write_bytes(model.SerializeToString())
    return path


def test_one_output_without_numbers_is_noted_and_the_others_are_proved(tmp_path: Path) -> None:
    source, target = two_outputs(tmp_path / "net.onnx", "z = Add (x, never)"), tmp_path / "folded.onnx"
    report = fold_file(source, target)
    assert report.folding.batchnorms_after == 0
    assert report.inputs == ("x=FP32[N:1..,2,L:3..]",)
    assert [n for n in report.notes if "NaN" in n] == [
        "output 'z' is NaN or infinite in every entry on all inputs, so no number is compared"
    ]
    a, b = (open_onnx(path) for path in (source, target))
    found = compare(Side("a", a.run, a), Side("b", b.run, b))
    assert found.passed
    assert any("output 'z'" in note for note in found.notes)
    done = CliRunner().invoke(main, ["verify", str(source), str(target)])
    assert done.exit_code == 0
    assert "note: output 'z' is NaN or infinite" in " ".join((done.output + done.stderr).split())


def test_beside_an_output_without_numbers_another_is_given_positive_inputs(tmp_path: Path) -> None:
    origin = open_onnx(two_outputs(tmp_path / "net.onnx", "l = Log (x)  z = Add (l, never)"))
    assert not drawn_for(origin, []).specs[0].positive
    text = "l = Log (x)  z = Conv (l, w)"
    assert drawn_for(open_onnx(two_outputs(tmp_path / "log.onnx", text)), []).specs[0].positive


def test_negative_numbers_stay_in_the_proof_where_positive_ones_give_more(tmp_path: Path) -> None:
    first, other = (open_onnx(two_outputs(tmp_path / f"{f}.onnx", "z = Log (x)", f)) for f in (1.0, 2.0))
    found = compare(Side("a", first.run, first), Side("b", other.run, other))
    assert any("x are drawn positive" in note for note in found.notes)
    assert {d.output for d in found.differences if not d.passed} == {"y"}
    assert compare(Side("a", first.run, first), Side("b", first.run, first)).passed


def test_inputs_are_tried_as_the_network_sees_them_behind_a_standardisation(tmp_path: Path) -> None:
    origin = open_onnx(written(tmp_path / "log.onnx", "Log (x)"))

    def standardised(inputs: Arrays) -> Arrays:
        return origin.run({"x": (inputs["x"] - np.float32(100)).astype(np.float32)})

    whole = replace(origin, run=standardised, raw=lambda inputs: {"x": (inputs["x"] + 100).astype(np.float32)})
    assert drawn_for(whole, []).specs[0].positive


@pytest.mark.parametrize(("slow", "lengths"), [(1e9, [32, 64, 128, 256, 512, 1024]), (-1.0, [32, 16, 8, 4, 2])])
def test_sizes_without_numbers_are_tried_once_and_none_larger_than_a_slow_one(
    slow: float, lengths: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("normfold.export.inputs.size_steps.SLOW_SECONDS", slow)
    origin = open_onnx(written(tmp_path / "acos.onnx", "Acos (d)"))
    seen: list[tuple[int, ...]] = []

    def run(inputs: Arrays) -> Arrays:
        seen.append(inputs["x"].shape)
        return origin.run(inputs)

    drawn_for(replace(origin, run=run), [])
    assert list(dict.fromkeys(length for _, _, length in seen)) == lengths
    assert len(seen) <= 2 * len(lengths)


def test_a_network_of_one_size_without_numbers_is_run_once_in_each_way(tmp_path: Path) -> None:
    origin = open_onnx(written(tmp_path / "acos.onnx", "Acos (d)"))
    runs: list[int] = []

    def run(inputs: Arrays) -> Arrays:
        runs.append(1)
        return origin.run(inputs)

    drawn_for(replace(origin, run=run, specs=parse_inputs(["x=FP32[2,2,9]"])), [])
    assert len(runs) == 2


def test_a_length_is_too_short_where_an_output_has_no_numbers_that_has_them_elsewhere(tmp_path: Path) -> None:
    """Beside an output of which a part is -inf, the mean of no windows is NaN."""
    origin = open_onnx(written(tmp_path / "log.onnx", "Log (x)"))

    def run(inputs: Arrays) -> Arrays:
        x = inputs["x"]
        y = np.where(x.shape[2] < 8, np.float32(np.nan), np.abs(x))
        return {"mask": np.where(np.arange(x.shape[2]) > 3, np.float32(-np.inf), np.float32(0)), "y": y}

    whole = drawn_for(replace(origin, run=run), [])
    assert whole.gives_numbers == {"y"}
    assert sizes_of(whole).specs[0].dims[2] == Dimension("L", 8, None, 1)


def test_a_network_that_cuts_its_ends_is_captured_where_something_is_left(tmp_path: Path) -> None:
    """It runs at 32 positions, but gives no entry of one output there, and the mean of no entries as the other."""

    def run(inputs: Arrays) -> Arrays:
        inner = inputs["x"][:, :, 40 : max(inputs["x"].shape[2] - 40, 40)]
        return {"profile": inner, "count": inner.mean(2) if inner.size else inner.sum(2) * np.nan}

    origin = open_onnx(written(tmp_path / "abs.onnx", "Abs (x)"))
    assert sizes_of(drawn_for(replace(origin, run=run, content=None), [])).trace["L"] == 128


def test_a_network_whose_answers_are_all_empty_is_refused() -> None:
    case = Case("random", "", {"x": np.ones((2, 3, 9), np.float32)})
    with pytest.raises(InputSpecError, match="output 'y' is empty on random inputs"):
        require_numbers(lambda inputs: {"y": inputs["x"][:, :, 9:]}, [case])
    with pytest.raises(InputSpecError, match="'y' and 'mean' is NaN or infinite in every entry on random inputs"):
        require_numbers(lambda inputs: {"y": inputs["x"][:, :, 9:], "mean": inputs["x"] * np.nan}, [case])
    assert require_numbers(lambda inputs: {"y": inputs["x"][:, :, 9:], "mean": inputs["x"]}, [case]) == ()
