"""A look at a repository is shared by all who ask, and sees what was there when they asked."""

from __future__ import annotations

import asyncio
import threading

import pytest

from normfold.serving.catalog.looks import Looks


class Disk:
    """A repository whose looks wait until the test lets them go on."""

    def __init__(self):
        self.there = {"a": None}
        self.begun, self.go_on = threading.Semaphore(0), threading.Semaphore(0)
        self.fails = False

    def models(self):
        found = dict(self.there)
        self.begun.release()
        assert self.go_on.acquire(timeout=60)
        if self.fails:
            raise OSError("stale file handle")
        return found

    async def looks(self):
        while not self.begun.acquire(blocking=False):
            await asyncio.sleep(0.001)


@pytest.fixture
def disk():
    one = Disk()
    yield one
    one.go_on.release(100)


def test_many_who_give_up_leave_one_look_under_way_and_one_that_waits(disk):
    async def run():
        looks = Looks(disk)
        asked = [asyncio.create_task(looks.names()) for _ in range(3)]
        await disk.looks()
        asked += [asyncio.create_task(looks.names()) for _ in range(50)]
        await asyncio.sleep(0)
        for task in asked:
            task.cancel()
        await asyncio.wait(asked)
        last = asyncio.create_task(looks.names())
        disk.go_on.release(2)
        assert await asyncio.wait_for(last, 20) == ["a"]
        assert disk.begun.acquire(blocking=False)
        assert not disk.begun.acquire(blocking=False)

    asyncio.run(run())


def test_who_asks_during_a_look_sees_what_came_since_it_began(disk):
    async def run():
        looks = Looks(disk)
        early = asyncio.create_task(looks.names())
        await disk.looks()
        disk.there["b"] = None
        late = [asyncio.create_task(looks.names()) for _ in range(2)]
        await asyncio.sleep(0)
        disk.go_on.release(2)
        assert await asyncio.wait_for(early, 20) == ["a"]
        assert await asyncio.wait_for(asyncio.gather(*late), 20) == [["a", "b"]] * 2

    asyncio.run(run())


def test_a_look_that_fails_fails_for_all_who_share_it_and_the_next_may_succeed(disk):
    disk.go_on.release(2)

    async def run():
        looks = Looks(disk)
        disk.fails = True
        shared = await asyncio.gather(looks.names(), looks.names(), return_exceptions=True)
        assert [str(error) for error in shared] == ["stale file handle"] * 2
        disk.fails = False
        return await looks.names()

    assert asyncio.run(run()) == ["a"]


def test_a_repository_that_was_closed_with_a_loop_can_be_looked_at_on_another(disk):
    looks = Looks(disk)

    async def leave():
        asked = [asyncio.create_task(looks.names())]
        await disk.looks()
        asked.append(asyncio.create_task(looks.names()))
        await asyncio.sleep(0)

    asyncio.run(leave())
    disk.go_on.release(2)
    assert asyncio.run(looks.names()) == ["a"]
