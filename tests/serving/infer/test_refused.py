"""A request that is refused is not kept: a traceback and a frame that refer to each other would keep it for long."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from normfold.protos import grpc_service as pb
from normfold.serving.catalog.catalog import Catalog
from normfold.serving.catalog.load import LoadOptions
from normfold.serving.catalog.repository import Repository
from normfold.serving.errors import Overloaded
from normfold.serving.infer.inference import Inference
from normfold.serving.infer.shared_memory import SharedMemory
from normfold.serving.infer.tracing import TraceSettings
from normfold.serving.rpc.caller import CALLER
from normfold.serving.rpc.methods import LOOP_BYTES, Method
from normfold.serving.runtime.devices import Device
from normfold.serving.scheduling.admission import Admission
from normfold.serving.scheduling.inline import TRIED_RUNS
from normfold.serving.service.under_way import admitted


def kept(answer: Callable[[bytes], Any], data: bytes) -> int:
    """The references to ``data`` that are left of its refusal."""
    gc.disable()
    try:
        before = sys.getrefcount(data)
        with contextlib.suppress(Overloaded):
            answer(data)
            pytest.fail("it was not refused")
        return sys.getrefcount(data) - before
    finally:
        gc.enable()


@pytest.fixture
def full(monkeypatch) -> Admission:
    """An admission that refuses everything that is not answered at once."""
    admission = Admission()
    monkeypatch.setattr(admission, "refusal", lambda *_: Overloaded("full", 1.0))
    return admission


def test_a_refused_inference_is_not_kept(models, tmp_path, ask, monkeypatch):
    models.write(tmp_path / "m", models.scale())
    data = ask().SerializeToString()
    admission = Admission()
    with ThreadPoolExecutor(1) as executor, asyncio.Runner() as runner:
        catalog = Catalog(Repository(tmp_path), LoadOptions(Device("cpu"), 1, inline_seconds=1.0), executor)
        inference = Inference(catalog, SharedMemory(False), TraceSettings(), admission)
        runner.run(catalog.load_all())

        async def asked() -> None:
            found = inference.answer(data)
            assert isinstance(found, bytes) or await found

        for _ in range(TRIED_RUNS + 1):
            runner.run(asked())

        async def refused(request: bytes) -> int:
            CALLER.set(SimpleNamespace(connection=None, left_seconds=lambda: None, waited_seconds=9.0))
            return kept(inference.answer, request)

        assert runner.run(refused(data)) == 0
        monkeypatch.setattr(admission, "refusal", lambda *_: Overloaded("full", 1.0))
        assert runner.run(refused(ask("another").SerializeToString())) == 0


def test_a_refused_load_is_not_kept(full):
    method = Method("/t.T/Load", pb.RepositoryModelLoadRequest, unary=None, large=True)
    assert kept(admitted(method, full).answer, bytes(LOOP_BYTES + 1)) == 0
