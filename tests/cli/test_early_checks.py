"""A wrong path, name or number is reported before PyTorch and the graph tools are imported, which takes seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from normfold.cli.main import main
from normfold.serving.client.client import Client

#: Runs commands, [arguments, …] as JSON, where none of the heavy packages can be imported.
_PROGRAM = """
import json, sys
sys.modules.update(dict.fromkeys(["torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime"]))
from click.testing import CliRunner
from normfold.cli.main import main
for arguments in json.loads(sys.argv[1]):
    done = CliRunner().invoke(main, arguments)
    print(json.dumps([done.exit_code, done.stderr]))
"""
_EXPORT = ("export", "nets.py:Net", "--input", "x=FP32[N,3]", "--repository", "repository", "--name", "m")
CASES = {
    ("export", "net.py:Net", *_EXPORT[2:]): "did you mean 'nets.py'?",
    ("export", "nope.onnx", *_EXPORT[4:]): "no file 'nope.onnx'",
    (*_EXPORT, "--weights", "nope.pt"): "no file of weights 'nope.pt'",
    (*_EXPORT, "--untrained", "--labels", "nope.txt"): "no file of labels 'nope.txt'",
    (*_EXPORT, "--untrained", "--sample", "nope.npy"): "no sample file 'nope.npy'",
    (*_EXPORT, "--untrained", "--test-sample", "nope.npy"): "no sample file 'nope.npy'",
    (*_EXPORT[:-1], "a/b"): "cannot be a model's name",
    (*_EXPORT, "--untrained", "--opset", "99"): "opset 99 cannot be written; expected 18 to 28",
    (*_EXPORT, "--untrained", "--form", "nope"): "there is no form 'nope'",
    (*_EXPORT, "--untrained", "--threads", "0"): "--threads 0: the forms are timed on this machine",
    ("fold", "net.onnx", "out.onnx", "--form", "nope"): "there is no form 'nope'",
    ("fold", "net.onnx", "out.onnx", "--threads", "0"): "--threads 0: the forms are timed on this machine",
    ("fold", "nope.onnx", "out.onnx"): "no file 'nope.onnx'",
    ("fold", "net.onnx", "there.onnx"): "'there.onnx' exists",
    ("fold", "net.onnx", "nope/out.onnx"): "there is no directory 'nope'",
    ("fold", "net.onnx", "out.onnx", "--sample", "nope.npy"): "no sample file 'nope.npy'",
    ("fold", "net.onnx", "out.onnx", "--report", "json"): "'out.json' exists",
    ("verify", "net.onnx", "nope.onnx"): "there is no file or directory 'nope.onnx'",
    ("verify", "nope.py:Net", "net.onnx"): "no file 'nope.py'",
    ("verify", "nets.py:Net", "net.onnx", "--weights", "nope.pt"): "no file of weights 'nope.pt'",
    ("verify", "127.0.0.1:1/m", "127.0.0.1:1/n"): "both sides are served models",
    ("verify", "net.onnx", "net.onnx", "--sample", "nope.npy"): "no sample file 'nope.npy'",
}


def test_an_input_that_cannot_be_read_is_told_before_a_server_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Client, "model_metadata", lambda *given: pytest.fail("the server was asked"))
    done = CliRunner().invoke(main, ["infer", "m", "--input", "x=@nope.npy"])
    assert (done.exit_code, "nope.npy cannot be read: No such file" in done.stderr) == (2, True), done.output


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], list[object]]:
    """What each command says, with its exit code."""
    folder = tmp_path_factory.mktemp("early")
    for name in ("nets.py", "net.onnx", "there.onnx", "out.json"):
        Path(folder / name).touch()
    command = [sys.executable, "-c", _PROGRAM, json.dumps([*CASES])]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, check=True, timeout=60)
    return dict(zip(CASES, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("arguments", CASES, ids=" ".join)
def test_a_mistake_is_told_before_anything_heavy_is_imported(
    told: dict[tuple[str, ...], list[object]], arguments: tuple[str, ...]
) -> None:
    code, said = told[arguments]
    assert (code, CASES[arguments] in str(said)) == (1, True), said
