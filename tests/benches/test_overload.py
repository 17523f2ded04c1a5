"""The table of the overload benchmark: invented figures, with the results by hand."""

from __future__ import annotations

from benches.serving.overload import section


def row(times: int, answered: float, what: str = "short", **errors: int) -> dict[str, object]:
    seen = {"health_p99_ms": 4.0, "health_most_ms": 9.0, "most_bytes": 99_000_000}
    common = {
        "server": "one",
        "offered": 400.0,
        "peak": 500.0,
        "cpu": 2.0,
        "p50_ms": 5.0,
        "p99_ms": 50.0,
        "seconds": 2.0,
        "what": what,
    }
    return {"times": times, "answered": answered, "errors": errors, **common, **seen}


def test_goodput_is_compared_with_the_capacity_before_and_after():
    rows = [row(1, 780.0), row(10, 1000.0, RESOURCE_EXHAUSTED=9000, DEADLINE_EXCEEDED=7, CANCELLED=2)]
    rows.append(row(1, 4000.0, "long"))
    large = [{**row(0, 12.0), "before_bytes": 1e6, "after_bytes": 2e6}]
    text = section({"rows": rows, "large": large})
    assert "| short | 1 x 400/s | one | 390 | 0.78 | 2.56 | 5, 50 | 0, 0, 0 | 4, 9 | 99 |" in text
    assert "| short | 10 x 400/s | one | 500 | 1.00 | 2.00 | 5, 50 | 9,000, 7, 2 | 4, 9 | 99 |" in text
    assert "| long | 1 x 400/s | one | 2,000 | 4.00 |" in text
    assert "| one | 12 | 0, 0, 0 | 1, 99, 2 | 4, 9 |" in text
