"""The harness, on the real server and the real networks; nothing here depends on how fast the machine is."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from . import networks
from .__main__ import check
from .harness import closed_loop, cpu_seconds, in_process, over_grpc, percentile, summary


@pytest.mark.parametrize(("share", "expected"), [(0.5, 50), (0.9, 90), (0.99, 99), (0.999, 100), (1.0, 100)])
def test_percentiles_are_nearest_rank(share, expected):
    values = sorted(range(1, 101))
    assert percentile(values, share) == expected
    assert percentile(values, share) == np.percentile(values, share * 100, method="inverted_cdf")


def test_a_single_value_is_every_percentile():
    assert [percentile([7.0], share) for share in (0.001, 0.5, 0.999, 1)] == [7.0] * 4


@pytest.mark.parametrize(("values", "share"), [([], 0.5), ([1.0], 0.0), ([1.0], 1.1)])
def test_a_percentile_of_nothing_or_beyond_all_is_refused(values, share):
    with pytest.raises(ValueError, match="needs values and a share"):
        percentile(values, share)


def test_a_summary_is_in_milliseconds_and_per_request():
    seen = summary([0.003, 0.001, 0.002, 0.004], 0.005, in_flight=2, warm_up=9, server_cpu_seconds=0.002)
    assert (seen.p50_ms, seen.p90_ms, seen.max_ms) == pytest.approx((2.0, 4.0, 4.0))
    assert (seen.count, seen.warm_up, seen.in_flight) == (4, 9, 2)
    assert seen.per_second == pytest.approx(800)
    assert seen.server_cpu_ms == pytest.approx(0.5)


def test_a_closed_loop_keeps_exactly_n_in_flight():
    under_way, most, asked = 0, [], 0

    async def ask():
        nonlocal under_way, asked
        under_way, asked = under_way + 1, asked + 1
        most.append(under_way)
        await asyncio.sleep(0)
        under_way -= 1

    seen = asyncio.run(closed_loop(ask, in_flight=3, count=20, warm_up=5))
    assert (seen.count, asked) == (20, 25)
    assert max(most) == 3


def test_a_failed_request_ends_the_run():
    async def ask():
        raise LookupError("no such model")

    with pytest.raises(ExceptionGroup) as caught:
        asyncio.run(closed_loop(ask, in_flight=2, count=4, warm_up=0))
    assert caught.group_contains(LookupError, match="no such model")


def test_cpu_time_is_that_of_the_process():
    assert cpu_seconds(None) is None
    assert cpu_seconds(2**22 + 1) is None  # above Linux's largest process id
    used, tick = cpu_seconds(os.getpid()), 1 / os.sysconf("SC_CLK_TCK")
    assert used is not None
    times = os.times()
    assert used == pytest.approx(times.user + times.system, abs=4 * tick)


@pytest.fixture(scope="module")
def server(trained):
    with networks.served(trained) as (address, pid):
        yield address, pid


@pytest.mark.parametrize("model", networks.MODELS)
@pytest.mark.parametrize(("batch", "in_flight"), [(1, 1), (1, 16), (32, 4)])
def test_served_answers_are_right_and_figures_consistent(trained, server, model, batch, in_flight):
    address, pid = server
    x = networks.inputs(model, batch)
    assert len(x) == batch
    alone, expected = in_process(trained / model / "1" / "model.onnx", x, count=3, warm_up=1)
    served, answers = asyncio.run(over_grpc(address, model, x, in_flight, count=40, warm_up=8, pid=pid))
    assert len(answers) == 48
    check(model, answers, expected)
    assert (alone.count, served.count, served.warm_up, served.in_flight) == (3, 40, 8, in_flight)
    for one in (alone, served):
        assert 0 < one.p50_ms <= one.p90_ms <= one.p99_ms <= one.p999_ms <= one.max_ms <= one.seconds * 1e3
        assert one.per_second == pytest.approx(one.count / one.seconds)
    assert served.server_cpu_ms is not None
    assert served.server_cpu_ms >= 0


def test_a_wrong_answer_is_noticed():
    right = np.array([[1.0, -2.0]], np.float32)
    check("m", [right, right + np.float32(1e-6)], right)
    for wrong in (right + np.float32(1e-3), right[:, :1], right * np.nan):
        with pytest.raises(ValueError, match="m: the server answers otherwise"):
            check("m", [right, wrong], right)


def test_the_command_prints_a_table_and_writes_json(root, trained, tmp_path):
    file = tmp_path / "figures.json"
    command = [sys.executable, "-m", "tests.latency", "--repository", str(trained), "--batch", "1", "--in-flight", "2"]
    command += ["--requests", "10", "--warm-up", "2", "--json", str(file)]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
    assert "in process" in run.stdout
    figures = json.loads(file.read_text(encoding="utf-8"))
    assert [(row["network"], row["where"]) for row in figures["rows"]] == [
        (model, where) for model in networks.MODELS for where in ("in process", "gRPC")
    ]
    assert all(row["latencies"]["count"] == 10 for row in figures["rows"])
    assert list(tmp_path.iterdir()) == [file]
