"""The connections and tasks of an ``AsyncClient`` on the event loop that uses it; each loop has its own.

A task of the loop before may go on, or end, while the client is used on the next loop. It changes nothing there.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

from normfold.serving.client.transport import failures

if TYPE_CHECKING:
    from normfold.serving.client.multiplex import Multiplexer
    from normfold.serving.client.transport.answers import Reply
    from normfold.serving.client.transport.choice import LoopCalls

_ALL: weakref.WeakSet[EventLoops] = weakref.WeakSet()
#: What a forked process has from its parent. It is kept for ever: freeing it would close what the parent uses.
_OF_PARENT: list[OnLoop] = []


class OnLoop:
    """The connections of a client on one event loop, the turns of its inferences, and its stream if it has one."""

    __slots__ = ("calls", "loop", "multiplexer", "turns")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, calls: LoopCalls, in_flight: int, multiplexer: Multiplexer | None
    ) -> None:
        self.loop, self.calls, self.multiplexer = loop, calls, multiplexer
        self.turns = asyncio.Semaphore(in_flight)


class EventLoops:
    """Gives what the client has on the running event loop, and ends what it had on the loop before."""

    def __init__(
        self, opened: Callable[[], LoopCalls], in_flight: int, multiplexed: Callable[[LoopCalls], Multiplexer] | None
    ) -> None:
        """``multiplexed`` makes the stream for all inferences of a loop; None: each is a call."""
        self._opened, self._in_flight, self.multiplexed = opened, in_flight, multiplexed
        self._current: OnLoop | None = None
        #: Ends ``_current`` when nobody has the client any more: its event loop keeps the connections alive.
        self._forgotten: weakref.finalize[..., EventLoops] | None = None
        self._closed = False
        #: Held while the client goes over to another event loop: two loops may run in two threads.
        self._changing = threading.Lock()
        _ALL.add(self)

    def here(self) -> OnLoop:
        """The connections on the running event loop. Raises RuntimeError while the loop before still runs."""
        current, loop = self._current, asyncio.get_running_loop()
        return current if current is not None and current.loop is loop else self._moved(loop)

    async def close(self) -> None:
        """Close the connections; calls without an answer end as CANCELLED."""
        with self._changing:
            self._closed, current = True, self._current
            self._keep()
        if current is None:
            return
        if current.loop is not asyncio.get_running_loop():
            _leave(current.calls, current.multiplexer, failures.CLOSED)
            return
        if current.multiplexer is not None:
            await current.multiplexer.close()
        await current.calls.close()

    def forked(self) -> None:
        """Forget what belongs to the parent process, in a child: the sockets and the event loop are the parent's."""
        current, self._current, self._changing = self._current, None, threading.Lock()
        self._keep()
        if current is not None:
            _OF_PARENT.append(current)
            current.calls.forget()

    def _moved(self, loop: asyncio.AbstractEventLoop) -> OnLoop:
        with self._changing:
            before = self._current
            if before is not None and before.loop.is_running():
                raise RuntimeError(
                    "this AsyncClient works on another event loop, which still runs: "
                    "use one AsyncClient for each event loop"
                )
            calls = self._opened()
            multiplexer = self.multiplexed(calls) if self.multiplexed is not None else None
            current = self._current = OnLoop(loop, calls, self._in_flight, multiplexer)
            self._keep()
            if self._closed:
                _leave(calls, multiplexer, failures.CLOSED)
            else:
                # weak references: else a call that waits on a closed loop would keep its client and a socket for ever
                stream = weakref.ref(multiplexer) if multiplexer is not None else None
                self._forgotten = weakref.finalize(self, _forget, weakref.ref(calls), stream)
                self._forgotten.atexit = False
        if before is not None:
            _leave(before.calls, before.multiplexer, failures.MOVED)
        return current

    def _keep(self) -> None:
        """Cancel the later end of ``_current``: it is ended now, or belongs to another process."""
        if self._forgotten is not None:
            self._forgotten.detach()
            self._forgotten = None


def _leave(calls: LoopCalls | None, multiplexer: Multiplexer | None, reply: Reply) -> None:
    if multiplexer is not None:
        multiplexer.leave(reply)
    if calls is not None:
        calls.leave(reply)


def _forget(calls: weakref.ref[LoopCalls], multiplexer: weakref.ref[Multiplexer] | None) -> None:
    """End what the client had. The event loop keeps what has a connection; what it does not keep is gone already."""
    _leave(calls(), multiplexer() if multiplexer is not None else None, failures.CLOSED)


def _forked() -> None:
    for loops in list(_ALL):
        loops.forked()


os.register_at_fork(after_in_child=_forked)
