"""All of ``normfold export``, by its command line, on networks of a few lines."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file

from normfold.cli.main import main

NETS = """
import torch
import torch.nn.functional as F
from torch import nn

class SurnameCNN(nn.Module):
    '''Example 4.22's order: convolution, ReLU, BatchNorm.'''
    def __init__(self, characters=7, classes=3):
        super().__init__()
        self.conv1, self.conv1_bn = nn.Conv1d(characters, 8, 3), nn.BatchNorm1d(8)
        self.conv2, self.conv2_bn = nn.Conv1d(8, 8, 3, bias=False), nn.BatchNorm1d(8)
        self.classifier = nn.Linear(8, classes)
    def forward(self, x):
        x = F.max_pool1d(self.conv1_bn(F.relu(self.conv1(x))), 2)
        return self.classifier(F.relu(self.conv2_bn(self.conv2(x))).amax(-1))

class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv1d(2, 4, 3, padding=1), nn.BatchNorm1d(4)
        self.up1, self.up2 = nn.ConvTranspose1d(4, 4, 2, stride=2), nn.ConvTranspose1d(8, 4, 2, stride=2)
    def forward(self, x):
        x = self.bn(self.conv(x))
        half = F.max_pool1d(x, 2)
        return torch.cat([x, self.up2(torch.cat([half, self.up1(F.max_pool1d(half, 2))], 1))], 1)

class Nested(nn.Module):
    def forward(self, batch, pair):
        return {"masked": batch["x"] * batch["mask"], "sums": (pair[0] + pair[1], pair[0] - pair[1])}

class Two(nn.Module):
    def forward(self, x, mask):
        return x * mask

class Meta(nn.Module):
    def forward(self, x):
        return {"scores": x * 2, "count": 3}

class Red(nn.Module):
    def forward(self, x):
        return {"y" + chr(27) + "[31m": x * 2}

class Twice(nn.Module):
    def forward(self, x):
        return {"a_b": x * 2, "a": {"b": x * 3}}

class Stubborn(SurnameCNN):
    def __init__(self):
        super().__init__()
        self.conv1_bn = nn.BatchNorm1d(8, track_running_stats=False)

class Padded(nn.Module):
    def __init__(self, nested=True):
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 1, enable_nested_tensor=nested)
    def forward(self, x, pad):
        return self.layers(x, src_key_padding_mask=pad)

class Table(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(40, 4)
    def forward(self, x):
        return self.embed(x.abs().long())

class Ids(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.conv = nn.Embedding(11, 4), nn.Conv1d(4, 2, 3)
    def forward(self, tokens):
        return {'scores': self.conv(self.embed(tokens).transpose(1, 2)).mean(-1)}
"""


def trained(directory: Path) -> torch.nn.Module:
    """Write the networks and weights with lively statistics; return the network that holds them."""
    (directory / "mynets.py").write_text(NETS)
    space: dict[str, type[torch.nn.Module]] = {}
    exec(compile(NETS, "mynets", "exec"), space)  # the test's own text
    torch.manual_seed(4)
    network = space["SurnameCNN"]().eval()
    for name, value in network.state_dict().items():
        if "bn" in name and value.is_floating_point():
            positive = "var" in name or "weight" in name
            value.copy_(torch.rand_like(value) + 0.5 if positive else torch.randn_like(value))
    save_file(network.state_dict(), directory / "weights.safetensors")
    return network


#: Pads to a multiple of 4 in Python: torch.export adds a guard and writes the graph for lengths that need no padding.
PADS = """
import torch
import torch.nn.functional as F
from torch import nn

class Pads(nn.Module):
    def forward(self, x):
        rest = x.shape[2] % 4
        if rest:
            x = F.pad(x, (0, 4 - rest))
        return x.reshape(x.shape[0], 3, x.shape[2] // 4, 4).sum(-1)
"""


@pytest.fixture
def network(directory: Path) -> torch.nn.Module:
    return trained(directory)


def normfold(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["export", *arguments])


REPOSITORY = ("--repository", "repository", "--name", "surnames")
USUAL = ("mynets.py:SurnameCNN", "--weights", "weights.safetensors", "--input", "x=FP32[N,7,L]", *REPOSITORY)


def test_an_export_writes_a_folded_graph_that_agrees_with_pytorch_and_says_what_it_did(
    directory: Path, network: torch.nn.Module
) -> None:
    (directory / "labels.txt").write_text("Irish\nCzech\nGreek\n")
    np.save(directory / "one.npy", np.random.default_rng(0).standard_normal((7, 17)))
    result = normfold(*USUAL, "--labels", "labels.txt", "--sample", "one.npy")
    assert result.exit_code == 0, result.output
    for line in (r"BatchNorms +2 +0", r"conv1_bn: .*conv2", r"conv2_bn: .*conv2", r"run time .* ms", "float64"):
        assert re.search(line, result.output), result.output
    assert "next: normfold serve --repository repository" in result.output

    version = directory / "repository" / "surnames" / "1"
    model = onnx.load(version / "model.onnx")
    assert "BatchNormalization" not in {n.op_type for n in model.graph.node}
    assert model.producer_name == "normfold"
    assert not any(n.metadata_props or n.doc_string for n in model.graph.node)
    assert (version.parent / "labels.txt").read_text() == "Irish\nCzech\nGreek\n"
    assert 'label_filename: "labels.txt"' in (version.parent / "config.pbtxt").read_text()
    session = onnxruntime.InferenceSession(version / "model.onnx", providers=["CPUExecutionProvider"])
    exact = network.double()
    for shape in ((1, 7, 8), (3, 7, 17), (2, 7, 200)):
        x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
        (got,) = session.run(None, {"x": x})
        want = exact(torch.from_numpy(x).double()).detach().numpy()
        # 8 sums of at most 24 products in float32, each off by at most 2**-24 of its largest term
        np.testing.assert_allclose(got, want, rtol=0, atol=200 * 2**-24 * np.abs(want).max())


def test_the_report_as_json_holds_the_proof_and_every_fold(network: torch.nn.Module) -> None:
    result = CliRunner().invoke(main, ["export", *USUAL, "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["verification"]["passed"] is True
    assert report["verification"]["reference"] == "PyTorch, float64"
    assert [f["name"] for f in report["folding"]["folds"]] == ["conv1_bn", "conv2_bn"]
    assert report["inputs"] == ["x=FP32[N:1..,7,L:8..]"]
    assert {"N=1 L=8", "N=5 L=65"} <= set(report["verification"]["cases"])


def test_where_the_unfolded_form_is_published_file_report_and_table_say_so(
    directory: Path, network: torch.nn.Module, cache: Path
) -> None:
    result = normfold(*USUAL, "--form", "unfolded")
    assert result.exit_code == 0, result.output
    assert re.search(r"before: published +folded", result.output)
    assert re.search(r"BatchNorms +2 +0", result.output)
    assert "the unfolded form keeps 2 BatchNorms, as it was asked for; --form folded publishes" in result.output
    version = directory / "repository" / "surnames" / "1"
    model = onnx.load(version / "model.onnx")
    assert [n.op_type for n in model.graph.node].count("BatchNormalization") == 2
    metadata = {p.key: p.value for p in model.metadata_props}
    assert metadata["normfold.batchnorms"] == "2 before, 2 in the unfolded form"
    assert metadata["normfold.form"] == "unfolded"
    assert json.loads(metadata["normfold.proved"])["inputs"] == {"x": ["N", 7, "L"]}
    report = json.loads((version / "export.json").read_text())
    assert (report["published"]["form"], report["published"]["batchnorms"]) == ("unfolded", 2)
    assert report["published"]["chosen_by"] == "request"
    said = " ".join(result.output.split())
    assert "the unfolded form is published, as it was asked for; run times at x[" in said
    assert "--time-at L=SIZE" in said
    assert "measured now, on " in said
    assert report["bytes_after"] == (version / "model.onnx").stat().st_size


def test_a_second_export_is_the_next_version_with_the_same_bytes(directory: Path, network: torch.nn.Module) -> None:
    for _ in range(2):
        result = normfold(*USUAL)
        assert result.exit_code == 0
        assert "requests  N from 1 to 64 (max_batch_size in config.pbtxt); L from 8 up" in result.output
    first, second = (directory / "repository" / "surnames" / v / "model.onnx" for v in ("1", "2"))
    assert first.read_bytes() == second.read_bytes()


def test_indices_into_an_embedding_are_drawn_within_it(network: torch.nn.Module) -> None:
    result = normfold("mynets.py:Ids", "--input", "tokens=INT64[N,L]", "--untrained", *REPOSITORY)
    assert result.exit_code == 0, result.output
    assert "tokens=INT64[N:1..,L:3..]:0..10" in result.output
    assert "note: --untrained: the network was exported with the weights that it begins with" in result.output


def test_a_float64_sample_shows_the_shapes_of_a_float32_network(directory: Path, network: torch.nn.Module) -> None:
    np.save(directory / "one.npy", np.random.default_rng(0).standard_normal((1, 7, 17)))
    result = normfold("mynets.py:SurnameCNN", "--sample", "one.npy", "--untrained", *REPOSITORY)
    assert result.exit_code == 0, result.output
    assert "x=FP32[N:1..,7,17]" in result.output
    note = "the length of 'x' is 17, that of sample 'one.npy', and no other is served; to keep it free: --input"
    assert f"{note} 'x=FP32[N,7,L]'" in " ".join(result.output.split())


def test_samples_in_other_units_than_the_training_data_are_noted(directory: Path, network: torch.nn.Module) -> None:
    network.train()
    for _ in range(40):
        network(torch.randn(64, 7, 32))
    save_file(network.eval().state_dict(), "trained.safetensors")
    np.save("right.npy", np.random.default_rng(0).standard_normal((4, 7, 32)).astype(np.float32))
    np.save("wrong.npy", 1e4 * np.load("right.npy"))
    options = ("mynets.py:SurnameCNN", "--weights", "trained.safetensors", "--input", "x=FP32[N,7,L:8..]", *REPOSITORY)
    for sample, noted in (("right.npy", False), ("wrong.npy", True)):
        result = normfold(*options, "--sample", sample)
        assert result.exit_code == 0, result.output
        assert ("are the units and the scaling those of the training data?" in result.output) is noted


def test_a_model_that_a_stopped_export_set_aside_is_put_back_and_the_report_says_so(
    directory: Path, network: torch.nn.Module
) -> None:
    (directory / "repository" / "surnames" / "1").mkdir(parents=True)
    aside = f".tmp-{'0' * 32}-surnames-old"
    (directory / "repository" / "surnames").rename(directory / "repository" / aside)
    result = normfold(*USUAL, "--form", "folded", "--version", "1", "--overwrite")
    assert result.exit_code == 0, result.output
    assert (
        "'repository/surnames' was put back: an earlier export was stopped while it replaced it, and had left it "
        f"as '{aside}'" in " ".join(result.output.split())
    )


def replaced(option: str, value: str) -> tuple[str, ...]:
    """Return the usual command with another value for one option ("" is the source)."""
    usual = list(USUAL)
    usual[usual.index(option) + 1 if option else 0] = value
    return tuple(usual)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (replaced("", "nets.py:SurnameCNN"), "no file 'nets.py'"),
        (replaced("", "mynets.py:SurnameCNNs"), "did you mean 'SurnameCNN'"),
        (replaced("--weights", "weight.safetensors"), "did you mean 'weights.safetensors'"),
        (replaced("--weights", "other.safetensors"), "'conv1.weight' is not in the file; the file has 'conv_1.weight'"),
        (replaced("--weights", "whole.pt"), "can only be opened by running code"),
        (replaced("--input", "x=FP32[N,8,L]"), "to have 7 channels, but got 8 channels"),
        (replaced("--input", "x=FP32[N,7,L:3..]"), "does not run at L = 3"),
        (
            replaced("--input", "x=FP64[N,7,L]"),
            "computes in FP32 and does not run with it: write --input 'x=FP32[N,7,L]'",
        ),
        (replaced("--input", "x=FP16[N,7,L]"), "--input 'x=FP32[N,7,L]', and --dtype fp16 for the arithmetic inside"),
        (replaced("--input", "x=FP32[8,17]"), "a batch is a first dimension with a name, x=FP32[N,…]"),
        (replaced("--input", "x=FP32[N,7"), "expected NAME=DTYPE[dims]"),
        (replaced("--name", "../surnames"), "cannot be a model's name"),
        ((*USUAL, "--arg", "characters=9"), "conv1.weight: the file has [8, 7, 3], the network [8, 9, 3]"),
        ((*USUAL, "--labels", "labels.txt"), "there are 2 labels, but no output has that many classes"),
        ((*USUAL, "--sample", "sample.npy"), "dimension 1 is 5, expected 7"),
        ((*USUAL, "--opset", "9"), "opset 9 cannot be written"),
        (
            ("mynets.py:Two", "--input", "x=FP32[N,7,L]", *REPOSITORY),
            "forward(x, mask) also needs mask: give an --input",
        ),
        (("mynets.py:Meta", "--input", "x=FP32[N,7,L]", *REPOSITORY), "returns a value of type int in 'count'"),
        (("mynets.py:Red", "--input", "x=FP32[N,7,L]", *REPOSITORY), r"returns 'y\x1b[31m', which has characters"),
        (("mynets.py:Twice", "--input", "x=FP32[N,7,L]", *REPOSITORY), "would both be called 'a_b'"),
        ((*USUAL, "--labels", "red.txt"), r"line 1 is not printable ('a\x1b[31m')"),
        (("mynets.py:Stubborn", "--input", "x=FP32[N,7,L]", *REPOSITORY), "keeps no running statistics"),
        (
            ("mynets.py:SurnameCNN", "--input", "x=FP32[N,7,L]", *REPOSITORY),
            "is a class, so its weights are random numbers until a file of weights is loaded: give it with --weights",
        ),
        (
            ("mynets.py:Table", "--untrained", "--input", "x=FP32[N,9]", *REPOSITORY),
            "the network does not run with inputs times 100 at mynets.py:",
        ),
        (
            ("mynets.py:Padded", "--untrained", "--input", "x=FP32[N,9,4]", "--input", "pad=BOOL[N,9]", *REPOSITORY),
            "writes zeros in the padding, unless it is built with enable_nested_tensor=False",
        ),
        ((*USUAL, "--weights-key", "ema"), "hold no network called 'ema' (--weights-key)"),
        (("mynets.py:SurnameCNN", *REPOSITORY), "say what goes into the network"),
    ],
)
def test_a_persons_mistake_gets_one_message_exit_code_1_and_nothing_on_disk(
    directory: Path, network: torch.nn.Module, arguments: tuple[str, ...], expected: str
) -> None:
    state = {k.replace("conv1.", "conv_1."): v for k, v in network.state_dict().items()}
    save_file(state, directory / "other.safetensors")
    torch.save(torch.nn.Sequential(torch.nn.ReLU()), directory / "whole.pt")
    (directory / "labels.txt").write_text("a\nb\n")
    (directory / "red.txt").write_text("a\x1b[31m\nb\nc\n")
    np.save(directory / "sample.npy", np.zeros((1, 5, 9), np.float32))
    result = normfold(*arguments)
    assert result.exit_code == 1, result.output
    assert expected in result.stderr
    assert "Traceback" not in result.output
    assert "\x1b" not in result.output
    assert not (directory / "repository").exists()


@pytest.mark.parametrize(
    ("name", "content", "options", "expected"),
    [
        ("net.toml", "characters = 9\n", (), "the file has [8, 7, 3], the network [8, 9, 3]"),
        ("net.json", '{"characters": 9}', (), "the file has [8, 7, 3], the network [8, 9, 3]"),
        ("net.toml", "characters = 7\n", ("--arg", "characters=5"), "the file has [8, 7, 3], the network [8, 5, 3]"),
        ("net.toml", "characters : 9\n", (), "--config net.toml: Expected '='"),
        ("net.json", "[9]", (), "--config net.json: expected a table of arguments, not a list"),
        ("net.toml", "letters = 9\n", (), "letters"),
    ],
)
def test_the_networks_arguments_come_from_a_file_and_the_command_line_goes_first(
    directory: Path, network: torch.nn.Module, name: str, content: str, options: tuple[str, ...], expected: str
) -> None:
    (directory / name).write_text(content)
    result = normfold(*USUAL, "--config", name, *options)
    assert (result.exit_code, expected in result.stderr) == (1, True), result.stderr


def test_a_wrong_option_is_exit_code_2(directory: Path) -> None:
    assert normfold(*USUAL, "--arg", "channels").exit_code == 2
    assert normfold("mynets.py:SurnameCNN").exit_code == 2
    assert "give only one of --weights and --untrained" in normfold(*USUAL, "--untrained").stderr
    assert "give it with --weights FILE" in normfold(*REPOSITORY, "net.onnx", "--weights-key", "ema").stderr


def test_a_graph_that_is_not_the_network_is_not_published(
    directory: Path, network: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    from normfold.export import pipeline

    honest = pipeline.fold

    def wrong(model, **options):  # type: ignore[no-untyped-def]
        report = honest(model, **options)
        bias = model.graph.initializers["classifier.bias"]
        from normfold.export.graphs.unrounded import holding

        bias.const_value = holding(bias.const_value.numpy() + np.float32(1e-4), bias.const_value, bias.name)
        return report

    monkeypatch.setattr(pipeline, "fold", wrong)
    result = normfold(*USUAL)
    assert result.exit_code == 1
    assert "nothing was published" in result.stderr
    assert "output 'output'" in result.stderr
    assert not (directory / "repository").exists()


def test_a_fold_that_goes_wrong_in_one_layer_is_not_published_and_that_layer_is_named(
    directory: Path, network: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    from normfold.export import pipeline

    honest = pipeline.fold

    def wrong(model, **options):  # type: ignore[no-untyped-def]
        report = honest(model, **options)
        from normfold.export.graphs.unrounded import holding

        value = [n for n in model.graph if n.op_type == "Conv"][1].inputs[1]
        weight = value.const_value.numpy().copy()
        weight[2, 1, 0] += 0.1
        value.const_value = holding(weight, value.const_value, value.name)
        return report

    monkeypatch.setattr(pipeline, "fold", wrong)
    result = normfold(*USUAL)
    assert result.exit_code == 1
    assert "The two graphs part ways first at 'conv2' (Conv, value '" in result.stderr
    assert "of it is not the same up to scale and shift" in result.stderr
    assert not (directory / "repository").exists()


def test_a_u_net_is_exported_for_the_lengths_it_takes_and_the_person_learns_them(network: torch.nn.Module) -> None:
    result = normfold("mynets.py:UNet", "--input", "x=FP32[N,2,L]", "--untrained", *REPOSITORY)
    assert result.exit_code == 0, result.output
    assert "note: the network was seen to take L in steps of 4: 4, 8, 12, …; it may take other sizes" in result.output
    assert "In --input these steps are L:4..:4" in result.output
    assert "x=FP32[N:1..,2,L:4..:4]" in result.output
    again = normfold("mynets.py:UNet", "--input", "x=FP32[N,2,L:4..64:4]", "--untrained", *REPOSITORY)
    assert again.exit_code == 0, again.output
    assert "take L in steps" not in again.output
    refused = normfold("mynets.py:UNet", "--input", "x=FP32[N,2,L:4..66]", "--untrained", *REPOSITORY)
    assert refused.exit_code == 1
    assert refused.stderr.rstrip().endswith("Declare what it takes: L:4..64:4: 4, 8, 12, …")


def test_inputs_that_are_dicts_and_tuples_are_named_by_their_entries(directory: Path, network: torch.nn.Module) -> None:
    names = ("batch.x", "batch.mask", "pair.0", "pair.1")
    inputs = [part for name in names for part in ("--input", f"{name}=FP32[N,3,L]")]
    result = normfold("mynets.py:Nested", *inputs, *REPOSITORY)
    assert result.exit_code == 0, result.output
    session = onnxruntime.InferenceSession(
        directory / "repository" / "surnames" / "1" / "model.onnx", providers=["CPUExecutionProvider"]
    )
    given = {name: np.random.default_rng(i).random((2, 3, 7), np.float32) for i, name in enumerate(names)}
    masked, total, difference = session.run(["masked", "sums_0", "sums_1"], given)
    np.testing.assert_array_equal(masked, given["batch.x"] * given["batch.mask"])
    np.testing.assert_array_equal(total, given["pair.0"] + given["pair.1"])
    np.testing.assert_array_equal(difference, given["pair.0"] - given["pair.1"])
    for wrong, said in (
        (inputs[:4], "also needs pair: give an --input for each"),
        ([*inputs, "--input", "pair=FP32[N]"], "input 'pair' is described both as a tensor and as a dict or tuple"),
        (["--input", "a=FP32[N]"], "the entries of a dict or tuple are batch.key or batch.0"),
    ):
        refused = normfold("mynets.py:Nested", *wrong, *REPOSITORY)
        assert refused.exit_code == 1
        assert said in refused.stderr, refused.stderr


def test_labels_that_no_output_has_are_refused_before_the_network_is_captured(
    directory: Path, network: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*arguments: object) -> None:
        raise AssertionError("the long steps began")

    monkeypatch.setattr("normfold.export.sources.module_origin.capture", never)
    (directory / "labels.txt").write_text("Irish\nCzech\n")
    result = normfold(*USUAL, "--labels", "labels.txt")
    assert result.exit_code == 1
    assert "there are 2 labels, but no output has that many classes: 'output' [2, 3]" in result.stderr


def test_a_place_that_cannot_take_the_version_is_refused_before_the_network_is_captured(
    directory: Path, network: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*arguments: object) -> None:
        raise AssertionError("the long steps began")

    monkeypatch.setattr("normfold.export.sources.module_origin.capture", never)
    (directory / "repository" / "surnames" / "1").mkdir(parents=True)
    config = 'max_batch_size: 8 input { name: "x" data_type: TYPE_FP32 dims: [2, -1] }'
    (directory / "repository" / "surnames" / "config.pbtxt").write_text(config)
    result = normfold(*USUAL)
    assert result.exit_code == 1
    assert "  input 'x': FP32[-1,2,-1] there, FP32[-1,7,-1] in this export\n" in result.stderr
    assert "'repository/surnames/1' exists" in normfold(*USUAL, "--version", "1").stderr


def test_labels_change_with_a_second_version_and_a_typed_batch_is_not_lost_silently(
    directory: Path, network: torch.nn.Module
) -> None:
    model = directory / "repository" / "surnames"
    (directory / "labels.txt").write_text("Irish\nCzech\nGreek\n")
    assert normfold(*USUAL).exit_code == 0
    typed = replaced("--input", "x=FP32[N:1..256,7,L]")
    result = normfold(*typed, "--labels", "labels.txt")
    assert result.exit_code == 0, result.output
    assert (model / "labels.txt").read_text() == "Irish\nCzech\nGreek\n"
    assert 'label_filename: "labels.txt"' in (model / "config.pbtxt").read_text()
    assert "labels.txt' now holds these 3 labels, for every version of 'surnames'" in result.output
    assert "keeps max_batch_size 64" in result.output
    report = json.loads((model / "2" / "export.json").read_text())
    assert report["max_batch_size"] == 64
    assert any("keeps max_batch_size 64" in note for note in report["notes"])


@pytest.mark.parametrize("step", ["load the network", "capture the graph", "time it", "publish"])
def test_control_c_at_a_named_step_leaves_nothing_and_says_so(
    directory: Path, network: torch.nn.Module, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    from normfold.export import pipeline
    from normfold.export.request import ExportRequest

    honest = pipeline.export_model

    def pressed(request: ExportRequest, progress: pipeline.Progress) -> object:
        def noted(name: str) -> None:
            progress(name)
            if name == step:
                signal.raise_signal(signal.SIGINT)

        return honest(request, noted)

    monkeypatch.setattr(pipeline, "export_model", pressed)
    result = normfold(*USUAL)
    assert (result.exit_code, result.stderr) == (130, "stopped; nothing was written\n")
    assert not (directory / "repository").exists()


def test_a_network_that_goes_another_way_at_other_lengths_is_told_which_to_declare(
    directory: Path,
) -> None:
    (directory / "mynets.py").write_text(PADS)
    result = normfold("mynets.py:Pads", "--input", "x=FP32[N,3,L]", *REPOSITORY)
    assert result.exit_code == 1
    assert "only while (L % 4) == 0: at L = 33 the network takes another path than the graph" in result.stderr
    assert "declare sizes where that holds in --input, in steps: L:4..:4" in result.stderr
    assert result.stderr.count("\n") == 1, "onnxruntime's own log must not reach the terminal"
    result = normfold("mynets.py:Pads", "--input", "x=FP32[N,3,L:4..:4]", *REPOSITORY)  # the advice is followed
    assert result.exit_code == 0, result.stderr


def test_a_capture_that_is_another_network_is_refused_though_the_fold_is_true_to_it(
    directory: Path, network: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    from normfold.export.sources import module_origin

    honest = module_origin.capture

    def wrong(*arguments: object):  # type: ignore[no-untyped-def]
        model = honest(*arguments)  # type: ignore[arg-type]
        from normfold.export.graphs.unrounded import holding

        weight = model.graph.initializers["conv2.weight"]
        weight.const_value = holding(weight.const_value.numpy() * np.float32(1.01), weight.const_value, weight.name)
        return model

    monkeypatch.setattr(module_origin, "capture", wrong)
    result = normfold(*USUAL)
    assert result.exit_code == 1
    assert "the graph that was captured is not the network" in result.stderr
    assert not (directory / "repository").exists()
