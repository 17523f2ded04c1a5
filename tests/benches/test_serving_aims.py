"""When the comparison of servers says that an aim was reached: invented figures, with the results by hand."""

from __future__ import annotations

import pytest
from benches.serving.aims import aims
from benches.serving.ratios import ratio

from normfold.serving.load.rounds import Ratio


def rows(*per_second):
    """Our throughput at 64 in flight in each round, and MLServer's: 100 answers a second in each."""
    common = {"cpu_us": 1.0, "p50_ms": 1.0, "p99_ms": 1.0, "errors": {}}
    return [
        {"server": "normfold, grpcio", "load": "64", "rounds": [{**common, "per_second": each} for each in per_second]},
        {"server": "MLServer", "load": "64", "rounds": [{**common, "per_second": 100.0} for _ in per_second]},
    ]


@pytest.mark.parametrize(
    ("per_second", "verdict"),
    [
        ((310.0, 320.0, 500.0), "yes"),
        ((290.0, 320.0, 500.0), "by the median, not in every round"),
        ((290.0, 295.0, 500.0), "no"),
    ],
)
def test_yes_needs_every_round(per_second, verdict):
    (line,) = (line for line in aims({"peers": {"rows": rows(*per_second)}}).splitlines() if "3 × MLServer" in line)
    assert line.endswith(f"| {verdict} |")


def test_a_ratio_is_taken_round_by_round():
    mine, other = rows(300.0, 100.0, 200.0)
    assert ratio(mine, other, "per_second") == Ratio((3.0, 1.0, 2.0))
    assert str(ratio(mine, other, "per_second")) == "2.00 (1.00 to 3.00)"
