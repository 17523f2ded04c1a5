"""Docstrings as the site shows them: an extension of griffe, which reads them for `make docs`.

In the code the comment ``#:`` above a field describes it, other names are marked as ``:func:`fold```, and trees of
errors are drawn with lines. griffe and Markdown know none of these.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import griffe

ROLE = re.compile(r":(?:func|class|meth|mod|data|attr|exc):`~?([^`]+)`")


def in_markdown(docstring: str) -> str:
    """A docstring with names as code, and with a drawn tree as a block that keeps its lines."""
    paragraphs = ROLE.sub(r"`\1`", docstring).split("\n\n")
    drawn = [any(mark in text for mark in "├└") and not text.startswith("    ") for text in paragraphs]
    return "\n\n".join(
        re.sub("^", "    ", text, flags=re.MULTILINE) if tree else text
        for text, tree in zip(paragraphs, drawn, strict=True)
    )


def comment_above(lines: list[str], line: int) -> str:
    """The text of the ``#:`` comment that ends above line ``line``, counted from 1; empty if there is none."""
    found: list[str] = []
    for text in reversed(lines[: line - 1]):
        if not text.strip().startswith("#:"):
            break
        found.insert(0, text.strip().removeprefix("#:").strip())
    return "\n".join(found)


class Docstrings(griffe.Extension):
    """Describes fields by their comments, and writes docstrings in Markdown."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **kwargs: Any) -> None:
        """Give a field the ``#:`` comment above it as its docstring."""
        if attr.docstring is None and attr.lineno is not None and isinstance(attr.filepath, Path):
            text = comment_above(attr.filepath.read_text(encoding="utf-8").splitlines(), attr.lineno)
            if text:
                attr.docstring = griffe.Docstring(text, lineno=attr.lineno, parent=attr)

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Write the docstring of an object in Markdown."""
        if obj.docstring is not None:
            obj.docstring.value = in_markdown(obj.docstring.value)
