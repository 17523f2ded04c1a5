"""rich's console for texts that may come from files and servers."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from normfold.cli.terminal import shown

__all__ = ["LONGEST_LINE", "PlainConsole"]

#: More characters than any line has.
LONGEST_LINE = 1 << 20


class PlainConsole(Console):
    """A console that escapes control characters in what it prints; rich itself passes them to the terminal.

    Not in the text beside a spinner, which is our own or from the command line.
    """

    def render_str(self, text: str, **options: Any) -> Text:
        """Return ``text``, a line or a cell of a table, as rich prints it."""
        return super().render_str(shown(text), **options)

    def print_table(self, table: Table) -> None:
        """Print ``table``; where the terminal is too narrow for it, the terminal breaks its lines.

        rich itself would cut the cells, numbers among them, and leave columns out.
        """
        width = self.width
        try:
            self.width = LONGEST_LINE
            self.width = max(width, self.measure(table).maximum)
            self.print(table, crop=False)
        finally:
            self.width = width
