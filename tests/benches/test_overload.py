"""The table of the overload benchmark: invented figures, with the results by hand."""

from __future__ import annotations

from benches.serving.overload import section


def row(times: int, goodput: float, **errors: int) -> dict[str, object]:
    seen = {"health_p99_ms": 4.0, "health_most_ms": 9.0, "most_bytes": 99_000_000}
    common = {"server": "one", "peak": 400.0, "cpu_ms": 2.0, "p50_ms": 5.0, "p99_ms": 50.0}
    return {"times": times, "goodput": goodput, "errors": errors, **common, **seen}


def test_goodput_is_compared_with_the_best_of_all_rows():
    rows = [row(1, 390.0), row(10, 500.0, RESOURCE_EXHAUSTED=9000, DEADLINE_EXCEEDED=7, CANCELLED=2)]
    large = [{**row(0, 0.0), "answered": 12, "before_bytes": 1e6, "after_bytes": 2e6}]
    text = section({"rows": rows, "large": large})
    assert "| 1 x 400/s | one | 390 | 0.78 | 2.00 | 5 | 50 | 0, 0, 0 | 4, 9 | 99 |" in text
    assert "| 10 x 400/s | one | 500 | 1.00 | 2.00 | 5 | 50 | 9,000, 7, 2 | 4, 9 | 99 |" in text
    assert "| one | 12 | 0, 0, 0 | 1, 99, 2 | 4, 9 |" in text
