"""The work on arrays is counted in bytes of numbers that are copied; pointers say nothing about strings."""

from __future__ import annotations

import numpy as np

from normfold.serving.process.off_loop import COPY_BYTES, work_bytes


def test_numbers_count_their_bytes_and_more_where_each_becomes_an_object():
    numbers = np.zeros((10, 100), np.float32)
    assert work_bytes(numbers) == 4000
    assert work_bytes(numbers, by_element=True) == 1000 * 1024


def test_strings_count_each_and_with_their_lengths():
    assert work_bytes(np.array([b"ab", b"c"], object)) == 2 * 1024 + 3
    assert work_bytes(np.array([["ä", "c"]], object), by_element=True) == 2 * 1024 + 2
    assert work_bytes(np.full(2, b"a" * COPY_BYTES, object)) > 2 * COPY_BYTES
    assert work_bytes(np.full(COPY_BYTES // 1024 + 1, b"", object)) > COPY_BYTES
    assert work_bytes(np.array([], object)) == 0
    assert work_bytes(np.full((1,) * 64, b"ab", object)) == 1024 + 2
