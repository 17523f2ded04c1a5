"""Texts from files and servers on a terminal, which obeys the control characters in what it is given."""

from __future__ import annotations

__all__ = ["shown"]


def shown(text: str) -> str:
    """``text`` with its control characters escaped; ends of lines stay.

    >>> shown("two\\nlines, \\x1b[31mno colour")
    'two\\nlines, \\\\x1b[31mno colour'
    """
    if text.isprintable():
        return text
    from normfold.serving.wording import printable

    return "\n".join(printable(line) for line in text.split("\n"))
