from __future__ import annotations

import time

import pytest
import torch

from normfold.export.proof.threads import LONG_RUN_SECONDS, Threads


@pytest.fixture(autouse=True)
def two_threads():  # type: ignore[no-untyped-def]
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("alone", "together", "chosen"),
    [(0.5, 0.1, 1), (2, 1.5, 2), (2, 3, 1), (2, 2, 1)],  # in LONG_RUN_SECONDS
)
def test_a_long_run_has_all_threads_where_they_are_faster(
    monkeypatch: pytest.MonkeyPatch, alone: float, together: float, chosen: int
) -> None:
    now = 0.0

    def run() -> None:
        nonlocal now
        now += LONG_RUN_SECONDS * (alone if torch.get_num_threads() == 1 else together)

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    with Threads() as threads:
        assert torch.get_num_threads() == 1
        threads.fit(run)
        assert torch.get_num_threads() == chosen
    assert torch.get_num_threads() == 2


def test_an_error_leaves_the_threads_as_they_were() -> None:
    with pytest.raises(ValueError, match="wrong"), Threads():
        raise ValueError("wrong")
    assert torch.get_num_threads() == 2
