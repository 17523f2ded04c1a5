"""The cost of a request inside the server, without a socket: that it is measured on requests that are answered."""

from __future__ import annotations

import asyncio
import math

from benches.serving.inside import AT_ONCE, microseconds


def test_each_number_of_requests_in_a_read_and_the_bare_run_are_timed(tmp_path) -> None:
    found = asyncio.run(microseconds(tmp_path, rounds=40))
    assert list(found) == [*map(str, AT_ONCE), "bare run"]
    assert 0 < found["bare run"] < math.inf
    assert all(found[str(many)] > 0 for many in AT_ONCE)
