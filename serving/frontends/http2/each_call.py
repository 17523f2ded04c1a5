"""A stream with one answer to each message: a message is answered as soon as it is there, without iterators and tasks.

messages    1  2  3  4  5 ...    at most EACH_IN_FLIGHT of them are under way
answers     1  -  3  4           in the order of the messages: 3 and 4 wait for 2, and count among what is held
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable

from normfold.serving.errors import Status, Unavailable
from normfold.serving.frontends.http2.call import UNTAKEN, CallOwner
from normfold.serving.frontends.http2.joining import Later
from normfold.serving.frontends.http2.limits import CallFault
from normfold.serving.frontends.http2.messages import PART_BYTES, PREFIX_BYTES
from normfold.serving.frontends.http2.queued_call import QueuedCall
from normfold.serving.frontends.http2.requests import Asked
from normfold.serving.rpc.caller import CALLER
from normfold.serving.rpc.methods import EACH_IN_FLIGHT, Method
from normfold.serving.rpc.pieces import Answer
from normfold.serving.rpc.traffic import EXITING

#: Messages that are taken before everything else has its turn.
TURN_MESSAGES = 32

#: The details of the status of a stream whose answers, those that cannot be sent yet, are too many bytes.
BEHIND = "too many bytes of answers wait for the client, or for an answer before them"


class EachCall(QueuedCall):
    """A call of a method with ``wire_each``."""

    __slots__ = ("_completing", "_ending", "_pending", "_scheduled", "_uncounted")

    def __init__(self, connection: CallOwner, number: int, asked: Asked, method: Method) -> None:
        super().__init__(connection, number, asked, method)
        #: The answers under way and those behind them, in the order of their messages.
        self._pending: deque[bytes | asyncio.Future[Answer]] = deque()
        #: Whether answers may be there behind another one that are not counted yet.
        self._uncounted = False
        #: Whether a message is being inflated or joined: the next ones wait for it, so that one at a time takes memory.
        self._completing = False
        #: Whether ``_next`` is certain to be called.
        self._scheduled = False
        #: Whether the server ends: what has begun is answered, and nothing more.
        self._ending = False
        if method.counted:
            self.service.traffic.attend(self, self._server_ends)

    def received(self, data: bytes, begin: int, end: int) -> None:
        """Answer the messages that end in the data."""
        found = self._put(data, begin, end)
        if found is None:
            return
        if self._ending:
            self._drop_queue()
        elif found:
            self.service.traffic.arrived()
        self._go_on()

    def cancel(self) -> None:
        """Stop the answers under way: nobody waits for them any more."""
        self._queue.clear()
        for answer in self._pending:
            if not isinstance(answer, bytes):
                answer.cancel()
        self._pending.clear()
        self.service.traffic.forget(self)
        super().cancel()

    def _server_ends(self) -> None:
        self._ending = True
        self._drop_queue()
        self._next_soon()

    def _drop_queue(self) -> None:
        """Forget the messages that wait: they are not answered any more."""
        self._unread -= sum([len(message) + PART_BYTES for message in self._queue])
        self._queue.clear()
        self._hold()

    def _go_on(self) -> None:
        """Ask what may be asked now, and send what is answered."""
        try:
            for _ in range(TURN_MESSAGES):
                self._send_answered()
                if not self._queue or self._completing or len(self._pending) >= EACH_IN_FLIGHT or self._blocked():
                    break
                self._ask()
            else:
                self._next_soon()
            blocked = self._blocked()
            if self._pending and (blocked or self._uncounted):
                self._count_untaken()
        except CallFault as error:
            self.end(error.status, str(error))
            return
        except Exception as error:
            self.fail(error)
            return
        self.grant(self._unread)
        if blocked:
            if self._task is None:
                self._task = asyncio.ensure_future(self._drained())
        elif not self._pending and not self._queue:
            if self._ending:
                self.fail(Unavailable(EXITING))
            elif self._all_there:
                self.end(Status.OK)

    def _ask(self) -> None:
        """Ask the method the first message that waits."""
        message = self._queue.popleft()
        CALLER.set(self)
        answered: bytes | Awaitable[Answer]
        if isinstance(message, bytes):
            answered = self._answer(message, message)
        else:
            answered = self._begun(message)
        if isinstance(answered, bytes):
            if self._pending:
                self._pending.append(answered)
                self._uncounted = True
            else:
                self._send(answered)
        else:
            later = asyncio.ensure_future(answered)
            self._pending.append(later)
            later.add_done_callback(self._done)

    def _answer(self, message: bytes | Later, data: bytes) -> bytes | Awaitable[Answer]:
        self._take(message)
        assert self.method.wire_each is not None
        return self.method.wire_each(data)

    def _begun(self, message: Later) -> bytes | Awaitable[Answer]:
        """The answer to a message that must be inflated or joined first: a small one is inflated at once."""
        try:
            data = message.start()
        except CallFault as error:
            return _failed(error)
        if data is not None:
            return self._answer(message, data)
        self._completing = True
        return self._completed(message)

    async def _completed(self, message: Later) -> Answer:
        try:
            data = await self._rest(message)
        finally:
            self._completing = False
            self._next_soon()
        answered = self._answer(message, data)
        del message, data  # they are not kept until the answer is there
        return answered if isinstance(answered, bytes) else await answered

    def _done(self, answer: asyncio.Future[Answer]) -> None:
        if not answer.cancelled():
            answer.exception()  # it is raised where the answer has its turn
        if self._pending and answer is not self._pending[0]:
            self._uncounted = True
        self._next_soon()

    def _next_soon(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        self._scheduled = False
        if self.number in self.connection.calls:
            self._go_on()
            self.connection.flush_soon()

    def _send_answered(self) -> None:
        """Send the answers that no other comes before; raise the error of one that failed."""
        if self._untaken and not self._blocked():  # they must not count twice while they are sent
            self._untaken, self._uncounted = 0, True
            self._hold()
        while self._pending and not self._blocked():
            first = self._pending[0]
            if not isinstance(first, bytes) and not first.done():
                return
            self._pending.popleft()
            if isinstance(first, bytes):
                self._send(first)
            elif first.cancelled():
                raise Unavailable(EXITING)
            else:
                self._send(first.result())

    def _count_untaken(self) -> None:
        """Count the answers that are there and cannot be sent. Raises CallFault if there is no room for them."""
        self._uncounted = False
        there = [answer for answer in self._pending if isinstance(answer, bytes) or _succeeded(answer)]
        untaken = sum(PREFIX_BYTES + len(a if isinstance(a, bytes) else a.result()) for a in there)
        if untaken > self._untaken and not self.connection.holding.fits(untaken - self._untaken):
            raise CallFault(Status.RESOURCE_EXHAUSTED, BEHIND)
        self._untaken = untaken
        self._hold()

    def _send(self, data: Answer) -> None:
        connection = self.connection
        if not self._started:
            self._started = True
            connection.sender.start(self)
        if not connection.sender.fits(self, len(data)):
            raise CallFault(Status.RESOURCE_EXHAUSTED, UNTAKEN)
        connection.sender.message(self, data)
        connection.fruitful()
        connection.flush_soon()

    def _blocked(self) -> bool:
        """Whether the client has not taken the answers so far."""
        return self.connection.choked or self.connection.sender.waits(self)

    async def _drained(self) -> None:
        while self._blocked():
            await self.connection.drained()
        self._task = None
        self._next()


def _succeeded(answer: asyncio.Future[Answer]) -> bool:
    return answer.done() and not answer.cancelled() and answer.exception() is None


async def _failed(error: CallFault) -> bytes:
    raise error
