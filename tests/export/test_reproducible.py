"""The same inputs give the same bytes for every directory, hash seed, time zone, locale and number of threads."""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

NETS = """
import torch.nn.functional as F
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv1d(3, 8, 3, padding=1), nn.BatchNorm1d(8)
        self.conv2, self.bn2 = nn.Conv1d(8, 8, 3), nn.BatchNorm1d(8)

    def forward(self, x):
        return self.bn2(F.relu(self.conv2(F.max_pool1d(self.bn1(F.relu(self.conv1(x))), 2)))).mean(-1)
"""


def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    source: dict[str, type[nn.Module]] = {}
    exec(compile(NETS, "secretnets", "exec"), source)  # the test's own text
    return dict(source["Net"]().state_dict())


def exporting(folder: Path, state: dict[str, torch.Tensor], *options: str, **environment: str) -> subprocess.Popen[str]:
    """Start an export from ``folder`` in a process of its own."""
    folder.mkdir(parents=True)
    (folder / "secretnets.py").write_text(NETS)
    save_file(state, folder / "weights.safetensors")
    command = [sys.executable, "-m", "normfold", "export", "secretnets.py:Net", "--weights", "weights.safetensors"]
    command += ["--input", "x=FP32[N,3,L]", "--repository", "repository", "--name", "net", *options]
    return subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def exported(process: subprocess.Popen[str], folder: Path) -> Path:
    """Return the version's directory after the process has ended."""
    with process:
        _, errors = process.communicate(timeout=280)
    assert process.returncode == 0, errors
    return folder / "repository" / "net" / "1"


@pytest.mark.timeout(600)
def test_two_exports_are_byte_identical_and_leak_nothing_of_where_they_were_made(tmp_path: Path) -> None:
    state = weights()
    here, there = tmp_path / "here", tmp_path / "a longer way" / "down"
    cache = str(tmp_path / "cache")
    first = exporting(here, state, PYTHONHASHSEED="1", TZ="UTC", OMP_NUM_THREADS="1", NORMFOLD_CACHE_DIR=cache)
    second = exporting(
        there,
        state,
        PYTHONHASHSEED="77",
        TZ="Asia/Tokyo",
        LC_ALL="C",
        OMP_NUM_THREADS="2",
        NORMFOLD_CACHE_DIR=cache,
    )
    one, two = exported(first, here), exported(second, there)
    for name in ("model.onnx", "golden.json"):
        contents = [(version / name).read_bytes() for version in (one, two)]
        assert contents[0] == contents[1], f"{name} differs"
    content = (one / "model.onnx").read_bytes()
    for leak in (str(tmp_path), "site-packages", 'File "', socket.gethostname(), f"/{getpass.getuser()}/"):
        assert leak.encode() not in content
    assert len(content) < sum(v.numel() for v in state.values()) * 4 + 5000
    report = json.loads((one / "export.json").read_text())
    assert report["sha256"] == hashlib.sha256(content).hexdigest()
    assert str(tmp_path) not in (one / "export.json").read_text() + (one / "report.html").read_text()
    reports = [json.loads((version / "export.json").read_text()) for version in (one, two)]
    remembered = [r["timing"].pop("remembered") for r in reports]
    assert reports[0] == reports[1], "figures and choice are those that were measured first"
    assert sorted(remembered) == [False, True]


@pytest.mark.timeout(600)
def test_a_form_that_is_named_has_the_same_bytes_where_nothing_is_remembered(tmp_path: Path) -> None:
    state = weights()
    folders = [tmp_path / name for name in ("one", "two")]
    begun = [
        exporting(folder, state, "--form", "folded", PYTHONHASHSEED=str(seed), NORMFOLD_CACHE_DIR=str(folder / "cache"))
        for seed, folder in enumerate(folders)
    ]
    versions = [exported(process, folder) for process, folder in zip(begun, folders, strict=True)]
    assert len({(version / "model.onnx").read_bytes() for version in versions}) == 1
    assert not any(json.loads((v / "export.json").read_text())["timing"]["remembered"] for v in versions)
