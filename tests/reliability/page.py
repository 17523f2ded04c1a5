"""docs/reliability.md: each program rewrites its own section, under its own heading."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"
TOP = """# Reliability, measured

What becomes of requests while servers are killed, stopped, flooded, overloaded or given damaged files, and whether a
server's memory stays the same over many reloads.

`make chaos`, `make fuzz` and `make soak` measure this, and each writes its section of this page. Short forms of all
three run with the tests: `tests/reliability`, `tests/fuzz`, `tests/soak`. The other sections say how they
were measured.
"""


def with_section(text: str, heading: str, body: str) -> str:
    """``text`` with ``body`` as its section ``heading``, in its place or at the end.

    >>> print(with_section("# Top\\n\\n## A\\n\\nold\\n\\n## B\\n\\nb\\n", "A", "new"))
    # Top
    <BLANKLINE>
    ## A
    <BLANKLINE>
    new
    <BLANKLINE>
    ## B
    <BLANKLINE>
    b
    <BLANKLINE>
    """
    section = f"## {heading}\n\n{body.strip()}\n"
    there = re.search(rf"^## {re.escape(heading)}\n.*?(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    if there is None:
        return f"{text.rstrip()}\n\n{section}"
    rest = text[there.end() :]
    return text[: there.start()] + section + (f"\n{rest}" if rest else "")


def write_section(heading: str, body: str, page: Path = PAGE) -> None:
    """Write ``body`` into the page, which is made where it is not there."""
    text = page.read_text(encoding="utf-8") if page.is_file() else TOP
    page.write_text(with_section(text, heading, body), encoding="utf-8")
