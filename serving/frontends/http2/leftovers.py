"""The work that frames, or the end of a connection, leave: a part of it in each turn, so that none lasts long."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, islice
from typing import Protocol

from normfold.serving.frontends.http2.call import ServerCall
from normfold.serving.frontends.http2.call_places import CallPlaces
from normfold.serving.frontends.http2.limits import ENDED_CALLS
from normfold.serving.frontends.http2.opening import CallOpening, Opener
from normfold.serving.frontends.http2.sending import AnswerStream


class Leaving(Opener, Protocol):
    """The connection, as this work needs it."""

    call_places: CallPlaces
    opening: CallOpening

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
    opening = connection.opening
    calls, begun = list(connection.calls.values()), opening.begun
    connection.calls.clear()
    connection.uncut.clear()
    connection.promised.clear()
    opening.begun = {}
    not_opened = (partial(opening.drop, connection, number, asked) for number, asked in begun.items())
    _cancel(connection, chain((call.abandon for call in calls), not_opened))


def _cancel(connection: Leaving, ends: Iterator[Callable[[], None]]) -> None:
    some = list(islice(ends, ENDED_CALLS))
    for end in some:
        end()
    if len(some) == ENDED_CALLS:
        connection.in_turn(partial(_cancel, connection, ends))
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
