"""The work that frames leave for the end of their turn: a part of it in each turn, so that none lasts long."""

from __future__ import annotations

from typing import Protocol

from normfold.serving.frontends.http2.call import ServerCall
from normfold.serving.frontends.http2.sending import AnswerStream, Sender


class Leaving(Protocol):
    """The connection, as this work needs it."""

    sender: Sender
    calls: dict[int, ServerCall]
    #: The calls with messages that have come and are not cut out of the data yet, by the number of their stream.
    uncut: dict[int, ServerCall]

    def fruitless(self, frames: int = 1) -> None:
        """Count frames that bring no call nearer to its end. Raises Fault when there were too many."""

    def finish(self, streams: list[AnswerStream]) -> None:
        """Forget calls of which the last byte is queued now, and wake those that wait for the client's windows."""


def go_on(connection: Leaving) -> bool:
    """Do a part of the work; whether some is left for the next turn. Raises Fault."""
    sender, uncut = connection.sender, connection.uncut
    if sender.widened:
        connection.finish(sender.release())
        if not sender.widened:
            connection.fruitless(sender.fruitless())
    if uncut:
        number = next(iter(uncut))
        call = uncut.pop(number)
        if number in connection.calls:
            call.received(b"", 0, 0)
    return sender.widened or bool(uncut)
