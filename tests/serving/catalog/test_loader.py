"""The threads on which models load."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest

from normfold.protos import model_config as mc
from normfold.serving.catalog import loader as loaders
from normfold.serving.catalog.load import LoadOptions
from normfold.serving.catalog.loader import Loader
from normfold.serving.errors import Unavailable
from normfold.serving.runtime.devices import Device


def test_a_load_that_waits_for_its_turn_does_not_begin_after_the_close(monkeypatch):
    begun = []
    monkeypatch.setattr(loaders, "load", lambda *arguments: begun.append(arguments))

    async def run(executor):
        loader = Loader(LoadOptions(Device("cpu"), cpus=1, hop_seconds=1.0), executor, None)
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
