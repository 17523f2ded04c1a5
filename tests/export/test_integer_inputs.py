"""Scalars, lengths and indices through the whole export, in one network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import torch
from click.testing import CliRunner

from normfold.cli.main import main
from normfold.export.sources.source import load_source

NETS = """
import torch
from torch import nn

class Last(nn.Module):
    '''The GRU's state at each sequence's last step, divided by a temperature.'''
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.conv, self.norm = nn.Embedding(11, 3), nn.Conv1d(3, 8, 3, padding=1), nn.BatchNorm1d(8)
        self.gru, self.out = nn.GRU(8, 6, batch_first=True), nn.Linear(6, 4)
    def forward(self, tokens, lengths, t):
        y, _ = self.gru(self.norm(self.conv(self.embed(tokens).transpose(1, 2)).relu()).transpose(1, 2))
        last = (lengths - 1).view(-1, 1, 1).expand(-1, 1, y.size(2))
        return self.out(y.gather(1, last).squeeze(1)) / (t * t + 1)

def last():
    return Last()
"""
INPUTS = ("--input", "tokens=INT64[N,L]", "--input", "lengths=INT64[N]", "--input", "t=FP32[]")


def test_a_network_of_tokens_lengths_and_a_scalar_is_exported(directory: Path) -> None:
    (directory / "nets.py").write_text(NETS)
    command = ["export", "nets.py:last", *INPUTS, "--repository", "r", "--name", "m", "--form", "folded"]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    assert "tokens=INT64[N:1..,L:1..]:0..10, lengths=INT64[N:1..]:1..L, t=FP32[]" in done.output
    session = onnxruntime.InferenceSession(directory / "r/m/1/model.onnx", providers=["CPUExecutionProvider"])
    given = {"tokens": np.arange(10).reshape(2, 5), "lengths": np.array([5, 1]), "t": np.float32(0.5)}
    (got,) = session.run(None, {k: np.asarray(v) for k, v in given.items()})
    with torch.no_grad():
        want = load_source("nets.py:last").network(*(torch.as_tensor(v) for v in given.values())).numpy()
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)

    np.savez(directory / "beyond.npz", **{**given, "tokens": np.full((2, 5), 11)})
    refused = CliRunner().invoke(main, [*command, "--sample", "beyond.npz"])
    assert refused.exit_code == 1
    assert "sample 'beyond.npz': the network does not run with it at nets.py:13 in forward" in refused.stderr
    assert "index out of range" in refused.stderr
