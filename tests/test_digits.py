"""Digits of any length are a number, or none: nothing is raised."""

from __future__ import annotations

import pytest

from normfold.digits import read_digits


@pytest.mark.parametrize(
    ("text", "number"),
    [("0", 0), ("7", 7), ("0012", 12), ("4294967295", 4294967295), ("0" * 9000 + "3", 3), ("4294967296", None),
     ("9" * 5000, None), ("", None), ("-1", None), ("+1", None), (" 1", None), ("1\n", None), ("1_0", None),
     ("²", None), ("１", None), ("1.0", None)],
)  # fmt: skip
def test_digits_are_read_up_to_the_largest_number_that_is_allowed(text, number):
    assert read_digits(text, (1 << 32) - 1) == number
