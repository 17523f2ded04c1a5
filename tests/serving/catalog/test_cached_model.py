"""A model with a response cache: where the work on large requests happens, and what else may happen meanwhile."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from onnx import TensorProto

from normfold.serving.catalog.catalog import Catalog
from normfold.serving.catalog.load import LoadOptions
from normfold.serving.catalog.repository import Repository
from normfold.serving.errors import ServingError
from normfold.serving.runtime.devices import Device
from normfold.serving.scheduling.response_cache import ResponseCache


@pytest.fixture
def play(tmp_path, models):
    """Run the coroutine ``scenario(catalog, infer)`` over two models that give their input back, FP32 and BYTES."""
    for name, kind in (("numbers", TensorProto.FLOAT), ("text", TensorProto.STRING)):
        models.write(tmp_path / name, models.identity(kind, ["N"]), config="response_cache { enable: true }")

    def run(scenario):
        with ThreadPoolExecutor(1) as executor:
            options = LoadOptions(Device("cpu"), cpus=1, inline_seconds=1.0)
            catalog = Catalog(Repository(tmp_path), options, executor)

            async def infer(name, x):
                (y,), timing = await catalog.find(name, "").infer({"x": x}, 1, ["y"], 0, 0)
                np.testing.assert_array_equal(y, x)
                return timing

            async def loaded():
                await catalog.load_all()
                await scenario(catalog, infer)

            asyncio.run(asyncio.wait_for(loaded(), 60))

    return run


def texts(*elements: bytes) -> np.ndarray:
    array = np.empty(len(elements), object)
    array[:] = elements
    return array


@pytest.mark.parametrize(
    ("x", "large"),
    [
        (np.zeros(100, np.float32), False),
        (np.zeros(300_000, np.float32), True),
        (texts(*[b"ab"] * 100), False),
        (texts(*[b"ab"] * 2000), True),  # 16,000 bytes of pointers
        (texts(b"a" * 800_000, b"b" * 800_000), True),
    ],
    ids=["few numbers", "many numbers", "few strings", "many strings", "long strings"],
)
def test_large_requests_and_answers_are_digested_and_copied_off_the_event_loop(play, monkeypatch, x, large):
    threads = []
    key, copied = ResponseCache.key, ResponseCache.copied

    def noted_key(feeds, outputs):
        threads.append(threading.current_thread())
        return key(feeds, outputs)

    def noted_copied(cache, answer):
        threads.append(threading.current_thread())
        return copied(cache, answer)

    monkeypatch.setattr(ResponseCache, "key", staticmethod(noted_key))
    monkeypatch.setattr(ResponseCache, "copied", noted_copied)

    async def scenario(catalog, infer):
        name = "text" if x.dtype == object else "numbers"
        assert await infer(name, x) is not None
        assert await infer(name, x) is None

    play(scenario)
    assert [thread is not threading.main_thread() for thread in threads] == [large] * 3


@pytest.fixture
def gate(monkeypatch):
    """Copies wait until the test opens this gate; a semaphore counts those that have come to it."""
    opened, came = threading.Event(), threading.Semaphore(0)
    copied = ResponseCache.copied

    def waits(cache, answer):
        came.release()
        assert opened.wait(60)
        return copied(cache, answer)

    monkeypatch.setattr(ResponseCache, "copied", waits)
    yield opened, came
    opened.set()


async def reached(came: threading.Semaphore) -> None:
    while not came.acquire(blocking=False):
        await asyncio.sleep(0.001)


LARGE = np.arange(300_000, dtype=np.float32)


def test_of_two_equal_requests_at_once_one_answer_is_kept(play, gate):
    opened, came = gate

    async def scenario(catalog, infer):
        both = [asyncio.ensure_future(infer("numbers", LARGE)) for _ in range(2)]
        for _ in both:
            await reached(came)
        opened.set()
        assert None not in await asyncio.gather(*both)
        cache = catalog.find("numbers", "").cache
        assert len(cache._answers) == 1
        assert cache._held_bytes == next(iter(cache._answers.values())).size
        assert await infer("numbers", LARGE) is None

    play(scenario)


def test_a_request_is_answered_although_its_model_is_unloaded_during_the_copy(play, gate):
    opened, came = gate

    async def scenario(catalog, infer):
        request = asyncio.ensure_future(infer("numbers", LARGE))
        await reached(came)
        await catalog.unload("numbers")
        with pytest.raises(ServingError):
            catalog.find("numbers", "")
        opened.set()
        assert await request is not None
        await catalog.load("numbers")
        assert await infer("numbers", LARGE) is not None  # a model that was loaded again has a cache of its own
        assert await infer("numbers", LARGE) is None

    play(scenario)


def test_a_request_that_is_given_up_during_the_copy_leaves_nothing_in_the_cache(play, gate):
    opened, came = gate

    async def scenario(catalog, infer):
        request = asyncio.ensure_future(infer("numbers", LARGE))
        await reached(came)
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        opened.set()
        assert await infer("numbers", LARGE) is not None
        assert await infer("numbers", LARGE) is None

    play(scenario)
