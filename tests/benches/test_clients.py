"""The page of the comparison of clients."""

from __future__ import annotations

import pytest
from benches.clients.__main__ import ratio, report, table, verdict
from benches.clients.asking import blocking

from normfold.serving.load.rounds import Ratio


def rows(**figures):
    return [dict(zip(figures, values, strict=True)) for values in zip(*figures.values(), strict=True)]


ONE = {
    "Client": rows(p50_us=[100, 100, 300], cpu_us=[50, 50, 50]),
    "tritonclient": rows(p50_us=[500, 400, 400], cpu_us=[100, 200, 100]),
}
MANY = {
    "AsyncClient": rows(p50_us=[1, 1, 1], cpu_us=[20, 20, 20]),
    "tritonclient.aio": rows(p50_us=[2, 2, 2], cpu_us=[100, 100, 100]),
}
STARTED = {
    "Client": rows(cpu_ms=[60, 60, 60], wall_ms=[1, 1, 1]),
    "tritonclient": rows(cpu_ms=[100, 100, 100], wall_ms=[2, 2, 2]),
    "numpy alone": rows(cpu_ms=[50, 50, 50], wall_ms=[1, 1, 1]),
}


def test_ratios_are_taken_within_a_round():
    assert ratio(ONE, "Client", "tritonclient", "p50_us").rounds == (0.2, 0.25, 0.75)
    assert "| Client | 100 (100 to 300) | 0.25 (0.20 to 0.75) |" in table(ONE, "tritonclient", {"p50_us": "p50, µs"})


@pytest.mark.parametrize(
    ("found", "said"),
    [((0.1, 0.2, 0.4), "yes"), ((0.1, 0.3, 0.5), "by the median, not in every round"), ((0.1, 0.5, 0.6), "no")],
)
def test_an_aim_is_reached_by_every_round_or_by_the_median_or_not(found, said):
    assert verdict(Ratio(found), 0.4) == said


def test_the_page_has_the_aims_and_says_which_were_reached():
    text = report(ONE, MANY, STARTED, 0.5, "2026-01-01")
    assert "in slices of 0.5 s" in text
    said = [line.rpartition("| ")[2] for line in text.splitlines() if " × | " in line]
    assert said == ["by the median, not in every round |", "yes |", "no |"]
    assert "over tritonclient*: to import NumPy alone takes 0.50 ×" in text
    assert "- *`AsyncClient.infer`" not in text


def test_a_blocking_client_is_asked_for_the_time_given():
    asked = []
    found = blocking(lambda: asked.append(1), 0.01)
    assert len(asked) > 30
    assert found["p50_us"] >= 0
