"""rich's console for texts that may come from files and servers."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from normfold.cli.terminal import shown

__all__ = ["PlainConsole"]


class PlainConsole(Console):
    """A console that escapes control characters in what it prints; rich itself passes them to the terminal.

    Not in the words beside a turning sign: they are our own, or from the command line.
    """

    def render_str(self, text: str, **options: Any) -> Text:
        """Return ``text``, a line or a cell of a table, as rich prints it."""
        return super().render_str(shown(text), **options)
