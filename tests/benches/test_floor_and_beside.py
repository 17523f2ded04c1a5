"""The tables of the floor, of models beside each other and of the detour: invented figures, results by hand."""

from __future__ import annotations

import subprocess
import sys

import pytest
from benches.serving import beside, detour, floor, h2load
from benches.serving.running import CannotRun


def test_the_floor_is_a_file_server_and_the_run():
    rows = [
        {"server": "nghttpd", "in_flight": 16, "cpu_us": [3.0, 4.0, 5.0]},
        {"server": "one", "in_flight": 16, "cpu_us": [10.0, 24.0, 14.0]},
        {"server": "run", "in_flight": 0, "cpu_us": [2.0, 2.0, 2.0]},
    ]
    text = floor.section({"rows": rows})
    assert "the run alone takes 2.0 µs" in text
    assert "| 16 | nghttpd | 4 (3 to 5) |  |" in text
    assert "| 16 | one | 14 (10 to 24) | 2.00 (2.00 to 4.00) |" in text


def test_what_is_beside_is_compared_within_its_round():
    rows = [
        {"server": "one", "workers": 1, "rounds": [(1.0, 3.0), (2.0, 4.0), (1.0, 1.0)]},
        {"server": "one", "workers": 2, "rounds": [(1000.0, 900.0)]},
    ]
    text = beside.section({"rows": rows})
    assert "ms | 1.00 | 3.00 | 2.00 (1.00 to 3.00) |" in text
    assert "2 workers | 1,000 | 900 | 0.90 (0.90 to 0.90) |" in text


def test_a_run_on_the_loop_is_compared_with_one_on_threads_within_its_round():
    common = {"cpus": 1, "length": 64, "run_us": 71.6, "in_flight": 16}
    loop = [{"per_second": 3000.0, "cpu_us": 50.0}, {"per_second": 1000.0, "cpu_us": 60.0}]
    threads = [{"per_second": 1000.0, "cpu_us": 100.0}, {"per_second": 1000.0, "cpu_us": 100.0}]
    rows = [common | {"place": "event loop", "rounds": loop}, common | {"place": "threads", "rounds": threads}]
    text = detour.section({"rows": rows})
    assert "| 1 | 72 | 16 | 1,000, 2,000 | 100, 55 | 2.00 (1.00 to 3.00) | 0.55 (0.50 to 0.60) |" in text


@pytest.mark.parametrize(
    ("said", "count"),
    [("requests: 9 total, 9 started, 9 done, 9 succeeded, 0 failed, 0 errored, 0 timeout", 9),
     ("requests: 9 total, 9 started, 9 done, 8 succeeded, 1 failed, 0 errored, 0 timeout", None), ("", None)],
)  # fmt: skip
def test_h2load_counts_only_where_nothing_failed(said, count):
    running = subprocess.Popen([sys.executable, "-c", f"print({said!r})"], stdout=subprocess.PIPE, text=True)
    if count is not None:
        assert h2load.succeeded(running) == count
    else:
        with pytest.raises(CannotRun, match="h2load"):
            h2load.succeeded(running)
