"""Messages between supervisor and worker arrive as they were sent, in both directions."""

from __future__ import annotations

import asyncio
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from normfold.serving.catalog.served import ServedModel
from normfold.serving.process import loops
from normfold.serving.workers.frames import PIECE_BYTES, SupervisorEnd, WorkerEnd, supervisor_end, worker_end
from normfold.serving.workers.messages import (
    AllAnswered,
    AskAll,
    CountersChanged,
    Failing,
    InService,
    Listening,
    Looked,
    LookForChanges,
    LookNow,
    ModelsLoaded,
    ModelsReady,
    Perform,
    Performed,
    Ping,
    Pong,
    Remember,
    RestoreCounters,
    Serve,
    ServerReady,
    StartFailed,
    StartListening,
    WorkerAnswer,
)

BIG = bytes(range(256)) * 20_000  # more than any buffer between them
TO_WORKER = [
    Perform(7, "/a.B/C", BIG),
    AllAnswered(7, (WorkerAnswer(1, "", "", BIG), WorkerAnswer(2, "NotFound", "no 'ü\n'", b"")), (b"", b"x")),
    ServerReady(True),
    Failing((("m", (0, 1)),), ("n",)),
    RestoreCounters(()),
    Serve(None),
    Serve((ServedModel("m", (1, 20), b"\x00", ""), ServedModel("n", (), b"", "no 'ü'"))),
    Ping(),
    StartListening(False),
    LookForChanges(),
    LookNow(3),
]
TO_SUPERVISOR = [
    AskAll(7, "/a.B/C", BIG, True, (Remember(("model", "ü\n"), b"one"), Remember(("region",), None))),
    Performed(7, WorkerAnswer(1, "", "", b"done")),
    ModelsReady(False),
    CountersChanged("m", "1", b"\x00"),
    InService((ServedModel("m", (1,), b"x", "", refused=((2, "no 'ü'"),), wanted=False),)),
    Looked(3),
    Pong(),
    ModelsLoaded((("m version 1", True), ("n was not loaded", False))),
    Listening(),
    StartFailed("cannot listen", 3),
]


def between(from_supervisor, from_worker):
    """The results of ``from_supervisor`` and ``from_worker``, run together at the two ends of a connection."""

    async def run():
        one, two = socket.socketpair()
        supervisor, worker = await supervisor_end(one), await worker_end(two)
        try:
            return await asyncio.wait_for(asyncio.gather(from_supervisor(supervisor), from_worker(worker)), 30)
        finally:
            await supervisor.close()
            await worker.close()

    return asyncio.run(run())


def test_messages_arrive_in_order_and_whole():
    async def exchange(end: SupervisorEnd | WorkerEnd, sent, expected):
        for message in sent:
            end.send(message)
        return [await end.receive() for _ in expected]

    at_supervisor, at_worker = between(
        lambda end: exchange(end, TO_WORKER, TO_SUPERVISOR), lambda end: exchange(end, TO_SUPERVISOR, TO_WORKER)
    )
    assert at_worker == TO_WORKER
    assert at_supervisor == TO_SUPERVISOR


def test_a_closed_end_is_none_even_in_the_middle_of_a_frame():
    async def send(end: SupervisorEnd):
        end.send(ServerReady(True))
        end._writer.write(b"\x10\x00\x00\x00{")
        await end.close()

    async def receive(end: WorkerEnd):
        return [await end.receive(), await end.receive()]

    assert between(send, receive)[1] == [ServerReady(True), None]


def test_a_message_to_an_end_that_has_closed_is_dropped():
    async def run():
        one, two = socket.socketpair()
        worker = await worker_end(one)
        two.close()
        while not worker._writer.is_closing():
            worker.send(Pong())
            await asyncio.sleep(0)
        await asyncio.sleep(0)  # now its transport is closed, too
        worker.send(Pong())
        await worker.close()
        worker.send(Pong())
        return await worker.receive()

    assert loops.run(asyncio.wait_for(run(), 20)) is None


def test_a_message_of_the_other_direction_is_not_taken():
    async def send(end):
        end.send(Listening())

    async def receive(end: WorkerEnd):
        with pytest.raises(KeyError, match="Listening"):
            await end.receive()

    between(send, receive)


def test_a_large_message_is_sent_and_received_in_pieces_and_others_keep_their_order(monkeypatch):
    sizes = {"written": [], "read": []}
    file = bytes(5 * PIECE_BYTES + 7)
    asked = AskAll(7, "/a.B/C", file, True, (Remember(("model", "m"), file),))
    sent = [Pong(), asked, Listening(), Performed(8, WorkerAnswer(1, "", "", file))]

    def noting(kind, function, size_of):
        def noted(*args):
            sizes[kind].append(size_of(args[-1]))
            return function(*args)

        return noted

    async def send(end: WorkerEnd):
        monkeypatch.setattr(end._writer, "write", noting("written", end._writer.write, len))
        monkeypatch.setattr(
            end._writer, "writelines", noting("written", end._writer.writelines, lambda parts: sum(map(len, parts)))
        )
        for message in sent:
            end.send(message)

    async def receive(end: SupervisorEnd):
        monkeypatch.setattr(end._reader, "readexactly", noting("read", end._reader.readexactly, int))
        return [await end.receive() for _ in sent]

    assert between(receive, send)[0] == sent
    for kind, found in sizes.items():
        assert max(found) == PIECE_BYTES, kind
        assert 2 * len(file) < sum(found) < 2 * len(file) + 2000, kind  # the file and what is to be remembered are one


def test_what_is_being_sent_is_sent_before_the_end():
    async def send(end: SupervisorEnd):
        end.send(Perform(7, "/a.B/C", BIG))
        await end.close()

    async def receive(end: WorkerEnd):
        return [await end.receive() for _ in range(2)]

    assert between(send, receive)[1] == [Perform(7, "/a.B/C", BIG), None]


@pytest.mark.parametrize("run", [asyncio.run, loops.run])
def test_the_last_message_of_a_worker_arrives_although_the_supervisor_writes_before_it_reads(run):
    """A write to a closed socket took it away: the worker "ended with exit code 1", and nobody said why."""
    ours, theirs = socket.socketpair()
    sent = threading.Event()

    async def work():
        worker = await worker_end(theirs)
        worker.send(StartFailed("why", 1))
        finishing = asyncio.create_task(worker.finish())
        await asyncio.wait([finishing], timeout=0.1)
        sent.set()
        await finishing

    async def supervise():
        supervisor = await supervisor_end(ours)
        with ThreadPoolExecutor(1) as thread:
            done = thread.submit(run, work())
            assert sent.wait(20)  # this loop sees nothing meanwhile
            supervisor.send(Ping())
            received = [await supervisor.receive(), await supervisor.receive()]
            await supervisor.close()
            done.result(20)
        return received

    assert run(supervise()) == [StartFailed("why", 1), None]
