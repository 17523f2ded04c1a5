"""The threads on which models load."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

from normfold.protos import model_config as mc
from normfold.serving.catalog import loader as loaders
from normfold.serving.catalog.catalog import Catalog
from normfold.serving.catalog.load import LoadOptions
from normfold.serving.catalog.loader import Loader
from normfold.serving.catalog.repository import Repository
from normfold.serving.errors import LoadError, LoadRefused, Unavailable
from normfold.serving.runtime.devices import Device


def test_a_load_whose_caller_leaves_keeps_its_place_until_its_thread_ends(tmp_path, models, monkeypatch):
    models.write(tmp_path / "m", models.scale())
    begun, gate = [], threading.Event()

    def load(*arguments):
        begun.append(arguments)
        gate.wait(60)
        raise LoadError("too late")

    monkeypatch.setattr(loaders, "load", load)

    async def run(executor):
        catalog = Catalog(Repository(tmp_path), LoadOptions(Device("cpu"), cpus=1, inline_seconds=1.0), executor)
        tries = []
        for _ in range(3):
            tries.append(asyncio.create_task(catalog.load("m")))
            while not begun:
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.01)
            tries[-1].cancel()
        await asyncio.sleep(0.05)
        jobs = catalog._loader._threads._work_queue.qsize()
        assert (len(begun), jobs, [each.done() for each in tries]) == (1, 0, [False, True, True])
        gate.set()
        await asyncio.wait(tries, timeout=20)
        assert [each.cancelled() for each in tries] == [True, True, True]
        with pytest.raises(LoadRefused, match="too late"):
            await asyncio.wait_for(catalog.load("m"), 20)

    with ThreadPoolExecutor(1) as executor:
        asyncio.run(run(executor))


def test_a_load_that_fails_leaves_nothing_for_the_garbage_collector():
    """At the start of a server what is left then would stay for ever."""

    class File:
        """The bytes of a model."""

    files = []

    def load():
        file = File()
        files.append(weakref.ref(file))
        raise LoadError("no")

    async def run(executor):
        with pytest.raises(LoadError, match="no"):
            await Loader(LoadOptions(Device("cpu"), cpus=1), executor, None).run(load)
        await asyncio.sleep(0.05)
        assert files[0]() is None

    gc.disable()
    try:
        with ThreadPoolExecutor(1) as executor:
            asyncio.run(run(executor))
    finally:
        gc.enable()


def test_a_load_that_waits_for_its_turn_does_not_begin_after_the_close(monkeypatch):
    begun = []
    monkeypatch.setattr(loaders, "load", lambda *arguments: begun.append(arguments))

    async def run(executor):
        loader = Loader(LoadOptions(Device("cpu"), cpus=1, inline_seconds=1.0), executor, None)
        with loader._alone:
            waiting = asyncio.create_task(loader.run(loader._load, None, mc.ModelConfig(), 1))
            while not loader._threads._threads or loader._threads._work_queue.qsize():
                await asyncio.sleep(0.001)
            loader.close()
        with pytest.raises(Unavailable):
            await asyncio.wait_for(waiting, 20)

    with ThreadPoolExecutor(1) as executor:
        asyncio.run(run(executor))
    assert begun == []
