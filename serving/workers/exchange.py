"""What has to hold for all workers, passed on between them: changes, questions to all, readiness, counters."""

from __future__ import annotations

import asyncio
import logging

from normfold.serving.workers.frames import Frame
from normfold.serving.workers.journal import Change, Journal
from normfold.serving.workers.process import WorkerProcess

log = logging.getLogger(__name__)

#: A worker that does not answer a question within this time is passed over.
QUESTION_SECONDS = 5.0


class Exchange:
    """The workers of one server that are asked together; used on the supervisor's event loop only."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._joined: dict[int, WorkerProcess] = {}
        self._journal = Journal()
        #: Changes are made by one worker after the other asks for them, and none while a worker catches up.
        self._order = asyncio.Lock()
        #: The counters of each worker as it last told them, by model and version; a message of the protocol each.
        self._counters: dict[int, dict[tuple[str, str], bytes]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        #: True once every worker has listened at the same time.
        self.complete = False

    @property
    def listening(self) -> int:
        """How many workers answer clients."""
        return sum(worker.listening.done() for worker in self._joined.values())

    @property
    def ready(self) -> bool:
        """Whether the server as a whole is: every worker has been there, and those that are have all their models."""
        return self.complete and all(worker.ready for worker in self._joined.values())

    async def join(self, worker: WorkerProcess) -> bool:
        """Let a worker that has loaded its models catch up and listen; False when it is gone before it does."""
        async with self._order:
            for method, data in self._journal.changes():
                answer = await worker.call(method, data)
                if answer is not None and answer.fields["error"]:
                    log.error("worker %d lacks what the others have: %s", worker.number, answer.fields["details"])
            if worker.left:
                return False
            worker.link.say("restore", *self._counters.get(worker.number, {}).values())
            worker.link.say("listen")
            self._joined[worker.number] = worker
            listens = await worker.listening
        self.complete = self.complete or self.listening == self._count
        self._tell_readiness()
        return listens

    def leave(self, worker: WorkerProcess) -> None:
        """A worker has hung up."""
        if self._joined.get(worker.number) is worker:
            del self._joined[worker.number]
        worker.gone()
        self._tell_readiness()

    def hear(self, worker: WorkerProcess, frame: Frame) -> None:
        """Take in what ``worker`` says."""
        fields = frame.fields
        if frame.kind == "answer":
            worker.answered(frame)
        elif frame.kind == "ask":
            task = asyncio.create_task(self._ask(worker, frame))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif frame.kind == "counters":
            counters = self._counters.setdefault(worker.number, {})
            counters[fields["model"], fields["version"]] = frame.parts[0]
        elif frame.kind == "ready":
            worker.ready = fields["ready"]
            self._tell_readiness()
        elif frame.kind == "listening":
            worker.listening.set_result(True)

    async def _ask(self, asker: WorkerProcess, frame: Frame) -> None:
        """Have every worker do what ``asker`` was asked for, and give it all the answers."""
        method, data = frame.fields["method"], frame.parts[0]
        if frame.fields["change"]:
            async with self._order:
                answers = await self._everyone(method, data, None)
                if any(not answer.fields["error"] for answer in answers.values()):
                    self._remember(method, frame)
        else:
            answers = await self._everyone(method, data, QUESTION_SECONDS)
        absent = [blob for number, told in self._counters.items() if number not in answers for blob in told.values()]
        asker.link.say(
            "answers",
            *(answer.parts[0] for answer in answers.values()),
            *absent,
            id=frame.fields["id"],
            answers=[[number, answer.fields["error"], answer.fields["details"]] for number, answer in answers.items()],
        )

    def _remember(self, method: str, frame: Frame) -> None:
        parts = iter(frame.parts[1:])
        for key, kept in frame.fields["remember"]:
            if kept:
                self._journal.keep(key, Change(method, next(parts)))
            else:
                self._journal.forget(key)

    async def _everyone(self, method: str, data: bytes, seconds: float | None) -> dict[int, Frame]:
        """The answers of the workers by number, without those that are gone or late."""
        calls = {number: worker.call(method, data) for number, worker in self._joined.items()}
        if calls:
            await asyncio.wait(calls.values(), timeout=seconds)
        heard = {number: call.result() for number, call in calls.items() if call.done()}
        return {number: answer for number, answer in heard.items() if answer is not None}

    def _tell_readiness(self) -> None:
        for worker in self._joined.values():
            if worker.told_ready != self.ready:
                worker.told_ready = self.ready
                worker.link.say("others", ready=self.ready)
