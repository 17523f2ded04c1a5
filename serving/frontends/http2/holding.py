"""The bytes that are held for clients: frames and requests that are not complete, and answers that they do not take."""

from __future__ import annotations


class Holding:
    """The bytes held for one connection, within the bytes held for all."""

    def __init__(self, most_bytes: int, of_all: Holding | None = None) -> None:
        self.bytes = 0
        #: Those of them that are no call's: they do not matter to a call that is alone.
        self.beside = 0
        #: The bytes of all connections that were held and are not any more, since the server began.
        self.freed = 0
        self._most, self._of_all = most_bytes, of_all

    def fits(self, size: int, own: int = 0) -> bool:
        """Whether ``size`` more bytes may be held for a call for which ``own`` bytes are held already.

        A single call may exceed the limit of its connection, so that the largest message always passes, also beside
        calls that have sent nothing and bytes that wait in the socket.
        """
        if self._of_all is not None and self._of_all.bytes + size > self._of_all._most:
            return False
        return self.bytes + size <= self._most or self.bytes - self.beside <= own

    def has_room(self, size: int) -> bool:
        """Whether ``size`` more bytes may be held for what is no call; nothing of that may exceed a limit."""
        return self.bytes + size <= self._most and (self._of_all is None or self._of_all.has_room(size))

    @property
    def crowded(self) -> bool:
        """Whether more is held for all connections than may be: what is counted without being asked for can do that."""
        return self._of_all is not None and self._of_all.bytes > self._of_all._most

    def add(self, size: int) -> None:
        """Hold ``size`` more bytes; a negative number: fewer."""
        self.bytes += size
        if self._of_all is not None:
            self._of_all.bytes += size
            if size < 0:
                self._of_all.freed -= size

    def add_beside(self, size: int) -> None:
        """The same for what is no call's: places for calls, unfinished frames, and what waits in the socket."""
        self.beside += size
        self.add(size)
