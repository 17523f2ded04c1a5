"""What the supervisor does with signals, and with workers that cannot be started."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest

from normfold.serving.errors import WorkersError
from normfold.serving.process import children
from normfold.serving.settings import ServerConfig
from normfold.serving.workers import supervisor as supervisors
from normfold.serving.workers.messages import (
    Listening,
    LookForChanges,
    LookNow,
    ModelsLoaded,
    StartFailed,
    StartListening,
)
from normfold.serving.workers.process import WorkerProcess
from normfold.serving.workers.supervisor import Supervisor


class Link:
    """The connection to a worker that listens as soon as it may."""

    def __init__(self):
        self.messages = asyncio.Queue()
        self.messages.put_nowait(ModelsLoaded(()))
        self.sent = []

    def send(self, message):
        self.sent.append(message)
        if isinstance(message, StartListening):
            self.messages.put_nowait(Listening())

    async def receive(self):
        return await self.messages.get()

    async def close(self):
        pass


class Fake(WorkerProcess):
    """A worker without a process; a signal ends it."""

    def __init__(self, number):
        self.ended = asyncio.get_running_loop().create_future()
        super().__init__(number, SimpleNamespace(wait=self.wait), Link())
        self.signals = []

    @property
    def looks(self):
        return [message for message in self.link.sent if isinstance(message, LookNow)]

    async def wait(self):
        return await asyncio.shield(self.ended)

    def send_signal(self, number):
        self.signals.append(number)
        if not self.ended.done():
            self.link.messages.put_nowait(None)
            self.ended.set_result(0)


@pytest.fixture
def no_delay(monkeypatch):
    monkeypatch.setattr(supervisors, "FIRST_DELAY_SECONDS", 0.001)
    monkeypatch.setattr(supervisors, "LONGEST_DELAY_SECONDS", 0.001)


def supervisor_of(workers: int, **options: float) -> Supervisor:
    return Supervisor(ServerConfig(Path("r"), listen="127.0.0.1:0", metrics_listen="off", **options), workers)


async def until_ready(supervisor: Supervisor) -> asyncio.Task[bool]:
    """Run ``supervisor``; its task, once all workers listen."""
    ready = asyncio.Event()
    running = asyncio.create_task(supervisor.run(lambda started: ready.set()))
    await asyncio.wait_for(ready.wait(), 20)
    return running


def no_process():
    return BlockingIOError(11, "Resource temporarily unavailable")


def test_a_worker_that_cannot_be_forked_is_tried_again_and_the_others_go_on(monkeypatch, no_delay, caplog):
    async def run():
        supervisor = supervisor_of(2)
        made = []
        failures = [no_process(), OSError(12, "Cannot allocate memory"), *(RuntimeError("no thread") for _ in range(5))]

        async def start(number, config, again):
            if len(made) >= 2 and failures:
                raise failures.pop(0)
            made.append(Fake(number))
            return made[-1]

        monkeypatch.setattr(WorkerProcess, "start", start)
        running = await until_ready(supervisor)
        first, second = sorted(made, key=lambda worker: worker.number)
        second.send_signal(signal.SIGKILL)
        while len(made) < 3 and not running.done():
            await asyncio.sleep(0.001)
        assert not running.done()
        assert made[2].number == 2
        assert await asyncio.wait_for(made[2].listening, 20)
        assert first.signals == []
        supervisor._on_signal()
        assert await asyncio.wait_for(running, 20)
        assert first.signals[0] == signal.SIGTERM
        assert LookForChanges() not in made[2].link.sent  # the first one, which looked, ends first

    asyncio.run(run())
    assert "worker 2 could not be started: Resource temporarily unavailable; another is started in" in caplog.text
    assert "worker 2 could not be started: Cannot allocate memory" in caplog.text


def test_what_killed_workers_leave_is_collected_while_the_server_runs(monkeypatch):
    async def run():
        begun, ended = asyncio.Event(), asyncio.Event()

        async def collect(seconds):
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        async def start(number, config, again):
            return Fake(number)

        monkeypatch.setattr(children, "collect_orphans", collect)
        monkeypatch.setattr(WorkerProcess, "start", start)
        supervisor = supervisor_of(1)
        running = await until_ready(supervisor)
        await asyncio.wait_for(begun.wait(), 20)
        assert not ended.is_set()
        supervisor._on_signal()
        assert await asyncio.wait_for(running, 20)
        await asyncio.wait_for(ended.wait(), 20)

    asyncio.run(run())


def test_a_server_none_of_whose_workers_can_be_forked_ends_with_the_reason(monkeypatch, no_delay):
    tries = []

    async def start(number, config, again):
        tries.append(number)
        raise no_process()

    monkeypatch.setattr(WorkerProcess, "start", start)

    async def run():
        await supervisor_of(1).run(lambda started: None)

    with pytest.raises(WorkersError, match="worker 1 could not be started: Resource temporarily unavailable, 3 times"):
        asyncio.run(run())
    assert tries == [1, 1, 1]


def test_a_hang_up_before_any_worker_listens_reaches_the_first_which_looks(monkeypatch):
    async def run():
        supervisor = supervisor_of(2)
        made = {}

        async def start(number, config, again):
            if not made:
                supervisor._exchange.look_now()
            made[number] = Fake(number)
            return made[number]

        monkeypatch.setattr(WorkerProcess, "start", start)
        running = await until_ready(supervisor)
        assert [made[number].looks for number in (1, 2)] == [[LookNow(1)], []]
        os.kill(os.getpid(), signal.SIGHUP)
        while len(made[1].looks) < 2 and not running.done():
            await asyncio.sleep(0.001)
        assert made[1].looks == [LookNow(1), LookNow(2)]
        assert made[2].looks == []
        supervisor._on_signal()
        await asyncio.wait_for(running, 20)

    asyncio.run(run())


def test_a_hang_up_reaches_another_worker_while_the_first_cannot_start(monkeypatch, no_delay):
    async def run():
        supervisor = supervisor_of(2)
        made = {}

        async def start(number, config, again):
            if number in made:
                raise no_process()
            made[number] = Fake(number)
            return made[number]

        monkeypatch.setattr(WorkerProcess, "start", start)
        running = await until_ready(supervisor)
        made[1].send_signal(signal.SIGKILL)
        while supervisor._exchange.looking is not made[2] and not running.done():
            await asyncio.sleep(0.001)
        supervisor._exchange.look_now()
        assert made[2].looks == [LookNow(1)]
        assert [type(each) for each in made[2].link.sent].count(LookForChanges) == 1
        supervisor._on_signal()
        await asyncio.wait_for(running, 20)

    asyncio.run(run())


def test_a_hang_up_between_two_lives_of_the_first_worker_is_for_the_second(monkeypatch, no_delay):
    async def run():
        supervisor = supervisor_of(1)
        made, failed = [], []

        async def start(number, config, again):
            if made and not failed:
                failed.append(number)
                supervisor._exchange.look_now()
                raise no_process()
            assert again is bool(made)
            made.append(Fake(number))
            return made[-1]

        monkeypatch.setattr(WorkerProcess, "start", start)
        running = await until_ready(supervisor)
        made[0].send_signal(signal.SIGKILL)
        while (len(made) < 2 or not made[1].looks) and not running.done():
            await asyncio.sleep(0.001)
        assert made[1].looks == [LookNow(1)]
        supervisor._on_signal()
        await asyncio.wait_for(running, 20)

    asyncio.run(run())


def test_a_worker_that_is_deaf_before_its_first_ping_is_replaced(monkeypatch, no_delay, caplog):
    monkeypatch.setattr(supervisors, "PING_SECONDS", 0.5)

    async def run():
        supervisor = supervisor_of(2, worker_seconds=2)
        made = []

        async def start(number, config, again):
            made.append(Fake(number))
            return made[-1]

        monkeypatch.setattr(WorkerProcess, "start", start)
        running = await until_ready(supervisor)
        async with asyncio.timeout(20):
            while len(made) < 4:  # none of them answers a ping
                await asyncio.sleep(0.01)
        supervisor._on_signal()
        assert await asyncio.wait_for(running, 20)
        assert made[0].signals == made[1].signals == [signal.SIGKILL]

    asyncio.run(run())
    assert "worker 1 has not answered for 2 s and is ended" in caplog.text


def test_a_worker_that_has_left_but_does_not_end_is_ended(monkeypatch, no_delay, caplog):
    monkeypatch.setattr(supervisors, "MARGIN_SECONDS", 0.05)

    async def run():
        supervisor = supervisor_of(2)
        made = []

        async def start(number, config, again):
            made.append(Fake(number))
            return made[-1]

        monkeypatch.setattr(WorkerProcess, "start", start)
        running = await until_ready(supervisor)
        made[0].link.messages.put_nowait(None)
        async with asyncio.timeout(20):
            while len(made) < 3:
                await asyncio.sleep(0.001)
        assert made[0].signals == [signal.SIGKILL]
        supervisor._on_signal()
        await asyncio.wait_for(running, 20)

    asyncio.run(run())
    assert "has left but has not ended within 0.05 s and is ended" in caplog.text


class Without(Link):
    """The connection to a worker that lacks a model which was served before; when it is refused, the others end."""

    def __init__(self, worker, exchange):
        super().__init__()
        self._worker, self._exchange = worker, exchange

    def send(self, message):
        self.sent.append(message)
        if isinstance(message, StartListening):
            if not message.must_have_all:
                self.messages.put_nowait(Listening())
                return
            for other in self._exchange.listening:
                other.send_signal(signal.SIGKILL)
            self.messages.put_nowait(StartFailed("'m' version 1, which the other workers serve, cannot be loaded", 1))
            self._worker.send_signal(signal.SIGKILL)


def test_no_server_ends_for_a_model_that_can_no_longer_be_loaded(monkeypatch, no_delay, caplog):
    async def run():
        supervisor = supervisor_of(2)
        made = []

        async def start(number, config, again):
            made.append(Fake(number))
            if len(made) > 2:
                made[-1].link = Without(made[-1], supervisor._exchange)
            return made[-1]

        monkeypatch.setattr(WorkerProcess, "start", start)
        running = await until_ready(supervisor)
        for worker in made[:2]:
            worker.send_signal(signal.SIGKILL)
        async with asyncio.timeout(20):
            while sum(worker.listening.done() and worker.listening.result() for worker in made[2:]) < 3:
                assert not running.done()
                await asyncio.sleep(0.001)
        supervisor._on_signal()
        await asyncio.wait_for(running, 20)

    asyncio.run(run())
    assert caplog.text.count("could not start: 'm' version 1, which the other workers serve, cannot be loaded") >= 4
