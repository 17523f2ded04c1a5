"""A server runs on uvloop where that is installed."""

from __future__ import annotations

import asyncio
import sys
import threading

from normfold.serving.process import loops


async def _loop_type() -> str:
    return type(asyncio.get_running_loop()).__module__


def test_the_loop_is_uvloops_where_it_is_installed():
    import uvloop

    assert loops.factory() is uvloop.new_event_loop
    assert loops.run(_loop_type()) == "uvloop"


def test_the_loop_is_asyncios_where_uvloop_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert loops.run(_loop_type()).startswith("asyncio")


def test_the_end_waits_for_no_thread_whose_caller_has_left():
    leave, waited = threading.Event(), list[bool]()

    async def main():
        begun = threading.Event()
        work = asyncio.create_task(asyncio.to_thread(lambda: (begun.set(), waited.append(leave.wait(10)))))
        while not begun.is_set():
            await asyncio.sleep(0.001)
        work.cancel()

    loops.run(main())
    assert waited == []
    leave.set()
