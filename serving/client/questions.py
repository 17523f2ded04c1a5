"""The metadata of models that an ``AsyncClient`` keeps: asked for once, however many tasks want it at the same time.

A question belongs to all that wait for it, and to no one's timeout: each waits as long as its own, and the question
lives as long as anybody waits. One that failed or was cancelled is forgotten, and so is one of another event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic

from normfold.serving.client.errors import WITHOUT_METADATA, ClientError
from normfold.serving.client.metadata import ModelMetadata
from normfold.serving.client.time_left import TimeLeft
from normfold.serving.errors import Status

#: The name and the version of a model.
Key = tuple[str, str]
#: Asks for the metadata of a model, with a name, a version and a time in seconds.
Ask = Callable[[str, str, float], Awaitable[ModelMetadata]]
#: A question is asked with this time at least.
_LEAST_SECONDS = 1e-3


class _Question:
    """One question under way."""

    def __init__(self, until: float) -> None:
        self.task: asyncio.Task[ModelMetadata] | None = None
        self.waiting = 0
        #: The latest time at which one that waits gives up, by the clock of the event loop.
        self.until = until

    def lives_on(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether a task of ``loop`` may wait for it."""
        return self.task is not None and self.task.get_loop() is loop and not self.task.done()


class Questions:
    """The metadata that is known, and the questions under way."""

    def __init__(self) -> None:
        self.known: dict[Key, ModelMetadata] = {}
        self._asked: dict[Key, _Question] = {}
        #: Models of which the server gives no metadata.
        self._without: set[Key] = set()

    def clear(self) -> None:
        """Forget everything; those that wait get the answer to what they asked."""
        self.known.clear()
        self._asked.clear()
        self._without = set()  # a question under way adds to the one before

    async def answer_if_any(self, key: Key, left: TimeLeft, ask: Ask) -> ModelMetadata | None:
        """The metadata of the model ``key``; None where the server gives none. Raises ClientError at the deadline."""
        without = self._without
        if key in without:
            return None
        try:
            return await self.answer_within(key, left, ask)
        except ClientError as error:
            if error.code is Status.DEADLINE_EXCEEDED:
                raise
            if error.code in WITHOUT_METADATA:
                without.add(key)
            return None

    async def answer_within(self, key: Key, left: TimeLeft, ask: Ask) -> ModelMetadata:
        """The metadata of the model ``key``; what it takes is taken off ``left``. Raises as ``answer``."""
        begin = monotonic()
        try:
            return await self.answer(key, left.seconds(), ask)
        finally:
            left.passed_since(begin)

    async def answer(self, key: Key, seconds: float, ask: Ask) -> ModelMetadata:
        """The metadata of the model ``key`` within ``seconds``. Raises what ``ask`` does, and ClientError."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while True:
            question = self._asked.get(key)
            if question is None or not question.lives_on(loop):
                question = self._asked[key] = _Question(deadline)
                question.task = loop.create_task(self._find_out(key, question, ask))
                question.task.add_done_callback(_seen)
            answered = await self._wait(key, question, deadline)
            if answered is None:
                raise ClientError(Status.DEADLINE_EXCEEDED, "Deadline Exceeded")
            if answered.cancelled():  # by somebody else, for all that wait for it here have waited on
                continue
            error = answered.exception()
            if isinstance(error, ClientError):
                raise ClientError(error.code, error.details)  # each caller gets an exception object of its own
            return answered.result()

    async def _wait(self, key: Key, question: _Question, deadline: float) -> asyncio.Task[ModelMetadata] | None:
        """Wait for the end of ``question``; None: ``deadline`` came before."""
        task = question.task
        assert task is not None
        loop = task.get_loop()
        question.waiting += 1
        question.until = max(question.until, deadline)
        try:
            await asyncio.wait([task], timeout=max(deadline - loop.time(), 0.0))
        finally:
            question.waiting -= 1
            if not question.waiting and not task.done():
                self._forget(key, question)
                if not loop.is_closed():
                    task.cancel()
        return task if task.done() else None

    async def _find_out(self, key: Key, question: _Question, ask: Ask) -> ModelMetadata:
        """Ask; ask again if the time of the first caller ran out while another caller with more time waits."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                until = question.until
                try:
                    found = await ask(*key, max(until - loop.time(), _LEAST_SECONDS))
                except ClientError as error:
                    over = error.code is Status.DEADLINE_EXCEEDED
                    if not over or question.until <= max(until, loop.time()):
                        raise
                else:
                    if self._asked.get(key) is question:
                        self.known[key] = found
                    return found
        finally:
            self._forget(key, question)

    def _forget(self, key: Key, question: _Question) -> None:
        if self._asked.get(key) is question:
            del self._asked[key]


def _seen(task: asyncio.Task[ModelMetadata]) -> None:
    """Mark the failure of a question as seen by asyncio: nobody may be left to await it."""
    if not task.cancelled():
        task.exception()
