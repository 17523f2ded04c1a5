"""A client holds its inputs to the sizes that the model was proved for, before it sends them."""

from __future__ import annotations

import asyncio
import json

import grpc
import numpy as np
import pytest
from onnx import parser

from normfold.serving.client import client as sync
from normfold.serving.client.async_client import AsyncClient
from normfold.serving.client.client import Client, ClientError
from normfold.serving.wire.proved_sizes import PROVED

TWICE = '<ir_version: 9, opset_import: ["": 18]> g (float[N,L] x) => (float[N,L] y) { y = Add (x, x) }'
#: Lengths of version 1 and of version 2.
LENGTHS = {
    "1": {"low": 8, "high": 64, "step": 4, "tried": [8, 32]},
    "2": {"low": 4, "high": 6, "step": 1, "tried": [4]},
}
REFUSED = (
    r"INVALID_ARGUMENT: input 'x': L is 9; this model takes L from 8 to 64, in steps of 4; it was proved for 8 to 32"
)


@pytest.fixture
def folder(tmp_path, models):
    for version, lengths in LENGTHS.items():
        model = parser.parse_model(TWICE)
        rows = {"low": 1, "high": None, "step": 1, "tried": [1, 2]}
        sizes = {"schema": 1, "dimensions": {"N": rows, "L": lengths}, "inputs": {"x": ["N", "L"]}}
        model.metadata_props.add(key=PROVED, value=json.dumps(sizes))
        models.write(tmp_path / "twice", model.SerializeToString(), int(version), "version_policy: { all {} }")
    models.write(tmp_path / "foreign", TWICE)
    return tmp_path


def x(length):
    return np.ones((1, length), np.float32)


@pytest.fixture
def asked(monkeypatch):
    """The methods that Clients have asked for."""
    methods, honest = [], sync.Client._send
    monkeypatch.setattr(
        sync.Client, "_send", lambda self, method, *rest: (methods.append(method), honest(self, method, *rest))[1]
    )
    return methods


@pytest.mark.parametrize("inputs", [x(9), {"x": x(9)}, {"x": x(9).tolist()}])
def test_an_input_of_a_size_that_was_not_proved_is_not_sent(serve, folder, asked, inputs):
    with serve(folder) as server, Client(server.server.address) as client:
        assert client.infer("twice", {"x": x(12)}, version=1)["y"].shape == (1, 12)
        with pytest.raises(ClientError, match=REFUSED) as caught:
            client.infer("twice", inputs, version=1)
        assert caught.value.status is grpc.StatusCode.INVALID_ARGUMENT
        assert asked == ["ModelMetadata", "ModelInfer", "ModelMetadata"]
        assert client.infer("foreign", {"x": x(9)})["y"].shape == (1, 9)


def test_the_sizes_are_those_of_the_version_that_answers_now(serve, folder, asked):
    with serve(folder) as server, Client(server.server.address) as client:
        client._known["twice", ""] = client.model_metadata("twice", 1)
        assert client.infer("twice", {"x": x(5)})["y"].shape == (1, 5)
        assert client.infer("twice", {"x": x(6)})["y"].shape == (1, 6)
    assert asked == ["ModelMetadata"] * 2 + ["ModelInfer"] * 2


@pytest.mark.parametrize("stream", [False, True])
def test_the_async_client_does_the_same(serve, folder, stream):
    async def ask(address):
        async with AsyncClient(address, stream=stream) as client:
            both = [client.infer("twice", {"x": x(length)}, version=1) for length in (8, 9)]
            answer, refused = await asyncio.gather(*both, return_exceptions=True)
            assert answer["y"].shape == (1, 8)
            assert (await client.infer("foreign", {"x": x(9)}))["y"].shape == (1, 9)
            return refused

    with serve(folder) as server:
        refused = asyncio.run(asyncio.wait_for(ask(server.server.address), 60))
    assert isinstance(refused, ClientError)
    assert str(refused).startswith(REFUSED)


def test_a_server_that_may_answer_all_sizes_gets_them(serve, folder):
    with serve(folder, allow_unproved_sizes=True) as server, Client(server.server.address) as client:
        assert client.infer("twice", {"x": x(9)}, version=1)["y"].shape == (1, 9)


@pytest.mark.parametrize("status", ["UNIMPLEMENTED", "PERMISSION_DENIED"])
def test_a_server_that_gives_no_metadata_is_asked_for_it_once(serve, folder, asked, monkeypatch, status):
    def without(self, *_):
        asked.append("ModelMetadata")
        raise ClientError(grpc.StatusCode[status], "no")

    async def without_async(self, *_):
        without(self)

    async def twice(address):
        async with AsyncClient(address) as client:
            return [(await client.infer("foreign", {"x": x(9)}))["y"].shape for _ in range(2)]

    monkeypatch.setattr(sync.Client, "model_metadata", without)
    monkeypatch.setattr(AsyncClient, "model_metadata", without_async)
    with serve(folder) as server, Client(server.server.address) as client:
        for _ in range(2):
            assert client.infer("foreign", {"x": x(9)})["y"].shape == (1, 9)
        assert asked == ["ModelMetadata", "ModelInfer", "ModelInfer"]
        assert asyncio.run(twice(server.server.address)) == [(1, 9)] * 2
    assert asked.count("ModelMetadata") == 2
