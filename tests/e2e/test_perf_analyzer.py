"""Triton's perf_analyzer, unchanged, against the real server."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / ".venv-perf"

pytestmark = [
    pytest.mark.perf_analyzer,
    pytest.mark.skipif(not (FOLDER / "perf_analyzer").exists(), reason="no perf_analyzer here: make perf-analyzer"),
]


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        ([], 1),
        (["--streaming", "-a"], 1),
        (["-b", "4"], 4),
        (["--shared-memory", "system"], 1),
        (["--shared-memory", "system", "-b", "4"], 4),
    ],
    ids=["unary", "streaming", "batch 4", "shared memory", "shared memory, batch 4"],
)
def test_it_measures_and_reads_our_statistics(address, options, rows):
    command = [str(FOLDER / "perf_analyzer"), "-m", "m", "-i", "grpc", "-u", address, "--concurrency-range", "2:2"]
    # One short window: this test is about the protocol, not about performance.
    window = ["--measurement-interval", "300", "--max-trials", "9", "--stability-percentage", "999"]
    environment = {**os.environ, "LD_LIBRARY_PATH": str(FOLDER)}
    done = subprocess.run(
        [*command, *window, *options], capture_output=True, text=True, timeout=120, env=environment, check=False
    )
    assert "Throughput:" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 0, done.stdout + done.stderr
    server = done.stdout[done.stdout.index("Server:") :]
    inferences, requests = (int(re.search(f"{key} count: (\\d+)", server)[1]) for key in ("Inference", "request"))
    assert inferences == rows * requests > 0
