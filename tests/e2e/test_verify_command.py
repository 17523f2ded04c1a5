"""``normfold verify`` of a file against the real server."""

from __future__ import annotations

import socket
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from normfold.cli.export import export
from normfold.cli.verify import verify


@pytest.fixture
def compared():
    return lambda *options: CliRunner().invoke(verify, [str(o) for o in options])


def test_a_file_and_the_model_served_from_it_are_the_same_on_either_side(compared, repository, address):
    file = repository / "m" / "2" / "model.onnx"
    for sides in ((file, f"{address}/m"), (f"grpc://{address}/m/2", file)):
        done = compared(*sides)
        assert done.exit_code == 0, done.output
        assert "the same network, against ONNX reference, float64" in done.output


def test_another_version_is_another_network(compared, repository, address):
    done = compared(repository / "m" / "2", f"{address}/m/1")
    assert done.exit_code == 1
    assert "not the same network" in done.output


def test_what_the_server_refuses_is_one_message_with_the_models_address(compared, repository, address):
    file = repository / "m" / "2" / "model.onnx"
    for side, expected in ((f"{address}/n", "'n'"), (f"{address}/m/7", "7"), (f"{address}/two", "a")):
        done = compared(file, side)
        assert done.exit_code == 1
        assert done.output.startswith(f"Error: {side.replace('/7', '')}: "), done.output
        assert expected in done.output


def test_nobody_there_and_two_servers_are_said_in_a_sentence(compared, repository, address):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{free.getsockname()[1]}"
    done = compared(repository / "m" / "2", f"{nobody}/m")
    assert (done.exit_code, done.output.count("\n")) == (1, 1)
    assert nobody in done.output
    done = compared(repository / "m" / "2", address)
    expected = (
        f"Error: '{address}' does not say which model: a served model is HOST:PORT/MODEL, such as {address}/ecg\n"
    )
    assert (done.exit_code, done.output) == (1, expected)
    done = compared(repository / "m" / "2", f"{address}/m:2")
    assert (done.exit_code, "does not say which model" in done.output) == (1, False)
    done = compared(f"{address}/m", f"{address}/nb")
    assert done.exit_code == 1
    assert "both sides are served models" in done.output


MODULE = """
import torch
from torch import nn

class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(2.0))
    def forward(self, x):
        return {"y": self.factor * x, "z": -x}
"""


def test_a_module_is_compared_with_a_file_and_a_served_model_and_takes_its_inputs_from_the_file(
    compared, repository, address, tmp_path
):
    source, weights = tmp_path / "scale.py", tmp_path / "three.safetensors"
    source.write_text(MODULE)
    save_file({"factor": torch.tensor(3.0)}, weights)
    module, file = f"{source}:Scale", repository / "m" / "1"
    for sides in ((module, file), (file, module), (module, f"{address}/m/1", "--input", "x=FP32[N:1..8,4]")):
        done = compared(*sides)
        assert done.exit_code == 0, done.output
        assert "the same network" in done.output
    forgotten = f"note: no --weights FILE was given for {module}: it ran with the weights that it begins with\n"
    wrong = compared(module, file, "--weights", weights)
    assert (wrong.exit_code, forgotten in wrong.output) == (1, False)
    without = compared(module, repository / "m" / "2")
    assert (without.exit_code, forgotten in without.output) == (1, True)
    assert compared(module, repository / "m" / "2", "--weights", weights).exit_code == 0
    done = compared(module, f"{address}/m/1")
    assert (done.exit_code, "say what goes into the network: --input" in done.output) == (1, True)


BUILT = """
import torch
from torch import nn

class Scale(nn.Module):
    def __init__(self, by):
        super().__init__()
        self.factor, self.by = nn.Parameter(torch.tensor(1.0)), by
    def forward(self, x):
        return {"y": self.by * self.factor * x, "z": -x}
"""


def test_code_is_made_with_the_arguments_and_the_key_of_the_export(compared, repository, tmp_path):
    source, weights = tmp_path / "scale.py", tmp_path / "both.pt"
    source.write_text(BUILT)
    torch.save({"net": {"factor": torch.tensor(1.0)}, "ema": {"factor": torch.tensor(0.5)}}, weights)
    code, version = f"{source}:Scale", repository / "m" / "1"
    (tmp_path / "c.toml").write_text("by = 2.0")
    assert "--arg by=" in compared(code, version).output
    assert compared(code, version, "--config", tmp_path / "c.toml").exit_code == 0
    assert compared(code, version, "--arg", "by=3.0").exit_code == 1
    done = compared(code, version, "--arg", "by=4.0", "--weights", weights, "--weights-key", "ema")
    assert done.exit_code == 0, done.output
    assert "give it with --weights FILE" in compared(code, version, "--arg", "by=4.0", "--weights-key", "ema").output


NETWORK = """
from torch import nn

def net():
    return nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.BatchNorm1d(4), nn.AdaptiveMaxPool1d(1), nn.Flatten()).eval()
"""


def test_what_the_export_put_around_the_network_belongs_to_the_comparison(compared, start, tmp_path):
    """The inputs are standardised far from 0, and the server tells the sizes that were proved."""
    source, weights = tmp_path / "net.py", tmp_path / "net.pt"
    source.write_text(NETWORK)
    torch.manual_seed(0)
    made: dict[str, Any] = {}
    exec(NETWORK, made)
    torch.save(made["net"]().state_dict(), weights)
    code, ends = f"{source}:net", ("--standardize", "input=100,3", "--softmax", "output")
    options = (
        "--weights",
        weights,
        "--input",
        "input=FP32[N,2,L:3..]",
        "--repository",
        tmp_path / "r",
        "--name",
        "net",
    )
    done = CliRunner().invoke(export, [code, *map(str, (*options, *ends))])
    assert done.exit_code == 0, done.output
    version = tmp_path / "r" / "net" / "1"
    for sides in ((code, version), (version, code)):
        done = compared(*sides, "--weights", weights, *ends)
        assert done.exit_code == 0, done.output
    done = compared(code, version, "--weights", weights)
    assert done.exit_code == 1
    flat = " ".join(done.output.split())
    assert "'input' is standardised before the network" in flat
    assert "give --standardize, --softmax, --sigmoid as the export had them" in flat
    with start(tmp_path / "r") as server:
        done = compared(code, f"{server.address}/net", "--weights", weights, *ends)
        assert done.exit_code == 0, done.output
        done = compared(f"{server.address}/net", version, "--softmax", "output")
        assert "is served, give a file or code" in " ".join(done.output.split())
