"""The simulation of replicas agrees with the formulas that are known, and the page has what was measured."""

from __future__ import annotations

import json

import numpy as np
import pytest
from benches.scaling.__main__ import HERE, PAGE, costs, simulated
from benches.scaling.queueing import constant, exponential, wait_md1, wait_mmc, waits

SECONDS = 0.003


def mean_and_error(found: np.ndarray) -> tuple[float, float]:
    """The mean, and its standard error from 20 batches: waits that follow each other are alike."""
    batches = np.array([batch.mean() for batch in np.array_split(found, 20)])
    return float(batches.mean()), float(batches.std(ddof=1) / np.sqrt(len(batches)))


@pytest.mark.parametrize("load", [0.5, 0.8])
@pytest.mark.parametrize("policy", ["random", "two", "shared"])
def test_one_replica_with_constant_times_waits_as_pollaczek_and_khinchine_say(policy, load):
    mean, error = mean_and_error(waits(policy, 1, load, constant(SECONDS), 60_000))
    assert abs(mean - wait_md1(load, SECONDS)) < 4 * error
    assert error < 0.05 * mean


@pytest.mark.parametrize(("replicas", "load"), [(1, 0.5), (5, 0.8)])
def test_one_queue_waits_as_erlang_says(replicas, load):
    mean, error = mean_and_error(waits("shared", replicas, load, exponential(SECONDS), 100_000))
    assert abs(mean - wait_mmc(load, SECONDS, replicas)) < 4 * error
    assert error < 0.1 * mean


def test_many_replicas_with_a_random_balancer_wait_as_one_does():
    mean, error = mean_and_error(waits("random", 10, 0.7, exponential(SECONDS), 100_000))
    assert abs(mean - wait_mmc(0.7, SECONDS, 1)) < 4 * error


def test_erlang_s_formula_gives_the_numbers_of_its_tables():
    # C(2, 1) = 1/3: the wait is a third of s / (2 - 1)
    assert wait_mmc(0.5, 1.0, 2) == pytest.approx(1 / 3)
    # C(5, 4) = 0.5541, from any table of Erlang C
    assert wait_mmc(0.8, 1.0, 5) == pytest.approx(0.5541, abs=1e-4)


def test_the_better_balancer_waits_less():
    means = [waits(policy, 10, 0.8, exponential(SECONDS), 60_000).mean() for policy in ("random", "two", "shared")]
    assert means[0] > means[1] > means[2] > 0


def test_the_page_has_the_tables_of_what_was_measured():
    found = json.loads((HERE / "measured.json").read_text())
    page = PAGE.read_text(encoding="utf-8")
    assert costs(found["rows"]) in page
    assert found["machine"] in page
    seconds = found["rows"]["alone"]["cpu_us"] / 1e6
    ten = simulated(exponential(seconds), seconds, (10,)).splitlines()[2:]
    assert all(line in page for line in ten)
