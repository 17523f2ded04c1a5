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


def test_short_runs_have_one_thread_and_long_runs_all() -> None:
    with Threads() as threads:
        assert torch.get_num_threads() == 1
        threads.fit(lambda: None)
        assert torch.get_num_threads() == 1
        threads.fit(lambda: time.sleep(2 * LONG_RUN_SECONDS))
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == 2


def test_an_error_leaves_the_threads_as_they_were() -> None:
    with pytest.raises(ValueError, match="wrong"), Threads():
        raise ValueError("wrong")
    assert torch.get_num_threads() == 2
