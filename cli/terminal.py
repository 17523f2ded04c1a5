"""Texts from files and servers on a terminal, which obeys the control characters in what it is given."""

from __future__ import annotations

__all__ = ["message", "one_line", "shown"]


def one_line(text: str) -> str:
    """``text`` with its control characters and ends of lines escaped.

    >>> one_line("two\\nlines, \\x1b[31mno colour")
    'two\\\\nlines, \\\\x1b[31mno colour'
    """
    if text.isprintable():
        return text
    from normfold.serving.wording import printable

    return printable(text)


def shown(text: str) -> str:
    """``text`` with its control characters escaped; ends of lines stay.

    >>> shown("two\\nlines, \\x1b[31mno colour")
    'two\\nlines, \\\\x1b[31mno colour'
    """
    return "\n".join(one_line(line) for line in text.split("\n"))


def message(text: str) -> str:
    """``text`` of an error with its control characters escaped. An end of a line stays where an indented line follows.

    Only our own messages have such lines. Any other end of a line is part of a name that the message repeats.

    >>> message("weights 'a\\nb.pt' do not fit:\\n  'x' is missing")
    "weights 'a\\\\nb.pt' do not fit:\\n  'x' is missing"
    """
    return "\n  ".join(one_line(line) for line in text.split("\n  "))
