"""What a worker that starts later has to be told, so that it is like the others: the changes that are still in force.

Keys are sequences of words, such as ("model", "surnames"); of changes with the same key only the last is in force.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Change(NamedTuple):
    """A request that changed the server."""

    method: str
    data: bytes


class Journal:
    """The changes in force, in their order."""

    def __init__(self) -> None:
        self._changes: dict[tuple[str, ...], Change] = {}

    def keep(self, key: Sequence[str], change: Change) -> None:
        """Remember ``change`` in place of what ``key`` stood for."""
        self._changes.pop(tuple(key), None)
        self._changes[tuple(key)] = change

    def forget(self, prefix: Sequence[str]) -> None:
        """Forget every change whose key begins with ``prefix``."""
        for key in [key for key in self._changes if key[: len(prefix)] == tuple(prefix)]:
            del self._changes[key]

    def changes(self) -> list[Change]:
        """The changes to repeat, in order."""
        return list(self._changes.values())
