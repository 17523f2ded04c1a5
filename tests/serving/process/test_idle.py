"""Freed memory is given back once after each time of work, and not while there is work."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
import weakref

from normfold.protos import grpc_service as pb
from normfold.serving.frontends.http2.holding import Holding
from normfold.serving.process import idle, memory
from normfold.serving.runtime import limited_arena
from normfold.serving.server import Server
from normfold.serving.settings import ServerConfig


def test_memory_is_given_back_once_after_work():
    given: list[tuple[int, int]] = []
    #: Nothing yet; work; the same and some under way; the same and nothing under way; silence; new work; silence.
    steps = [(0, 0), (0, 0), (5, 1), (5, 1), (5, 0), (5, 0), (5, 0), (6, 0), (6, 0), (6, 0)]
    seen = iter(steps)
    last = steps[0]

    def work() -> tuple[int, int]:
        nonlocal last
        last = next(seen)
        return last

    async def give_back() -> None:
        given.append(last)

    async def watch() -> None:
        with contextlib.suppress(StopIteration, RuntimeError):
            await idle.give_back_when_idle(work, give_back, 0.0)

    asyncio.run(watch())
    assert given == [(5, 0), (6, 0)]


def test_memory_that_could_not_be_given_back_is_given_back_later(caplog):
    tries: list[int] = []

    async def give_back() -> None:
        tries.append(1)
        if len(tries) < 3:
            raise MemoryError("no memory")

    async def watch() -> None:
        task = asyncio.create_task(idle.give_back_when_idle(lambda: (5, 0), give_back, 0.0))
        while len(tries) < 3 and not task.done():
            await asyncio.sleep(0)
        for _ in range(100):
            await asyncio.sleep(0)
        assert not task.done()
        task.cancel()

    asyncio.run(watch())
    assert len(tries) == 3
    assert [record.message for record in caplog.records] == ["freed memory was not given back: MemoryError: no memory"]


def test_a_model_that_was_replaced_is_gone_at_once_and_its_memory_is_given_back(
    serve, tmp_path, models, ask, frontend, monkeypatch
):
    """At once: without a run of the garbage collector, for which nobody knows when it comes."""
    given: list[int] = []
    monkeypatch.setattr(memory, "give_back", lambda: given.append(1))
    models.write(tmp_path / "one", models.scale(), config="max_batch_size: 8 dynamic_batching {}")
    with serve(tmp_path, frontend=frontend) as served:
        for rows in (1, 1, 2):  # a plan, a run by the plan, another plan
            served.infer(ask("one", x=[[1, 2, 3, 4]] * rows))
        old = weakref.ref(served.server.catalog.find("one", ""))
        gc.collect()
        gc.disable()
        try:
            before = len(given)
            served.call("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="one"))
            end = time.monotonic() + 20
            while (old() is not None or len(given) == before) and time.monotonic() < end:
                time.sleep(0.01)
        finally:
            gc.enable()
        assert old() is None
        assert len(given) > before


def test_what_clients_hold_no_more_is_work_too(tmp_path, models):
    models.write(tmp_path / "m", models.scale())
    server = Server(ServerConfig(tmp_path, listen="127.0.0.1:0", metrics_listen="off"))
    assert server._work() == (0, 0)
    holding = Holding(1, server._frontend._service.holding)
    holding.add(3 << 20)
    assert server._work() == (0, 0)
    holding.add(-(2 << 20))
    assert server._work() == (2, 0)


def test_an_idle_server_gives_back_what_is_left_in_the_arena_with_a_limit(tmp_path, models, monkeypatch):
    given: list[int] = []
    monkeypatch.setattr(limited_arena, "give_back", lambda: given.append(1))
    models.write(tmp_path / "m", models.scale())
    server = Server(ServerConfig(tmp_path, listen="127.0.0.1:0", metrics_listen="off"))
    asyncio.run(server._stock.give_back_all())
    assert given == [1]
