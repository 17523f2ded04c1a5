"""Standardised inputs and probabilities: folded exactly, proved with the network, refused where they do not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from torch import nn

from normfold import ExportError, export_network
from normfold.cli.main import main
from normfold.export.errors import InputSpecError
from normfold.export.inputs.sizes import Sizes
from normfold.export.inputs.specs import parse_inputs
from normfold.export.proof.proof import cases_of
from normfold.export.sources.ends import Ends, with_ends
from normfold.export.sources.origin import Origin

MEAN, STD = np.array([0.5, -1.0, 2.0]), np.array([0.5, 2.0, 1.5])


class Net(nn.Module):
    """Zero-padded convolutions in the book's order, then classes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.bn1 = nn.Conv1d(3, 8, 5, padding=2), nn.BatchNorm1d(8)
        self.conv2, self.out = nn.Conv1d(8, 8, 3, padding=1), nn.Linear(8, 4)
        nn.init.uniform_(self.bn1.weight, -1.5, 1.5)
        nn.init.normal_(self.bn1.bias)
        self.bn1.running_mean.normal_()  # type: ignore[union-attr]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.conv2(self.bn1(torch.relu(self.conv1(x)))))
        return self.out(hidden.mean(-1))  # type: ignore[no-any-return]


class Rows(nn.Module):
    """Takes rows without channels, and gives a mask over the length beside the classes."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"classes": torch.stack([x, -x, 2 * x], 1), "mask": x}


def answer(path: str, x: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    session = onnxruntime.InferenceSession(Path(path) / "model.onnx", providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})  # type: ignore[no-any-return]


@pytest.mark.parametrize("form", ["folded", "unfolded"])
def test_a_standardised_input_folds_through_zero_padding_and_softmax_gives_probabilities(
    tmp_path: Path, form: str
) -> None:
    net = Net().eval()
    report = export_network(
        net,
        inputs="x=FP32[N,3,L]",
        repository=tmp_path,
        name="net",
        standardize={"x": (MEAN, STD)},
        softmax="output",
        labels=["a", "b", "c", "d"],
        form=form,
    )
    assert (report.folding.batchnorms_before, report.folding.batchnorms_after) == (2, 0)
    assert "'x' is standardised before the network: (x - mean) / std" in report.notes
    assert "output 'output' is the softmax of what the network returns" in report.notes
    x = (MEAN[:, None] + STD[:, None] * np.random.default_rng(0).standard_normal((5, 3, 30))).astype(np.float32)
    with torch.no_grad():
        inside = torch.from_numpy((x.astype(np.float64) - MEAN[:, None]) / STD[:, None])
        want = torch.softmax(net.double()(inside), -1).numpy()
    (got,) = answer(report.path, x)
    # some 100 sums of at most 40 products in float32, each off by at most 2**-24 of its largest term; MEAN / STD <= 1.4
    np.testing.assert_allclose(got, want, rtol=0, atol=400 * 2.0**-24)
    np.testing.assert_allclose(got.sum(-1), 1, rtol=0, atol=8 * 2.0**-24)
    if form == "folded":
        operators = {node.op_type for node in onnx.load(Path(report.path) / "model.onnx").graph.node}
        assert not operators & {"BatchNormalization", "Sub", "Mul", "Div"}


def test_a_mean_far_from_zero_stays_as_a_shift_so_that_no_digit_of_the_data_is_lost(tmp_path: Path) -> None:
    net = Net().eval()
    report = export_network(
        net,
        inputs="x=FP32[N,3,L]",
        repository=tmp_path,
        name="net",
        standardize={"x": (1000.0, 0.5)},
        form="folded",
    )
    assert "a shift stays" in str(report)
    x = (1000 + 0.5 * np.random.default_rng(0).standard_normal((5, 3, 30))).astype(np.float32)
    with torch.no_grad():
        want = net.double()(torch.from_numpy((x.astype(np.float64) - 1000) / 0.5)).numpy()
    (got,) = answer(report.path, x)
    # what is subtracted is exact, so that the error is that of a network on standardised data
    np.testing.assert_allclose(got, want, rtol=0, atol=400 * 2.0**-24 * np.abs(want).max())


def test_the_proof_runs_on_inputs_around_the_mean_as_the_network_sees_them() -> None:
    specs = parse_inputs(["x=FP32[N,3,L]"])
    network = Origin(
        "", "", "", "", specs, lambda given: given, lambda _: (lambda given: given, "", ()), lambda *_: None
    )
    origin = with_ends(network, Ends({"x": (1000 * MEAN, STD)}))
    at = {"N": 4, "L": 60}
    cases = cases_of(specs, Sizes(at, (at,), specs), origin.raw)
    assert [c.kind for c in cases] == ["random"] * 4 + ["scaled"] * 4 + ["raw"]
    for case, scale in zip(cases[:-1], [1, 1, 1, 1, 1e-4, 1e-2, 1e2, 1e4], strict=True):
        seen, given = origin.run(case.inputs)["x"], case.inputs["x"]
        rounding = 1000 * np.abs(MEAN).max() * 2.0**-23 / STD.min()
        assert seen.std(axis=(0, 2)) == pytest.approx(scale, rel=0.2, abs=rounding)
        assert np.abs(seen.mean(axis=(0, 2))).max() < 0.3 * scale + rounding
        assert given.dtype == np.float32
    assert np.abs(cases[-1].inputs["x"].mean(axis=(0, 2))).max() < 0.3
    assert [c.kind for c in cases_of(specs, Sizes(at, (at,), specs))] == ["random"] * 4 + ["scaled"] * 4


def test_rows_without_channels_are_standardised_by_one_number_and_an_axis_and_a_sigmoid_are_taken(
    tmp_path: Path,
) -> None:
    report = export_network(
        Rows(),
        inputs="x=FP32[N,L]",
        repository=tmp_path,
        name="net",
        standardize={"x": (2.0, 4.0)},
        softmax={"classes": 1},
        sigmoid="mask",
    )
    x = np.random.default_rng(0).standard_normal((2, 7)).astype(np.float32)
    inside = (x.astype(np.float64) - 2) / 4
    powers = np.exp(np.stack([inside, -inside, 2 * inside], 1))
    classes, mask = answer(report.path, x)
    np.testing.assert_allclose(classes, powers / powers.sum(1, keepdims=True), rtol=0, atol=16 * 2.0**-24)
    np.testing.assert_allclose(mask, 1 / (1 + np.exp(-inside)), rtol=0, atol=16 * 2.0**-24)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"standardize": {"y": (0, 1)}}, "^--standardize y: there is no input 'y'; there is 'x'$"),
        ({"standardize": {"x": (np.zeros(2), 1)}}, "the mean of 'x' has 2 numbers; .* needs one, or 3, one for each"),
        ({"standardize": {"x": (0, [1, 0, 1])}}, "the std of 'x' holds a number that is not finite and above 0"),
        ({"standardize": {"x": (np.nan, 1)}}, "the mean of 'x' holds a number that is not finite"),
        ({"softmax": "scores"}, "^--softmax scores: there is no output 'scores'; there is 'output'$"),
        ({"sigmoid": "scores"}, "^--sigmoid scores: there is no output 'scores'; there is 'output'$"),
        ({"softmax": {"output": 2}}, "^--softmax output:2: output 'output' has 2 axes, 0 to 1, so 2 is none of them"),
    ],
)
def test_ends_that_do_not_fit_are_refused(tmp_path: Path, options: dict[str, object], said: str) -> None:
    with pytest.raises(ExportError, match=said):
        export_network(
            Net(),
            inputs="x=FP32[N,3,L]",
            repository=tmp_path / "r",
            name="net",
            **options,  # type: ignore[arg-type]
        )
    assert not (tmp_path / "r").exists()


def test_the_axis_of_classes_is_asked_for_where_there_are_three(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"^--softmax classes: output 'classes' has 3 axes; say which is that of the"):
        export_network(Rows(), inputs="x=FP32[N,L]", repository=tmp_path, name="net", softmax={"classes": None})


def test_a_mistyped_output_of_several_names_the_one_that_was_meant(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"^--softmax clases: .*; there are 'classes', 'mask'; did you mean"):
        export_network(Rows(), inputs="x=FP32[N,L]", repository=tmp_path, name="net", softmax={"clases": 1})


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_command_takes_files_and_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("mean.npy", MEAN[None, :, None])
    torch.onnx.export(
        Net().eval(), (torch.ones(2, 3, 9),), "net.onnx", input_names=["x"], output_names=["y"], dynamo=False
    )
    arguments = ["export", "net.onnx", "--repository", "r", "--name", "net", "--softmax", "y"]
    result = CliRunner().invoke(main, [*arguments, "--standardize", "x=mean.npy,2"])
    assert result.exit_code == 0, result.output
    assert "note: 'x' is standardised before the network" in result.output
    net = Net().double().eval()
    x = np.random.default_rng(0).standard_normal((2, 3, 9)).astype(np.float32)
    with torch.no_grad():
        want = torch.softmax(net(torch.from_numpy((x - MEAN[:, None]) / 2)), -1).numpy()
    np.testing.assert_allclose(answer("r/net/1", x)[0], want, rtol=0, atol=400 * 2.0**-24)


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--standardize", "x=1"], 2, "expected NAME=MEAN,STD"),
        (["--standardize", "x=a,1"], 2, "'a' is neither a number nor a .npy file"),
        (["--standardize", "x=no.npy,1"], 1, "no.npy cannot be read"),
        (["--standardize", "x=0,1", "--standardize", "x=0,2"], 2, "--standardize is given more than once for x"),
        (["--softmax", "y:last"], 2, "expected OUTPUT or OUTPUT:AXIS"),
        (["--softmax", "y", "--sigmoid", "y"], 2, "is given more than once for y"),
    ],
)
def test_a_wrong_option_says_what_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], code: int, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.onnx").touch()
    result = CliRunner().invoke(main, ["export", "net.onnx", "--repository", "r", "--name", "net", *options])
    assert (result.exit_code, said in result.output) == (code, True), result.output


def test_an_output_is_given_to_softmax_or_to_sigmoid() -> None:
    with pytest.raises(InputSpecError, match="'y' is given to both softmax and sigmoid; expected one of them"):
        Ends(softmax={"y": None}, sigmoid=("y",))
    with pytest.raises(InputSpecError, match="'y' is given to sigmoid more than once"):
        Ends(sigmoid=("y", "y"))
    assert Ends(softmax={"y": None}, sigmoid=("z",)).anything
