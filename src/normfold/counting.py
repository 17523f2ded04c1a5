"""A number with its noun in a message: "1 address", "2 addresses"."""

from __future__ import annotations

__all__ = ["counted"]


def counted(number: int, noun: str, nouns: str = "") -> str:
    """``number`` and ``noun``; the plural is ``nouns``, or has an s.

    >>> counted(1, "address", "addresses"), counted(0, "row"), counted(1_500, "row")
    ('1 address', '0 rows', '1,500 rows')
    """
    return f"{number:,} {noun if number == 1 else nouns or f'{noun}s'}"
