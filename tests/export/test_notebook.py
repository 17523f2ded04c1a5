"""``export_network``: a network in memory, exported as the command does it, and left as it was."""

from __future__ import annotations

import hashlib
import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from normfold import ExportError, export_network
from normfold.cli.export import export
from normfold.export.notebook_arguments import require_types


def network() -> nn.Sequential:
    """Convolution, ReLU, BatchNorm with lively statistics, convolution; in training mode."""
    torch.manual_seed(0)
    made = nn.Sequential(nn.Conv1d(3, 8, 3), nn.ReLU(), nn.BatchNorm1d(8), nn.Conv1d(8, 4, 3))
    made[2].running_mean.normal_()  # type: ignore[operator, union-attr]
    made[2].running_var.uniform_(0.5, 2)  # type: ignore[operator, union-attr]
    return made


class Ecg(nn.Module):
    """Takes an input that is not called x."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = network()

    def forward(self, ecg: torch.Tensor) -> torch.Tensor:
        return self.layers(ecg).amax(-1)  # type: ignore[no-any-return]


def test_a_network_in_memory_is_published_and_stays_as_it_is(tmp_path: Path) -> None:
    made = network()
    before = {name: value.clone() for name, value in made.state_dict().items()}
    sample = np.random.default_rng(0).standard_normal((2, 3, 20))
    steps: list[str] = []
    report = export_network(
        made, inputs="x=FP32[N,3,L]", repository=tmp_path, name="net", samples=sample, progress=steps.append
    )
    assert made.training
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())
    assert steps[-1] == "publish"
    assert report.path == str(tmp_path / "net" / "1")
    assert (report.published.batchnorms, report.folding.batchnorms_before) == (0, 1)
    assert "Sequential is in training mode; a copy in eval() was exported" in "\n".join(report.notes)
    assert not any("initial weights" in note for note in report.notes)
    assert "sample 1" in report.verification.cases
    model = tmp_path / "net" / "1" / "model.onnx"
    assert "BatchNormalization" not in {node.op_type for node in onnx.load(model).graph.node}
    (got,) = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(
        None, {"x": sample.astype(np.float32)}
    )
    want = made.eval()(torch.from_numpy(sample).float()).detach().numpy()
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())
    assert "BatchNorms" in str(report)
    assert str(report).splitlines()[-1] == f"written to {report.path}"


def test_an_example_names_the_inputs_as_forward_does_and_labels_may_be_a_list(tmp_path: Path) -> None:
    report = export_network(
        Ecg().eval(), inputs=torch.ones(2, 3, 20), repository=str(tmp_path), name="ecg", labels=["a", "b", "c", "d"]
    )
    assert report.inputs == ("ecg=FP32[N:1..,3,20]",)
    assert report.source == "test_notebook.py:Ecg"
    assert len(report.source_sha256) == 64
    assert (tmp_path / "ecg" / "labels.txt").read_text() == "a\nb\nc\nd\n"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "say what goes into the network"),
        ({"inputs": [np.ones((1, 3, 9)), np.ones(1)]}, r"2 arrays for forward\(ecg\); give a dict"),
        ({"inputs": {"ecg": ["a"]}}, "dtype <U1|expected an array of numbers"),
        ({"inputs": {"ecg": [None]}}, "the example is list; expected an array of numbers"),
        ({"inputs": "x=FP32[N,3"}, "expected NAME="),
        ({"inputs": "ecg=FP32[N,3,L]", "samples": ["no.npy"]}, "no sample file 'no.npy'"),
        ({"inputs": "ecg=FP32[N,3,L]", "labels": ["a", ""]}, "the labels: line 2 is empty"),
        ({"inputs": "ecg=FP32[N,3,L]", "labels": ["a", "b"]}, "there are 2 labels, but no output has that many"),
        ({"inputs": "ecg=FP32[N,3,L]", "name": "../x"}, "cannot be a model's name"),
        ({"inputs": "ecg=FP32[N,3,L]", "samples": np.full((1, 3, 9), np.nan)}, "allow-nonfinite"),
        ({"inputs": "ecg=FP32[N,3,L]", "weights_key": "ema"}, "weights_key is about a file of weights: give weights"),
        ({"inputs": "ecg=FP32[N,3,L]", "weights_sha256": "0" * 63}, "expected 64 digits, as sha256sum prints"),
    ],
)
def test_a_mistake_is_an_export_error_and_writes_nothing(tmp_path: Path, options: dict[str, object], said: str) -> None:
    with pytest.raises(ExportError, match=said):
        export_network(Ecg(), **{"repository": tmp_path / "r", "name": "ecg", **options})  # type: ignore[arg-type]
    assert not (tmp_path / "r").exists()


#: Options of the command that a network in memory has no use for.
NOT_KEYWORDS = {"source", "untrained", "arguments", "config", "as_json", "debug", "help"}
#: Options with another name there: the bits are chosen by one keyword, and the network is the first argument.
OTHER_NAMES = {"dtype": "precision", "quantize": "precision"}


def test_every_option_of_the_command_is_a_keyword() -> None:
    options = {str(parameter.name) for parameter in export.params} - NOT_KEYWORDS
    keywords = {*inspect.signature(export_network).parameters} - {"model", "progress"}
    assert {OTHER_NAMES.get(name, name) for name in options} == keywords


def test_weights_may_be_one_of_several_and_must_be_the_named_file(tmp_path: Path) -> None:
    made, other = network(), network()
    with torch.no_grad():
        other[0].bias.add_(1.0)  # type: ignore[operator, union-attr]
    path = tmp_path / "both.pt"
    torch.save({"model": made.state_dict(), "ema": other.state_dict()}, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    usual = {"inputs": "x=FP32[N,3,9]", "name": "net", "repository": tmp_path / "r", "form": "folded"}
    with pytest.raises(ExportError, match="but --weights-sha256 is 0000"):
        export_network(network(), weights=path, weights_key="ema", weights_sha256="0" * 64, **usual)  # type: ignore[arg-type]
    report = export_network(network(), weights=path, weights_key="ema", weights_sha256=digest, **usual)  # type: ignore[arg-type]
    assert report.weights_sha256 == digest
    x = np.ones((1, 3, 9), np.float32)
    (got,) = onnxruntime.InferenceSession(Path(report.path) / "model.onnx").run(None, {"x": x})
    expected = other.eval()(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_samples_with_nan_are_taken_where_that_is_said(tmp_path: Path) -> None:
    sample = np.ones((1, 3, 9), np.float32)
    sample[0, 0, 0] = np.nan
    report = export_network(
        network(), inputs="x=FP32[N,3,9]", samples=sample, allow_nonfinite=True, repository=tmp_path, name="net"
    )
    assert "sample 1" in report.verification.cases


@pytest.mark.parametrize(("model", "said"), [(Ecg, "give a network, not its class"), ("net.onnx", "normfold export")])
def test_what_is_no_network_is_a_type_error(tmp_path: Path, model: object, said: str) -> None:
    with pytest.raises(TypeError, match=said):
        export_network(model, repository=tmp_path, name="net")  # type: ignore[arg-type]


def test_the_name_comes_without_torch() -> None:
    script = "import sys; from normfold import export_network; print({'torch', 'onnx'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout == "set()\n"


def test_without_torch_the_error_says_what_to_install() -> None:
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "from normfold import export_network\n"
        "try: export_network(None, repository='r', name='n')\n"
        "except ImportError as error: print(error)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout == "exporting needs torch, which is not installed: pip install 'normfold[export,cpu]'\n"


def test_an_error_without_a_message_of_its_own_becomes_one_sentence(tmp_path: Path) -> None:
    class Broken(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise KeyError("no such layer\nmore")

    with pytest.raises(ExportError, match=r"at test_notebook.py:\d+ in forward.*KeyError.*no such layer") as caught:
        export_network(Broken(), inputs="x=FP32[N,3]", repository=tmp_path, name="broken")
    assert "\n" not in str(caught.value)
    with pytest.raises(ExportError, match=r"stopped at the step 'prove that", check=lambda e: e.__cause__ is not None):
        _stopping(tmp_path)


def _stopping(folder: Path) -> None:
    def progress(step: str) -> None:
        if step.startswith("prove"):
            raise ZeroDivisionError("by chance")

    network = nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4))
    export_network(network, inputs="x=FP32[N,3,9]", repository=folder, name="net", progress=progress)


@pytest.mark.parametrize(
    ("argument", "given", "said"),
    [
        ("time_at", "L=5", r"time_at='L=5': expected dimension -> size, {'L': 5000}"),
        ("time_at", {"L": "5"}, r"time_at={'L': '5'}: expected dimension -> size"),
        ("version", "x", r"version='x': expected a whole number, or None"),
        ("version", True, r"version=True: expected a whole number"),
        ("opset", "18", r"opset='18': expected a whole number, for example 18"),
        ("opset", 18.0, r"opset=18.0: expected a whole number"),
        ("threads", None, r"threads=None: expected a whole number"),
        ("standardize", {"x": 3}, r"standardize={'x': 3}: expected input -> \(mean, std\), {'x': \(0.5, 2.0\)}"),
        ("standardize", {"x": (1, 2, 3)}, r"expected input -> \(mean, std\)"),
        ("standardize", {"x": ("a", "b")}, r"expected input -> \(mean, std\)"),
        ("standardize", (0.5, 2.0), r"expected input -> \(mean, std\)"),
        ("softmax", 1, r"softmax=1: expected the name of an output, or output -> axis"),
        ("softmax", {"output": "1"}, r"softmax={'output': '1'}: expected the name of an output"),
        ("sigmoid", 1, r"sigmoid=1: expected the name of an output, or a list"),
        ("sigmoid", [1], r"sigmoid=\[1\]: expected the name of an output, or a list"),
        ("labels", 3, r"labels=3: expected the path of a file, or a list of names"),
        ("name", 3, r"name=3: expected a name"),
        ("repository", None, r"repository=None: expected a path"),
        ("weights", 3, r"weights=3: expected the path of a file of weights"),
        ("form", None, r"form=None: expected the name of a form"),
        ("precision", 8, r"precision=8: expected 'fp16', 'bf16', 'int8', or None"),
        ("progress", 3, r"progress=3: expected a function"),
        (
            "inputs",
            torch.zeros(2, 3, 16, dtype=torch.bfloat16),
            r"the example is a tensor of bfloat16 that NumPy cannot",
        ),
        ("inputs", torch.zeros(2, 3, 16, device="meta"), r"the example is a tensor of float32 that NumPy cannot hold"),
        ("inputs", {"x": [[1, 2], [3]]}, r"the example is a list that NumPy cannot hold"),
        ("samples", torch.zeros(2, 3).to_sparse(), r"sample 1 is a tensor of float32 that NumPy cannot hold"),
    ],
)
def test_an_argument_of_another_type_is_answered_with_what_is_expected(
    tmp_path: Path, argument: str, given: object, said: str
) -> None:
    arguments = {"inputs": "x=FP32[N,3,L]", "repository": tmp_path, "name": "net", argument: given}
    with pytest.raises(ExportError, match=said):
        export_network(network(), **arguments)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_numbers_of_numpy_are_whole_numbers_and_a_list_is_a_pair() -> None:
    require_types({"version": np.int64(3), "time_at": {"L": np.int32(5)}, "standardize": {"x": [0.5, np.ones(3)]}})
    require_types({"standardize": {"x": np.ones((2, 3))}, "labels": np.array(["a", "b"]), "softmax": {"y": None}})
