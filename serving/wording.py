"""How names, shapes and numbers from a request are shown in a message: short, printable, on one line.

A text of a client's may have megabytes, and these functions run on the event loop. So a text is cut first, and only
what is left of it is looked at.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

#: Names are cut after this many characters, and shapes after this many dimensions.
LIMIT = 100
DIMENSIONS = 16

#: Of more known names only this many are compared with a wrong one: each comparison takes up to 25 µs.
COMPARED = 400


def printable(text: str) -> str:
    """``text`` with control characters escaped, so that a name with a newline in it cannot become a line of a log.

    >>> printable("é\\n")
    'é\\\\n'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def quoted(text: str) -> str:
    """``text`` in single quotes, control characters escaped, cut at 100 characters.

    >>> quoted("x"), quoted("a\\nb")
    ("'x'", "'a\\\\nb'")
    """
    shown = printable(text[:LIMIT])
    return f"'{shown[:LIMIT]}…'" if len(text) > LIMIT or len(shown) > LIMIT else f"'{shown}'"


def dims(shape: Sequence[int]) -> str:
    """A shape as ``[-1,4]``, cut at 16 dimensions."""
    shown = ",".join(str(size) for size in shape[:DIMENSIONS])
    return f"[{shown},… {len(shape)} dimensions]" if len(shape) > DIMENSIONS else f"[{shown}]"


def listed(names: Iterable[str]) -> str:
    """Names as ``['a','b']``."""
    return "[" + ",".join(quoted(name) for name in names) + "]"


def near(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` with the known name most like ``name``, or "" where none is like it.

    >>> near("ECG", ["ecg"])
    "; did you mean 'ecg'?"
    """
    small = {one.lower(): one for one in itertools.islice(known, COMPARED)}
    found = [small[one] for one in difflib.get_close_matches(name[:LIMIT].lower(), small, n=1)]
    return f"; did you mean {quoted(found[0])}?" if found else ""


class Place(NamedTuple):
    """An input of a model, as messages name it; the text is only made when it is needed."""

    name: str
    model: str

    def __str__(self) -> str:
        return f"{quoted(self.name)} for model {quoted(self.model)}"


class RequestPrefix(NamedTuple):
    """The beginning of a message about one request, which gives its id; the text is only made when it is needed.

    >>> str(RequestPrefix("seven")), str(RequestPrefix(""))
    ('[request id: seven] ', '[request id: <id_unknown>] ')
    """

    request_id: str

    def __str__(self) -> str:
        return f"[request id: {quoted(self.request_id)[1:-1] if self.request_id else '<id_unknown>'}] "
