"""A number with its noun in a message ("1 address", "2 addresses"), and the first of many names."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["counted", "listed"]


def counted(number: int, noun: str, nouns: str = "") -> str:
    """``number`` and ``noun``; the plural is ``nouns``, or has an s.

    >>> counted(1, "address", "addresses"), counted(0, "row"), counted(1_500, "row")
    ('1 address', '0 rows', '1,500 rows')
    """
    return f"{number:,} {noun if number == 1 else nouns or f'{noun}s'}"


def listed(texts: Sequence[str], shown: int = 5) -> str:
    """The first ``shown`` of ``texts``, and how many more there are.

    >>> listed(["a", "b"]), listed(["a", "b", "c", "d"], shown=2)
    ('a, b', 'a, b and 2 more')
    """
    more = len(texts) - shown
    return ", ".join(texts[:shown]) + (f" and {more} more" if more > 0 else "")
