"""normfold's clients against real servers of others, Triton, MLServer and KServe, as ``benches.serving`` starts them.

Each has an environment of its own in build/serving/environments, or in $SERVERS, which ``python -m benches.serving``
makes. Without it the tests are skipped, and the skip is printed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from benches.serving.networks import tiny
from benches.serving.roster import X, peers
from benches.serving.running import environment_is_installed, started

from normfold import AsyncClient, Client, ClientError

ENVIRONMENTS = Path(os.environ.get("SERVERS", "build/serving/environments")).resolve()
SERVERS = {peer.name: peer for peer in peers() if peer.name in ("Triton", "MLServer", "KServe")}
TRANSPORTS = ("http2", "grpcio")

pytestmark = pytest.mark.interop


@pytest.fixture(scope="module", params=SERVERS)
def server(request, tmp_path_factory):
    peer = SERVERS[request.param]
    if peer.missing or not environment_is_installed(peer.environment, ENVIRONMENTS):
        pytest.skip(peer.missing or f"no {ENVIRONMENTS / peer.environment}; python -m benches.serving makes it")
    with started(peer, ENVIRONMENTS, tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(scope="module", params=TRANSPORTS)
def client(request, server):
    with Client(server.address, transport=request.param, timeout=60) as made:
        yield made


@pytest.fixture(scope="module")
def right():
    """The right answer to ``x``, by onnxruntime in this process."""
    session = onnxruntime.InferenceSession(tiny().SerializeToString())
    return lambda x: session.run(None, {"x": x})[0]


def test_readiness(client):
    assert client.is_live()
    assert client.is_ready()
    assert client.is_model_ready("tiny")


def test_an_unknown_model_is_not_ready(client):
    with contextlib.suppress(ClientError):  # KServe and MLServer refuse the question
        assert not client.is_model_ready("unknown")


def test_server_metadata(client):
    assert client.server_metadata().name


@pytest.mark.parametrize("given", ["by name", "alone"])
def test_the_answer_is_right(client, right, given):
    """An array alone needs the model's metadata, which not every server has."""
    if given == "alone" and not client.model_metadata("tiny").inputs:
        with pytest.raises(ValueError, match="does not say which inputs model 'tiny' has"):
            client.infer("tiny", X)
        return
    answer = client.infer("tiny", {"x": X} if given == "by name" else X)
    np.testing.assert_allclose(answer["y"], right(X), rtol=1e-5)


def test_rows_that_are_no_power_of_two(client, right):
    x = np.random.default_rng(1).standard_normal((7, 1, 32)).astype(np.float32)
    answer = client.infer("tiny", {"x": x})["y"]
    assert (answer.shape, answer.dtype) == ((7, 10), np.float32)
    np.testing.assert_allclose(answer, right(x), rtol=1e-5)


def test_mistakes_end_in_a_client_error_and_the_next_call_is_answered(client, right):
    with pytest.raises(ClientError, match="unknown"):
        client.infer("unknown", {"x": X})
    with pytest.raises(ClientError):
        client.infer("tiny", {"x": X[:, :, :7]})
    np.testing.assert_allclose(client.infer("tiny", {"x": X})["y"], right(X), rtol=1e-5)


def test_many_threads_with_one_client(client, right):
    def ask(_: int) -> np.ndarray:
        return client.infer("tiny", {"x": X})["y"]

    with ThreadPoolExecutor(8) as threads:
        for answer in threads.map(ask, range(160)):
            np.testing.assert_allclose(answer, right(X), rtol=1e-5)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_many_calls_at_a_time(server, right, transport):
    rows = [np.full((1, 1, 32), i, np.float32) for i in range(64)]

    async def ask() -> list[np.ndarray]:
        async with AsyncClient(server.address, transport=transport, timeout=60) as client:
            answers = await asyncio.gather(*(client.infer("tiny", {"x": x}) for x in rows))
            return [answer["y"] for answer in answers]

    for x, answer in zip(rows, asyncio.run(ask()), strict=True):
        np.testing.assert_allclose(answer, right(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_compressed_requests(server, right, transport):
    x = np.zeros((64, 1, 32), np.float32)
    with Client(server.address, transport=transport, compression="gzip", timeout=60) as client:
        np.testing.assert_allclose(client.infer("tiny", {"x": x})["y"], right(x), rtol=1e-5)
