"""Passes on between the workers everything that concerns all: changes, questions, readiness, counters."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Iterable, Mapping, Sequence
from weakref import WeakValueDictionary

from normfold.serving.catalog.served import ServedModel
from normfold.serving.errors import Unavailable
from normfold.serving.wording import quoted
from normfold.serving.workers import agreement
from normfold.serving.workers.journal import Change, Journal
from normfold.serving.workers.messages import (
    MODEL,
    AllAnswered,
    AskAll,
    CountersChanged,
    Failing,
    InService,
    Listening,
    Looked,
    LookForChanges,
    LookNow,
    ModelsReady,
    Performed,
    Remember,
    RestoreCounters,
    Serve,
    ServerReady,
    StartListening,
    WorkerAnswer,
)
from normfold.serving.workers.process import WorkerProcess

log = logging.getLogger(__name__)

#: A question to all is answered without the workers that take longer than this. It must be clearly less than the time
#: that the HTTP port waits for the counters (LOOP_SECONDS in ``service/http.py``), or one worker that hangs hides all.
QUESTION_SECONDS = 2.0

#: The same for RepositoryIndex, for which each worker reads the disk.
INDEX_SECONDS = 5.0

#: While no other worker listens, a model that cannot be loaded makes at most this many starts in a row fail. The reason
#: may be gone at the next start: too little memory while all workers load, or a disk that was away.
MOST_REFUSED_STARTS = 2

#: The most times that all workers load a model again because they have read different files.
MOST_UNLIKE_LOADS = 3


class Exchange:
    """The workers of one server that are asked together; used on the supervisor's event loop only."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._joined: dict[int, WorkerProcess] = {}
        self._journal = Journal()
        #: Held for a change, of one model or of others, and while a worker catches up: all have the same order.
        self._order = asyncio.Lock()
        self._order_of: WeakValueDictionary[tuple[str, ...], asyncio.Lock] = WeakValueDictionary()
        #: The models that the workers served last; None before any of them did.
        self._served: tuple[ServedModel, ...] | None = None
        #: The counters that each worker reported last, a SnapshotResponse for each model and version, and one.
        self._counters: dict[int, dict[tuple[str, str], bytes]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        #: The models that some workers cannot load, as it was sent last to all of them.
        self._failing: tuple[tuple[str, tuple[int, ...]], ...] = ()
        #: Whether there was a time when every worker listened.
        self.complete = False
        #: The worker that looks for changes of the repository; None while no worker can.
        self.looking: WorkerProcess | None = None
        #: How often somebody asked to look now, and the last of these times for which a worker has looked.
        self._asked, self._looked = 0, 0
        #: Whether the server stops: then no other worker takes the place of one that looked.
        self.stopping = False

    @property
    def listening(self) -> list[WorkerProcess]:
        """The workers that answer clients, by number."""
        return [worker for _, worker in sorted(self._joined.items()) if worker.listening.done()]

    @property
    def ready(self) -> bool:
        """Whether the whole server is ready: all workers have listened, and those that do have all their models."""
        return self.complete and all(worker.ready for worker in self.listening)

    @property
    def serve(self) -> Serve:
        """The models that a worker that starts now is to load: for each the report that has the highest versions.

        Of reports with the same versions it is one that says why other versions do not answer, as in the index of all
        workers. While no worker listens, any content of these versions' files will do: nobody answers otherwise.
        """
        best: dict[str, ServedModel] = {}
        for worker in self.listening:
            for model in worker.served:
                if model.name not in best or agreement.rank(model) > agreement.rank(best[model.name]):
                    best[model.name] = model
        if self.listening:
            self._served = tuple(best.values())
        elif self._served is not None:
            return Serve(tuple(dataclasses.replace(model, digests=()) for model in self._served))
        return Serve(self._served)

    async def join(self, worker: WorkerProcess) -> bool:
        """Let a worker that has loaded its models catch up and listen; False when it ends before it listens."""
        async with self._order:
            done: list[Change] = []
            while missing := [each for each in self._journal.changes() if not any(each is other for other in done)]:
                done += missing
                worker.link.send(self.serve)
                for change in missing:
                    answer = await worker.perform(change.method, change.data)
                    if answer is not None and answer.error:
                        log.error("worker %d could not repeat %s: %s", worker.number, change.method, answer.details)
            if worker.left:
                return False
            if self.complete:  # others may have come to listen since it asked what to load
                worker.link.send(self.serve)
            worker.link.send(RestoreCounters(tuple(self._counters.get(worker.number, {}).values())))
            if self.ready:
                worker.server_ready = True
                worker.link.send(ServerReady(True))  # before it listens: its first client may ask for it
            worker.link.send(Failing(self._failing))
            worker.beside_others = bool(self.listening)
            must = self.complete and (worker.beside_others or worker.failed_starts < MOST_REFUSED_STARTS)
            worker.link.send(StartListening(must_have_all=must))
            self._joined[worker.number] = worker
            listens = await worker.listening
        before, self.complete = self.complete, self.complete or len(self.listening) == self._count
        self._have_one_look(() if before else self._unlike_models())
        self._send_readiness()
        self._send_failing()
        return listens

    def leave(self, worker: WorkerProcess) -> None:
        """Take out a worker that has closed its connection."""
        if self._joined.get(worker.number) is worker:
            self._served = self.serve.models
            del self._joined[worker.number]
        worker.gone()
        if self.looking is worker:
            self.looking = None
        self._have_one_look()
        self._send_readiness()
        self._send_failing()

    def handle(
        self,
        worker: WorkerProcess,
        message: Performed | AskAll | CountersChanged | ModelsReady | InService | Looked | Listening,
    ) -> None:
        """Do what a message of ``worker`` asks for."""
        match message:
            case Performed():
                worker.performed(message)
            case AskAll():
                task = asyncio.create_task(self._ask_all(worker, message))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            case CountersChanged():
                counters = self._counters.setdefault(worker.number, {})
                counters[message.model, message.version] = message.counters
            case ModelsReady():
                worker.ready = message.ready
                self._send_readiness()
            case InService():
                before, worker.served = worker.served, message.models
                self._send_failing(agreement.recovered(before, worker.served))
            case Looked():
                self._looked = message.number
            case Listening():
                worker.listening.set_result(True)

    async def _ask_all(self, asker: WorkerProcess, asked: AskAll) -> None:
        """Have every worker carry out the request of ``asker``, and send it all the answers."""
        if asked.change:
            async with self._lock(asked):
                before, answered = list(self._joined.values()), self._answers(asked)
                answers = await self._everyone(asked, None, before)
                # a load that failed may have put a lower version in service
                if any(not answer.error for answer in answers.values()) or (self._answers(asked) and not answered):
                    self._keep(asked.method, asked.remember)
                    # while the others worked; one of them may have the number of one that answered and has ended
                    while joined := [worker for worker in self._joined.values() if worker not in before]:
                        before += joined
                        answers |= await self._everyone(asked, None, joined)
                if any(not answer.error for answer in answers.values()):
                    answers |= await self._again(asked, answers)
                    answers |= await self._alike(asked, answers)
        else:
            seconds = INDEX_SECONDS if asked.method.endswith("/RepositoryIndex") else QUESTION_SECONDS
            answers = await self._everyone(asked, seconds, self._joined.values())
        gone = tuple(one for number, each in self._counters.items() if number not in answers for one in each.values())
        asker.link.send(AllAnswered(asked.number, tuple(answers.values()), gone))

    def _answers(self, asked: AskAll) -> bool:
        """Whether a worker has a version that answers of the model that ``asked`` changes."""
        served = (each for worker in self._joined.values() for each in worker.served)
        return any(each.answers for each in served if each.name in asked.models)

    async def _again(self, asked: AskAll, answers: Mapping[int, WorkerAnswer]) -> dict[int, WorkerAnswer]:
        """The answers of the workers that could not do what others did, each asked once more.

        They are asked one after the other: the memory may have been too small for all of them at once.
        """
        second: dict[int, WorkerAnswer] = {}
        for number in [number for number, answer in answers.items() if answer.error]:
            if (worker := self._joined.get(number)) is not None:
                log.debug("worker %d could not do what others did, and tries again: %s", number, asked.method)
                second |= await self._everyone(asked, None, [worker])
        return second

    async def _alike(self, asked: AskAll, answers: Mapping[int, WorkerAnswer]) -> Mapping[int, WorkerAnswer]:
        """``answers``; where workers have loaded a model from different files, those to another load in all.

        Somebody has written to the files while the workers read them.
        """
        names, loads = asked.models, 1
        while agreement.unlike((worker.served for worker in self.listening), names) and not any(
            answer.error for answer in answers.values()
        ):
            if loads > MOST_UNLIKE_LOADS:
                why = "the files of the model change again and again while the workers read them: load it again"
                return {number: WorkerAnswer(number, Unavailable.__name__, why, b"") for number in answers}
            log.warning("the workers have read different files of %s; all load it again", ", ".join(map(quoted, names)))
            answers = await self._everyone(asked, None, list(self._joined.values()))
            loads += 1
        return answers

    def _unlike_models(self) -> tuple[str, ...]:
        """The models that the workers have loaded from different files, because these changed while all started.

        Those that a client loads or unloads at this moment are left to that change: it makes the workers alike, and a
        load from the repository after it would undo it.
        """
        reports: dict[str, list[object]] = {}
        for model in (each for worker in self.listening for each in worker.served):
            reports.setdefault(model.name, []).append(agreement.read(model))
        everywhere = len(self.listening)
        under_way = {key[1] for key, lock in self._order_of.items() if lock.locked()}
        unlike = (name for name, each in reports.items() if len(each) < everywhere or len(set(each)) > 1)
        return tuple(name for name in unlike if name not in under_way)

    def _lock(self, asked: AskAll) -> asyncio.Lock:
        """The lock that puts ``asked`` and others like it into one order for all workers."""
        keys = [part.key for part in asked.remember if part.key[:1] == MODEL]
        return self._order_of.setdefault(keys[0], asyncio.Lock()) if keys else self._order

    def _keep(self, method: str, remember: Sequence[Remember]) -> None:
        known = {model.name for worker in self._joined.values() for model in worker.served}  # clients may name any
        for part in remember:
            if part.request is None or (method.endswith("/RepositoryModelUnload") and part.key[1] not in known):
                self._journal.forget(part.key)
            else:
                self._journal.keep(part.key, Change(method, part.request))

    async def _everyone(
        self, asked: AskAll, seconds: float | None, workers: Iterable[WorkerProcess]
    ) -> dict[int, WorkerAnswer]:
        """The answers of ``workers`` by number, without those that have ended or take longer than ``seconds``."""
        calls = {worker.number: worker.perform(asked.method, asked.request) for worker in workers}
        if calls:
            await asyncio.wait(calls.values(), timeout=seconds)
        results = {number: call.result() for number, call in calls.items() if call.done()}
        return {number: answer for number, answer in results.items() if answer is not None}

    def _have_one_look(self, unlike: tuple[str, ...] = ()) -> None:
        """Have one worker look for changes. A worker that cannot start must not keep the others from finding them."""
        if self.looking is None and self.complete and self.listening and not self.stopping:
            self.looking = self.listening[0]
            self.looking.link.send(LookForChanges(unlike))
            if self._looked < self._asked:
                self.looking.link.send(LookNow(self._asked))

    def look_now(self) -> None:
        """Have a worker look for changes now; if there is none that can, or it ends before, the next one does."""
        self._asked += 1
        if self.looking is not None:
            self.looking.link.send(LookNow(self._asked))

    def _send_readiness(self) -> None:
        for worker in self._joined.values():
            if worker.server_ready != self.ready:
                worker.server_ready = self.ready
                worker.link.send(ServerReady(self.ready))

    def _send_failing(self, loaded: tuple[str, ...] = ()) -> None:
        """Have all know which models some cannot load; ``loaded``: lazy ones that a worker has loaded after all."""
        failing = agreement.failing(worker.served for worker in self.listening)
        if loaded or failing != self._failing:
            self._failing = failing
            for worker in self._joined.values():
                worker.link.send(Failing(failing, loaded))
