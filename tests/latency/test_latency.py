"""The harness, with the real server and the real networks; no test depends on the speed of the machine."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys

import numpy as np
import pytest

from . import networks
from .__main__ import check
from .harness import SessionCalls, answers, measure, served_calls


@pytest.fixture(scope="module")
def server(trained):
    with networks.served(trained) as (address, pid):
        yield address, pid


def measured(measure_for):
    """Measure for 0.2 s; on a machine so busy that nothing is answered in this time, for longer."""
    for seconds in (0.2, 2.0, 20.0):
        found = measure_for(seconds)
        if found.answered:
            break
    return found


@pytest.mark.parametrize("model", networks.MODELS)
@pytest.mark.parametrize(("batch", "in_flight"), [(1, 1), (1, 16), (32, 4)])
def test_served_answers_are_right_and_figures_consistent(trained, server, model, batch, in_flight):
    address, pid = server
    x = networks.inputs(model, batch)
    assert len(x) == batch
    alone = SessionCalls(trained / model / "1" / "model.onnx", x)
    found = asyncio.run(answers(address, model, x, in_flight))
    assert len(found) == in_flight
    check(model, found, alone.answer)
    here = measured(lambda seconds: measure(alone, 1, seconds))
    served = measured(lambda seconds: measure(served_calls(address, model, x), in_flight, seconds, pid))
    for one in (here, served):
        assert one.calls == one.answered == one.latencies.count > 0
        assert 0 < one.milliseconds(50) <= one.milliseconds(99) <= one.milliseconds(100)
    assert here.cpu_seconds is None
    assert served.cpu_seconds is not None


def test_a_failed_request_is_an_error(server):
    address, _ = server
    with pytest.raises(ValueError, match=r"requests failed: \d+ NOT_FOUND"):
        measure(served_calls(address, "nobody", np.zeros((1, 1), np.float32)), 2, seconds=1)


def test_a_wrong_answer_is_noticed():
    right = np.array([[1.0, -2.0]], np.float32)
    check("m", [right, right + np.float32(1e-6)], right)
    for wrong in (right + np.float32(1e-3), right[:, :1], right * np.nan):
        with pytest.raises(ValueError, match="m: the server answers otherwise"):
            check("m", [right, wrong], right)


def test_the_command_prints_a_table_and_writes_json(root, trained, tmp_path):
    file = tmp_path / "figures.json"
    command = [sys.executable, "-m", "tests.latency", "--repository", str(trained), "--batch", "1", "--in-flight", "2"]
    command += ["--seconds", "0.2", "--json", str(file)]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
    assert "in process" in run.stdout
    figures = json.loads(file.read_text(encoding="utf-8"))
    assert [(row["network"], row["where"]) for row in figures["rows"]] == [
        (model, where) for model in networks.MODELS for where in ("in process", "gRPC")
    ]
    assert all(0 < row["p50_ms"] <= row["p99.9_ms"] <= row["max_ms"] for row in figures["rows"])
    assert [row["server_cpu_ms"] is None for row in figures["rows"]] == [True, False] * 2
    assert list(tmp_path.iterdir()) == [file]
