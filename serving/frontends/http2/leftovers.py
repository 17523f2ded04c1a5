"""The work that frames, or the end of a connection, leave: a part of it in each turn, so that none lasts long."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Protocol

from normfold.serving.frontends.http2.call import ServerCall
from normfold.serving.frontends.http2.call_places import CallPlaces
from normfold.serving.frontends.http2.limits import ENDED_CALLS
from normfold.serving.frontends.http2.sending import AnswerStream, Sender


class Leaving(Protocol):
    """The connection, as this work needs it."""

    sender: Sender
    calls: dict[int, ServerCall]
    #: The calls with messages that have come and are not cut out of the data yet, by the number of their stream.
    uncut: dict[int, ServerCall]
    #: The data that may still come on streams with a content-length, in bytes.
    promised: dict[int, int]
    call_places: CallPlaces

    def fruitless(self, frames: int = 1) -> None:
        """Count frames that bring no call nearer to its end. Raises Fault when there were too many."""

    def finish(self, streams: list[AnswerStream]) -> None:
        """Forget calls of which the last byte is queued now, and wake those that wait for the client's windows."""

    def in_turn(self, turn: Callable[[], None]) -> None:
        """Call ``turn`` when it is this connection's turn again."""

    def end_request(self, call: ServerCall) -> None:
        """Take the end of a request that came without data."""

    def flush(self) -> None:
        """Write what is queued; close the socket behind the last answer if no call is accepted any more."""


def drop_all(connection: Leaving) -> None:
    """Forget all calls of a connection that has ended: cancel some now, and the rest in later turns."""
    calls = list(connection.calls.values())
    connection.calls.clear()
    connection.promised.clear()
    _cancel(connection, iter(calls))


def _cancel(connection: Leaving, calls: Iterator[ServerCall]) -> None:
    some = list(islice(calls, ENDED_CALLS))
    for call in some:
        call.abandon()
    if len(some) == ENDED_CALLS:
        connection.in_turn(partial(_cancel, connection, calls))
    else:
        connection.call_places.keep(0)


def end_requests(connection: Leaving, calls: Iterator[ServerCall]) -> None:
    """End the requests of ``calls`` that have not ended where their data end, some now and the rest in later turns."""
    some = list(islice(calls, ENDED_CALLS))
    for call in some:
        if call.number in connection.calls and not call.request_ended:
            connection.end_request(call)
    if len(some) == ENDED_CALLS:
        connection.in_turn(partial(end_requests, connection, calls))
    connection.flush()


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
