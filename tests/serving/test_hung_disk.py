"""A repository on a file system that hangs, such as NFS without its server: what is in memory goes on answering."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading

import grpc
import numpy as np
import pytest

from normfold.protos import grpc_service as pb
from normfold.serving.catalog.repository import Repository
from normfold.serving.process import loops
from normfold.serving.server import Server
from normfold.serving.service import polling
from normfold.serving.settings import ServerConfig


@pytest.fixture
def hang(monkeypatch):
    """A function that makes every further look at a repository hang, and a semaphore that counts them."""
    mended, came = threading.Event(), threading.Semaphore(0)
    models = Repository.models

    def hangs(repository):
        came.release()
        assert mended.wait(120)
        return models(repository)

    yield lambda: monkeypatch.setattr(Repository, "models", hangs), came, mended
    mended.set()


def test_large_requests_are_answered_after_many_looks_that_were_given_up(serve, repository, ask, frontend, hang):
    start, came, mended = hang
    with serve(repository, frontend=frontend, load_models=("nb",)) as server:
        start()
        for _ in range((os.cpu_count() or 1) + 5):  # more than asyncio has threads that all share
            with pytest.raises(grpc.RpcError) as caught:
                server.call("RepositoryIndex", pb.RepositoryIndexRequest(), timeout=0.05)
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert came.acquire(timeout=20)
        answer = server.infer(ask("nb", x=np.ones((40_000, 4))))
        assert answer.outputs[0].shape == [40_000, 4]
        assert not came.acquire(blocking=False)
        mended.set()
        assert server.call("RepositoryIndex", pb.RepositoryIndexRequest()).models


def test_a_server_ends_while_a_look_and_a_poll_hang(repository, hang, monkeypatch):
    start, came, _ = hang
    monkeypatch.setattr(polling, "SETTLED_SECONDS", 0.01)
    answered = []

    async def main():
        server = Server(ServerConfig(repository, listen="127.0.0.1:0", load_models=("m",), load_seconds=0.0))
        await server.start()
        start()
        server.polling.look_now()
        looking = asyncio.create_task(server.catalog.look())
        for _ in range(2):
            while not came.acquire(blocking=False):
                await asyncio.sleep(0.001)
        answered.append(await server.shut_down())
        looking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await looking

    thread = threading.Thread(target=loops.run, args=(main(),), daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    assert answered == [True]
