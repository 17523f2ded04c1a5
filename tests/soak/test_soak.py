"""A short soak, and the same with a server that leaks on purpose, which must be noticed."""

from __future__ import annotations

from pathlib import Path

import pytest

from normfold.serving.frontends import FRONTENDS

from .soak import GROWTH_BYTES, Sample, Soaked, served, soak, write_repository

#: The leaking server keeps 4 MiB and more for each: those of the last two thirds are far above what may grow, also if a
#: busy machine makes some loads slow, so that most samples lie between a few of them.
RELOADS, LEAKING_RELOADS = 18, 27


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return write_repository(tmp_path)


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_reloads_and_mixed_lengths_leave_nothing_behind(repository, frontend):
    with served(repository, frontend) as (pid, address):
        found = soak(pid, address, RELOADS, 0, 0.05)
    assert found.reloads == RELOADS
    assert set(found.answered) <= {"OK", "malformed and refused", "given up"}
    assert found.answered["OK"] > 0
    assert found.grows() == []


def test_a_leak_is_noticed(repository):
    with served(repository, FRONTENDS[0], "tests.soak.leaking") as (pid, address):
        found = soak(pid, address, LEAKING_RELOADS, 0, 0.05)
    assert "memory grew by" in found.grows()[0]


def test_growth_of_files_and_threads_is_noticed():
    flat = [Sample(n, n, 1000, 10, 5) for n in range(30)]
    assert Soaked(flat).grows() == []
    steep = [Sample(n, n, n * GROWTH_BYTES, 10 + n, 5 + n) for n in range(30)]
    assert Soaked(steep).grows() == [
        f"memory grew by {10 * GROWTH_BYTES >> 20} MiB in 10 reloads",
        "files grew by 10",
        "threads grew by 10",
    ]
