"""SIGHUP during the start of a server: it looks for changes as soon as it has loaded its models."""

from __future__ import annotations

import asyncio
import os
import signal
import threading

from normfold.cli.serve import _end_at_signals
from normfold.serving.catalog import loader
from normfold.serving.server import Server
from normfold.serving.service import polling
from normfold.serving.settings import ServerConfig


def test_a_hang_up_while_models_load_is_kept(tmp_path, models, monkeypatch):
    models.write(tmp_path / "m", models.scale())
    gate, real = threading.Event(), loader.load
    monkeypatch.setattr(loader, "load", lambda *given: gate.wait(60) and real(*given))
    monkeypatch.setattr(polling, "SETTLED_SECONDS", 0.05)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)

    async def use():
        server = Server(ServerConfig(tmp_path, listen="127.0.0.1:0", load_seconds=0.0))
        starting = asyncio.create_task(server.start())
        while not server.polling._changes._loaded:
            await asyncio.sleep(0.01)
        models.write(tmp_path / "m", models.scale(3.0), 2)
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.sleep(0.05)
        gate.set()
        await starting
        async with asyncio.timeout(60):
            while server.catalog.find("m", "").version != 2:
                await asyncio.sleep(0.01)
        await server.shut_down()

    try:
        asyncio.run(use())
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_hang_up_while_libraries_are_imported_does_not_end_the_server(monkeypatch):
    handlers = {}
    monkeypatch.setattr(signal, "signal", handlers.__setitem__)
    _end_at_signals()
    assert handlers[signal.SIGHUP](signal.SIGHUP, None) is None
