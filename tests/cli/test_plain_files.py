"""A named pipe in the place of a file is refused at once: nobody may ever write into it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from click import UsageError
from click.testing import CliRunner

from normfold.cli.infer import _read
from normfold.cli.main import main

NETWORK = """
import torch


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)

    def forward(self, x):
        return self.layer(x)
"""


def command(folder: Path, *arguments: str) -> str:
    """What a command says that must fail."""
    (folder / "plain.py").write_text(NETWORK)
    np.save(folder / "x.npy", np.zeros((1, 3), np.float32))
    done = CliRunner().invoke(main, [one.replace("FOLDER", str(folder)) for one in arguments])
    assert done.exit_code in (1, 2), done.output
    assert "Traceback" not in done.output
    return done.output


TO = ("--repository", "FOLDER/r", "--name", "m")
USUAL = ("export", "FOLDER/plain.py:Net", "--input", "x=FP32[N,3]", *TO)


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("w.safetensors", (*USUAL, "--weights", "FOLDER/w.safetensors"), "cannot be read: it is not a plain file"),
        ("w.pt", (*USUAL, "--weights", "FOLDER/w.pt"), "cannot be read: it is not a plain file"),
        ("pipe.py", ("export", "FOLDER/pipe.py:Net", "--input", "x=FP32[N,3]", *TO), "no file"),
        ("pipe.py", ("export", "FOLDER/pipe.py", "--input", "x=FP32[N,3]", *TO), "does not name a network"),
        ("pipe.onnx", ("export", "FOLDER/pipe.onnx", *TO), "no file"),
        ("pipe.pt2", ("export", "FOLDER/pipe.pt2", *TO), "no file"),
        ("pipe.onnx", ("fold", "FOLDER/pipe.onnx", "FOLDER/out.onnx"), "no file"),
        ("s.npy", (*USUAL, "--untrained", "--sample", "FOLDER/s.npy"), "no sample file"),
        ("l.txt", (*USUAL, "--untrained", "--labels", "FOLDER/l.txt"), "it is not a plain file"),
        ("c.toml", (*USUAL, "--untrained", "--config", "FOLDER/c.toml"), "it is not a plain file"),
        ("m.npy", (*USUAL, "--untrained", "--standardize", "x=FOLDER/m.npy,1"), "it is not a plain file"),
        ("pipe.onnx", ("verify", "FOLDER/pipe.onnx", "FOLDER/pipe.onnx"), "no file"),
    ],
)
def test_a_pipe_is_no_file(tmp_path, name, arguments, words):
    os.mkfifo(tmp_path / name)
    assert words in command(tmp_path, *arguments)


@pytest.mark.parametrize("suffix", [".npy", ".json", ".npz"])
def test_a_pipe_is_no_input(tmp_path, suffix):
    os.mkfifo(tmp_path / f"x{suffix}")
    with pytest.raises(UsageError, match="cannot be read: it is not a plain file"):
        _read("x", f"@{tmp_path / f'x{suffix}'}")
