"""``timeout`` is for a whole inference: its questions about the model leave it less."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest

from normfold.protos import grpc_service as pb
from normfold.serving.client.async_client import AsyncClient
from normfold.serving.client.client import Client
from normfold.serving.client.errors import ClientError

from .peer import Peer, serving

LATE_SECONDS = 0.2
METADATA = pb.ModelMetadataResponse(
    name="m",
    inputs=[pb.ModelMetadataResponse.TensorMetadata(name="x", datatype="FP32", shape=[-1])],
    outputs=[pb.ModelMetadataResponse.TensorMetadata(name="y", datatype="FP32", shape=[-1])],
).SerializeToString()


class Late:
    """Answers late: gives metadata, and refuses each inference as wrong. Keeps what was asked, with the time for it."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, float]] = []

    def __call__(self, peer: Peer) -> None:
        peer.greet()
        while True:
            number = peer.request()
            headers = peer.headers_of[number]
            method = headers[":path"].rpartition("/")[2]
            assert headers["grpc-timeout"].endswith("m")
            self.asked.append((method, int(headers["grpc-timeout"][:-1]) / 1000))
            time.sleep(LATE_SECONDS)
            if method == "ModelMetadata":
                peer.answer(number, METADATA)
            else:
                peer.refuse(number, 3)


#: An array, whose request needs no metadata; a list, which gets the datatype of the model; a classification.
CALLS = {
    "an array": ("infer", np.zeros(1, np.float32)),
    "a list": ("infer", [0.0]),
    "classes": ("classify", [0.0]),
}


@pytest.fixture(params=["blocking", "loop"])
def fails(request):
    """Call one of CALLS; the status with which it fails."""

    def call(address: str, what: str, timeout: float, times: int = 1) -> str:
        method, values = CALLS[what]
        rest = (1,) if method == "classify" else ()

        def blocking() -> None:
            with Client(address, timeout=timeout) as client:
                for _ in range(times):
                    with pytest.raises(ClientError) as error:
                        getattr(client, method)("m", {"x": values}, *rest)
            raise error.value

        async def loop() -> None:
            async with AsyncClient(address, timeout=timeout) as client:
                for _ in range(times):
                    with pytest.raises(ClientError) as error:
                        await getattr(client, method)("m", {"x": values}, *rest)
            raise error.value

        with pytest.raises(ClientError) as error:
            blocking() if request.param == "blocking" else asyncio.run(loop())
        return error.value.code.name

    return call


@pytest.mark.parametrize("what", CALLS)
def test_the_questions_about_a_model_leave_an_inference_less_time(fails, what):
    late = Late()
    with serving(late) as address:
        assert fails(address, what, timeout=10, times=2) == "INVALID_ARGUMENT"
    # the metadata that would cure the first inference are those for the second
    assert [method for method, _ in late.asked] == [
        *("ModelMetadata", "ModelInfer", "ModelMetadata"),
        *("ModelInfer", "ModelMetadata"),
    ]
    for (_, seconds), before in zip(late.asked, (0, 1, 2, 0, 1), strict=True):
        assert 0 < seconds <= 10 - before * LATE_SECONDS + 0.001
    assert late.asked[3][1] == 10  # nothing was asked before


@pytest.mark.parametrize("what", CALLS)
def test_an_inference_ends_by_its_deadline_although_each_of_its_calls_would_be_in_time(fails, what):
    with serving(Late()) as address:
        assert fails(address, what, timeout=1.5 * LATE_SECONDS) == "DEADLINE_EXCEEDED"
