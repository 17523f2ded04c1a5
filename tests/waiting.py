"""Wait for what another thread or process will do."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Found = TypeVar("Found")


def wait_until(what: Callable[[], Found], seconds: float = 120.0) -> Found:
    """Ask ``what`` until its answer is true, and return the answer; fail after ``seconds``."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)
    return found
