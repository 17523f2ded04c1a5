"""A stream with one answer to each message: a message is answered as soon as it is there, without iterators and tasks.

messages    1  2  3  4  5 ...    at most EACH_IN_FLIGHT of them are under way, and UNSEEN before the first answer
answers     1  -  3  4           in the order of the messages: 3 and 4 wait for 2, and count among what is held

Fewer are under way if there is no room for their answers, each taken to be as large as the largest so far: the next
messages wait then. Answers that are larger than that may still be too many, and end the stream.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable

from normfold.serving.errors import Overloaded, Status, Unavailable
from normfold.serving.frontends.http2.call import RETRY_SECONDS, UNTAKEN, CallOwner
from normfold.serving.frontends.http2.joining import Later
from normfold.serving.frontends.http2.limits import PORTION_BYTES, CallFault
from normfold.serving.frontends.http2.messages import PART_BYTES, PREFIX_BYTES
from normfold.serving.frontends.http2.queued_call import QueuedCall
from normfold.serving.frontends.http2.requests import Asked
from normfold.serving.rpc.caller import CALLER
from normfold.serving.rpc.methods import EACH_IN_FLIGHT, Method
from normfold.serving.rpc.pieces import Answer
from normfold.serving.rpc.traffic import EXITING

#: Messages that each stream asks as soon as they come, whatever others do.
ASKED_AT_ONCE = 4
#: A large message counts as several messages: as one more for each of so many bytes. To inflate it, and to find the
#: name of its model, takes as long as to ask these.
COUNTED_BYTES = 1 << 14

#: Messages under way before the first answer shows how large they are: answers of up to 32 MB have room by default.
UNSEEN = 8

#: The details of the status of a stream whose answers, those that cannot be sent yet, are too many bytes.
BEHIND = "too many bytes of answers wait for the client, or for an answer before them"


class EachCall(QueuedCall):
    """A call of a method with ``wire_each``."""

    __slots__ = ("_completing", "_ending", "_largest", "_pending", "_released", "_scheduled", "_uncounted", "_waits")

    def __init__(self, connection: CallOwner, number: int, asked: Asked, method: Method) -> None:
        super().__init__(connection, number, asked, method)
        #: The answers under way and those behind them, in the order of their messages.
        self._pending: deque[bytes | asyncio.Future[Answer]] = deque()
        #: Whether answers may be there behind another one that are not counted yet.
        self._uncounted = False
        #: The size of the largest answer so far, in bytes; 0: there was none.
        self._largest = 0
        #: The bytes of answers that were counted, and for now are not: they are being sent, or will be counted again.
        self._released = 0
        #: Whether a message is being inflated or joined: the next ones wait for it, so that one at a time takes memory.
        self._completing = False
        #: Whether ``_next`` is certain to be called.
        self._scheduled = False
        #: Whether ``_turn`` is: messages wait to be asked.
        self._waits = False
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
        most = 0 if self._waits else ASKED_AT_ONCE
        if most and (more := len(self._queue) - most) > 0:
            most += self.service.turns.spare(more)
        self._go_on(most)

    def cancel(self) -> None:
        """Stop the answers under way: nobody waits for them any more."""
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

    def _go_on(self, most: int) -> int:
        """Send what is answered, and ask what may be asked now; how many messages that was, by their bytes.

        At most ``most`` are asked, and the others in the next turn.
        """
        asked = 0
        try:
            self._send_answered()
            while self._queue and not self._completing and not self._blocked() and not self._full():
                if asked >= most:
                    self._wait_for_turn()
                    break
                asked += 1 + self._ask() // COUNTED_BYTES
                self._send_answered()
            blocked = self._blocked()
            if self._pending and (self._uncounted or (blocked and self._task is None)):
                self._count_untaken()
            self._released = 0
        except Exception as error:
            if isinstance(error, CallFault):
                self.end(error.status, str(error))
            else:
                self.fail(error)
            error.__traceback__ = error.__context__ = None  # their frames have the answer, which has the error
            return asked
        self.grant(self._unread)
        if blocked:
            if self._task is None:
                self._task = asyncio.ensure_future(self._drained())
        elif not self._pending and not self._queue:
            if self._ending:
                self.fail(Unavailable(EXITING))
            elif self._all_there:
                self.end(Status.OK)
        return asked

    def _full(self) -> bool:
        """Whether no more messages may be under way now; one always may."""
        under_way = len(self._pending)
        if not under_way:
            return False
        if under_way >= (EACH_IN_FLIGHT if self._largest else UNSEEN):
            return True
        expected = (under_way + 1) * self._largest
        # what waits in the socket may count twice: also as a part of an answer that has not left whole
        return not self.connection.holding.has_room(expected + min(expected, PORTION_BYTES))

    def _ask(self) -> int:
        """Ask the method the first message that waits; its bytes, of one that is inflated as far as it is now."""
        message = self._queue.popleft()
        CALLER.set(self)
        answered: bytes | Awaitable[Answer]
        if isinstance(message, bytes):
            answered = self._answer(message, message)
        else:
            answered = self._begun(message)
        if isinstance(answered, bytes):
            self._largest = max(self._largest, len(answered), 1)
            if self._pending:
                self._pending.append(answered)
                self._uncounted = True
            else:
                self._send(answered)
        else:
            later = asyncio.ensure_future(answered)
            self._pending.append(later)
            later.add_done_callback(self._done)
        return len(message) if isinstance(message, bytes) else message.size

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
        if _succeeded(answer):
            self._largest = max(self._largest, len(answer.result()), 1)
        if self._pending and (answer is not self._pending[0] or self._task is not None):
            self._uncounted = True
        self._next_soon()

    def _next_soon(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        self._scheduled = False
        if not self._over and self.number in self.connection.calls:
            self._go_on(0)
            self.connection.flush_soon()

    def _wait_for_turn(self) -> None:
        if not self._waits:
            self._waits = True
            self.connection.steps.add(self._turn)

    def _turn(self, most: int) -> int:
        self._waits = False
        if self._over or self.number not in self.connection.calls:
            return 0
        self.connection.flush_soon()
        return self._go_on(most)

    def _send_answered(self) -> None:
        """Send the answers that no other comes before; raise the error of one that failed."""
        if self._untaken and not self._blocked():  # they must not count twice while they are sent
            self._released, self._untaken, self._uncounted = self._untaken, 0, True
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
        """Count the answers that are there and cannot be sent.

        Raises Overloaded if they have become more, and there is no room for them.
        """
        self._uncounted = False
        there = [answer for answer in self._pending if isinstance(answer, bytes) or _succeeded(answer)]
        untaken = sum(PREFIX_BYTES + len(a if isinstance(a, bytes) else a.result()) for a in there)
        more = untaken - self._untaken
        if more > self._released and not self.connection.holding.fits(more):
            raise Overloaded(BEHIND, RETRY_SECONDS)
        self._untaken = untaken
        self._count(self._bytes)

    def _send(self, data: Answer) -> None:
        connection = self.connection
        if not self._started:
            self._started = True
            connection.sender.start(self)
        if PREFIX_BYTES + len(data) > self._released and not connection.sender.fits(self, len(data)):
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
    """Whether the answer is there; the error of one that failed is raised where it has its turn."""
    return answer.done() and not answer.cancelled() and answer.exception() is None


async def _failed(error: CallFault) -> bytes:
    raise error
