"""The changes that are still in force, so that a worker that starts later can repeat them.

A key is a sequence of words, such as ("model", "surnames"). Of the changes with one key only the last is in force.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Change(NamedTuple):
    """A request that changed the server."""

    method: str
    data: bytes


class Journal:
    """The changes in force, in the order in which they were made."""

    def __init__(self) -> None:
        self._changes: dict[tuple[str, ...], Change] = {}

    def keep(self, key: Sequence[str], change: Change) -> None:
        """Remember ``change``, in place of the change with the same key."""
        self._changes.pop(tuple(key), None)
        self._changes[tuple(key)] = change

    def forget(self, prefix: Sequence[str]) -> None:
        """Forget every change whose key begins with ``prefix``."""
        for key in [key for key in self._changes if key[: len(prefix)] == tuple(prefix)]:
            del self._changes[key]

    def changes(self) -> list[Change]:
        """The changes to repeat, in their order."""
        return list(self._changes.values())
