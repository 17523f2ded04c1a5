"""Answers in pieces: the client gets the bytes of all, whatever its windows and its frames allow."""

from __future__ import annotations

import grpc
import numpy as np
import pytest
from tests.serving.frontends.raw import Raw, message

from normfold.serving.frontends import FRONTENDS
from normfold.serving.rpc.pieces import Pieces
from normfold.serving.wire import http2_frames as h2

SIZES = [3, 10, 70_000, 1_000_003]


def numbered(size: int) -> bytes:
    return np.random.default_rng(size).bytes(size)


@pytest.mark.parametrize("name", FRONTENDS)
@pytest.mark.parametrize("size", SIZES)
def test_the_pieces_of_an_answer_arrive_as_one_message(start, name, size):
    data = numbered(size)
    with start(name=name) as served, grpc.insecure_channel(served.address) as channel:
        assert channel.unary_unary("/t.T/Pieces")(data, timeout=30) == data
        assert list(channel.stream_stream("/t.T/EachPieces")(iter([data, b"abc", data]), timeout=30)) == [
            data,
            b"abc",
            data,
        ]


@pytest.mark.parametrize("method", ["Pieces", "EachPieces"])
def test_pieces_wait_for_the_windows_of_the_client_and_are_held_no_longer_than_that(served, method):
    client = Raw(served.address, {h2.INITIAL_WINDOW_SIZE: 10})
    data = numbered(1000)
    client.ask(1, message(data), method)
    got = client.until(h2.DATA).payload
    holding = served.frontend._service.holding
    assert holding.bytes == len(data) + 5
    while len(got) < 400:
        client.send(h2.frame(h2.WINDOW_UPDATE, 0, 1, (7).to_bytes(4, "big")))
        got += client.until(h2.DATA).payload
    client.send(h2.settings({h2.INITIAL_WINDOW_SIZE: 10_000}))
    rest, headers = client.answer(1)
    assert got + rest == message(data)
    assert headers["grpc-status"] == "0"
    assert holding.bytes == 0


def test_pieces_within_two_other_messages():
    numbers = np.arange(4, dtype=np.uint8)
    pieces = Pieces((b"head", numbers.data, b"tail")).within(b"<", b">")
    assert bytes(pieces) == b"<head\0\1\2\3tail>"
    assert len(pieces) == 14
    assert np.shares_memory(np.frombuffer(pieces.parts[1], np.uint8), numbers)
