"""Messages between supervisor and worker arrive as they were sent, in both directions."""

from __future__ import annotations

import asyncio
import socket

import pytest

from normfold.serving.workers.frames import SupervisorEnd, WorkerEnd, supervisor_end, worker_end
from normfold.serving.workers.messages import (
    AllAnswered,
    AskAll,
    CountersChanged,
    InService,
    Listening,
    ModelsLoaded,
    ModelsReady,
    Perform,
    Performed,
    Ping,
    Pong,
    Remember,
    RestoreCounters,
    Serve,
    ServedModel,
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
    RestoreCounters(()),
    Serve(None),
    Serve((ServedModel("m", (1, 20), b"\x00", ""), ServedModel("n", (), b"", "no 'ü'"))),
    Ping(),
    StartListening(),
]
TO_SUPERVISOR = [
    AskAll(7, "/a.B/C", BIG, True, (Remember(("model", "ü\n"), b"one"), Remember(("region",), None))),
    Performed(7, WorkerAnswer(1, "", "", b"done")),
    ModelsReady(False),
    CountersChanged("m", "1", b"\x00"),
    InService((ServedModel("m", (1,), b"x", ""),)),
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


def test_a_message_of_the_other_direction_is_not_taken():
    async def send(end):
        end.send(Listening())

    async def receive(end: WorkerEnd):
        with pytest.raises(KeyError, match="Listening"):
            await end.receive()

    between(send, receive)
