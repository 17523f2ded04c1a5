"""The number that a text of digits writes. ``int`` refuses more than 4,300 digits with an error of its own."""

from __future__ import annotations

__all__ = ["read_digits"]


def read_digits(text: str, most: int) -> int | None:
    """The number that ``text`` writes, None where it is not digits from 0 to 9, or above ``most``.

    >>> read_digits("08", 100), read_digits("101", 100), read_digits("-1", 100)
    (8, None, None)
    """
    if not text.isascii() or not text.isdecimal():
        return None
    digits = text.lstrip("0") or "0"
    if len(digits) > len(str(most)):
        return None
    number = int(digits)
    return number if number <= most else None
