"""How names, shapes and numbers from a request are shown in a message: short, printable, on one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

#: Longer names and shapes than this many characters and dimensions are cut.
LIMIT = 100
DIMENSIONS = 16


def quoted(text: str) -> str:
    """``text`` in single quotes, control characters escaped, cut at 100 characters.

    >>> quoted("x"), quoted("a\\nb")
    ("'x'", "'a\\\\nb'")
    """
    shown = text if text.isprintable() else text.encode("unicode_escape").decode()
    return f"'{shown[:LIMIT]}…'" if len(shown) > LIMIT else f"'{shown}'"


def dims(shape: Sequence[int]) -> str:
    """A shape as ``[-1,4]``, cut at 16 dimensions."""
    shown = ",".join(str(size) for size in shape[:DIMENSIONS])
    return f"[{shown},… {len(shape)} dimensions]" if len(shape) > DIMENSIONS else f"[{shown}]"


def listed(names: Iterable[str]) -> str:
    """Names as ``['a','b']``."""
    return "[" + ",".join(quoted(name) for name in names) + "]"


def near(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for the nearest known name, or nothing where none is near."""
    found = difflib.get_close_matches(name[:LIMIT], list(known), n=1)
    return f"; did you mean {quoted(found[0])}?" if found else ""


class Place(NamedTuple):
    """An input of a model; its words are only made where a message needs them."""

    name: str
    model: str

    def __str__(self) -> str:
        return f"{quoted(self.name)} for model {quoted(self.model)}"


class Told(NamedTuple):
    """The prefix that tells which request a message is about; its words are only made where a message needs them."""

    identifier: str

    def __str__(self) -> str:
        return request_id(self.identifier)


def request_id(identifier: str) -> str:
    """The prefix that tells which request a message is about."""
    return f"[request id: {quoted(identifier)[1:-1] if identifier else '<id_unknown>'}] "
