"""Work on files has a thread of its own, which takes none from others and keeps no process from ending."""

from __future__ import annotations

import asyncio
import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from normfold.serving.process import file_watch
from normfold.serving.process.file_thread import FileThread
from normfold.serving.process.file_watch import FileWatch


def test_calls_come_one_after_the_other_on_one_daemon_thread():
    calls = []

    def call(number):
        calls.append((number, threading.current_thread()))
        return number

    async def run():
        files = FileThread("of its own")
        return await asyncio.gather(*(files.run(call, number) for number in range(5)))

    assert asyncio.run(run()) == [0, 1, 2, 3, 4]
    assert [number for number, _ in calls] == [0, 1, 2, 3, 4]
    (thread,) = {thread for _, thread in calls}
    assert (thread.name, thread.daemon) == ("of its own", True)


def test_what_the_function_raises_reaches_the_caller_and_the_next_call_is_made():
    async def run():
        files = FileThread("f")
        with pytest.raises(ZeroDivisionError):
            await files.run(lambda: 1 / 0)
        with pytest.raises(SystemExit):
            await files.run(exit)
        return await files.run(int, "7", base=8)

    assert asyncio.run(run()) == 7


def test_a_call_that_nobody_waits_for_any_more_is_not_begun():
    hangs, begun, calls = threading.Event(), threading.Event(), []

    def hang():
        begun.set()
        assert hangs.wait(60)

    async def run():
        files = FileThread("f")
        first = asyncio.create_task(files.run(hang))
        while not begun.is_set():
            await asyncio.sleep(0.001)
        left = asyncio.create_task(files.run(calls.append, "left"))
        stays = asyncio.create_task(files.run(calls.append, "stays"))
        await asyncio.sleep(0)
        left.cancel()
        first.cancel()
        await asyncio.wait([first, left])
        hangs.set()
        await stays

    asyncio.run(run())
    assert calls == ["stays"]


def test_the_thread_ends_when_nothing_refers_to_it_any_more():
    async def run():
        return await FileThread("f").run(threading.current_thread)

    thread = asyncio.run(run())
    gc.collect()
    thread.join(60)
    assert not thread.is_alive()


def test_a_watch_on_a_file_system_that_hangs_takes_no_thread_of_others(monkeypatch, tmp_path):
    hangs, begun = threading.Event(), threading.Event()

    async def run():
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        watch = FileWatch([tmp_path / "tokens"], lambda: None, OSError, lambda read: None)

        def hang(paths):
            begun.set()
            assert hangs.wait(60)

        monkeypatch.setattr(file_watch, "_signature", hang)
        monkeypatch.setattr(file_watch, "LOOK_SECONDS", 0.001)
        watch.start()
        while not begun.is_set():
            await asyncio.sleep(0.001)
        assert await asyncio.wait_for(asyncio.to_thread(int, "7"), 20) == 7
        await watch.stop()

    try:
        asyncio.run(run())
    finally:
        hangs.set()
