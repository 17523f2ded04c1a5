"""The parts of the transport by themselves: addresses, deadlines, retries, options."""

from __future__ import annotations

import gzip

import pytest

from normfold.protos import grpc_service as pb
from normfold.serving.client.async_client import AsyncClient
from normfold.serving.client.client import Client
from normfold.serving.client.transport import retries
from normfold.serving.client.transport.answers import Reply, pushback_ms
from normfold.serving.client.transport.choice import TRANSPORTS
from normfold.serving.client.transport.destination import destination
from normfold.serving.client.transport.opening import Opening, inflated, written_timeout
from normfold.serving.client.transport.retries import MOST_UNSEEN, Retries
from normfold.serving.errors import Status
from normfold.serving.wire.http2_headers import HeaderReader

from .peer import Peer, serving

INFER = "/inference.GRPCInferenceService/ModelInfer"


@pytest.mark.parametrize(
    ("address", "places", "path", "authority"),
    [
        ("example.org:8001", (("example.org", 8001),), "", "example.org:8001"),
        ("[::1]:8001", (("::1", 8001),), "", "[::1]:8001"),
        ("dns:example.org", (("example.org", 443),), "", "example.org"),
        ("dns:///example.org:1", (("example.org", 1),), "", "example.org:1"),
        ("ipv4:10.0.0.1:1,10.0.0.2", (("10.0.0.1", 1), ("10.0.0.2", 443)), "", "10.0.0.1:1"),
        ("ipv6:[::1]:5,::2", (("::1", 5), ("::2", 443)), "", "[::1]:5"),
        ("unix:s", (), "s", "localhost"),
        ("unix:///run/s", (), "/run/s", "localhost"),
        ("unix-abstract:s", (), "\0s", "localhost"),
    ],
)
def test_an_address_is_read_as_grpc_reads_it(address, places, path, authority):
    found = destination(address)
    assert (found.places, found.path, found.authority) == (places, path, authority)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("xds:///a", "only transport='grpcio' takes addresses that begin with xds:"),
        ("vsock:1:2", "only transport='grpcio'"),
        ("dns://8.8.8.8/a:1", "asks a name server of its own; write dns:///a:1"),
        ("ipv4:1.2.3.4:0", "'1.2.3.4:0' is not host:port"),
        ("a/b:c", "is not host:port"),
    ],
)
def test_an_address_that_only_grpcio_can_read_is_refused_by_name(address, words):
    with pytest.raises(ValueError, match=words):
        destination(address)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"transport": "http"}, "transport 'http' is not one of 'http2', 'grpcio'"),
        ({"compression": "zip"}, "compression 'zip' is not 'gzip' or None"),
        ({"keepalive": -1}, "keepalive -1 is not a number of seconds"),
        ({"keepalive": "5"}, "keepalive '5' is not"),
    ],
)
def test_an_option_that_is_none_is_refused(kind, options, words):
    with pytest.raises(ValueError, match=words):
        kind("127.0.0.1:1", **options)


@pytest.mark.parametrize(
    ("seconds", "written"),
    [(60.0, b"60000m"), (1e6, b"1000000S"), (1e-9, b"1m"), (2.5e8, b"4166666M"), (1e99, b"99999999H")],
)
def test_a_deadline_has_eight_digits_at_most(seconds, written):
    assert written_timeout(seconds) == written


def test_a_message_is_compressed_where_that_makes_it_smaller():
    opening = Opening("http", "a", (), "gzip")
    prefix, packed = opening.message(b"x" * 1000)
    assert (prefix[0], gzip.decompress(packed)) == (1, b"x" * 1000)
    assert inflated(packed, b"gzip") == b"x" * 1000
    assert opening.message(b"x") == (b"\0\0\0\0\1", b"x")
    assert Opening("http", "a").message(b"x" * 1000)[0][0] == 0


def test_a_client_of_many_timeouts_keeps_few_blocks_of_headers():
    opening = Opening("http", "a")
    blocks = {opening.block("/m", float(seconds)) for seconds in range(1, 1001)}
    assert len(blocks) == 1000
    assert len(opening._prepared) <= 256


def test_a_client_keeps_no_headers_of_metadata_that_is_new_with_each_call():
    opening = Opening("http", "a", (("x-tenant", "a"),))
    blocks = {opening.block("/m", 1.0, (("traceparent", str(call)),)) for call in range(1000)}
    assert len(blocks) == 1000
    assert len(opening._prepared) == 1
    assert HeaderReader().read(opening.block("/m", 1.0))[-1] == (b"x-tenant", b"a")


@pytest.mark.parametrize(("value", "sent"), [(b"", b""), (b"\x00", b"AA"), (b"\xfb\xff", b"+/8"), (b"abc", b"YWJj")])
def test_bytes_of_metadata_are_sent_in_base64_without_padding(value, sent):
    block = Opening("http", "a").block("/m", 1.0, (("x-bin", value),))
    assert HeaderReader().read(block)[-1] == (b"x-bin", sent)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_large_request_is_compressed_on_both_transports(transport):
    bodies = []

    def act(peer: Peer) -> None:
        peer.greet()
        number = peer.request()
        bodies.append((peer.headers_of[number]["grpc-encoding"], bytes(peer.bodies[number])))
        peer.answer(number)
        peer.wait_for_end()

    request = pb.ModelInferRequest(model_name="m" * 10_000)
    with serving(act) as address, Client(address, transport=transport, compression="gzip") as client:
        assert client.call("ServerLive", request, pb.ServerLiveResponse).live
    ((encoding, body),) = bodies
    assert (encoding, body[0], gzip.decompress(body[5:])) == ("gzip", 1, request.SerializeToString())


PACKED = gzip.compress(b"x" * 99)


@pytest.mark.parametrize(
    "data",
    [b"", b"no", PACKED[:-9], PACKED + PACKED, PACKED + b"y"],
    ids=["empty", "no gzip", "cut", "two, of which one would be lost", "bytes behind its end"],
)
def test_a_message_that_cannot_be_decompressed_is_an_error(data):
    with pytest.raises(ValueError, match="it cannot be decompressed"):
        inflated(data, b"gzip")


def test_few_bytes_that_stand_for_more_than_a_message_may_have_are_an_error(monkeypatch):
    monkeypatch.setattr("normfold.serving.client.transport.opening.LARGEST_MESSAGE", 98)
    with pytest.raises(ValueError, match="more than 98 bytes"):
        inflated(PACKED, b"gzip")


@pytest.mark.parametrize("status", ["UNAVAILABLE", "CANCELLED", "RESOURCE_EXHAUSTED"])
def test_a_failure_is_tried_three_times_with_pauses_that_grow(status):
    tries, reply = Retries(), Reply(Status[status])
    pauses = [tries.pause(INFER, reply, 60) for _ in range(3)]
    assert 0.08 <= pauses[0] <= 0.12
    assert 0.24 <= pauses[1] <= 0.36
    assert pauses[2] is None


@pytest.mark.parametrize(
    ("path", "reply", "left"),
    [
        (INFER, Reply(Status.INVALID_ARGUMENT), 60),
        (INFER, Reply(Status.UNAVAILABLE, begun=True), 60),
        (INFER, Reply(Status.UNAVAILABLE), 0.05),
        (INFER, Reply(Status.UNAVAILABLE, pushback_ms=-1), 60),
        (INFER, Reply(Status.UNAVAILABLE, pushback_ms=5000), 5),
        ("/grpc.health.v1.Health/Check", Reply(Status.UNAVAILABLE), 60),
    ],
)
def test_what_another_try_would_not_help_is_not_tried_again(path, reply, left):
    assert Retries().pause(path, reply, left) is None


@pytest.mark.parametrize(
    ("value", "wait"), [(b"10", 10), (b"-1", -1), (b"x", -1), ("²".encode(), -1), (b"9" * 5000, -1)]
)
def test_a_pushback_that_is_no_number_means_no_other_try(value, wait):
    assert pushback_ms(value) == wait


def test_a_pushback_is_obeyed_and_many_of_them_make_the_pauses_longer():
    tries = Retries()
    pauses = [tries.pause(INFER, Reply(Status.RESOURCE_EXHAUSTED, pushback_ms=10), 60) for _ in range(200)]
    assert pauses[:2] == [0.01, 0.01]
    assert pauses[2] == pytest.approx(0.1)
    assert pauses == sorted(pauses)
    assert pauses[-1] == retries.LONGEST_SECONDS
    assert tries.pause(INFER, Reply(Status.RESOURCE_EXHAUSTED, pushback_ms=7000), 60) == 7.0


def test_a_call_that_was_not_looked_at_is_sent_again_at_once_a_bounded_number_of_times():
    tries, reply = Retries(), Reply(Status.UNAVAILABLE, unseen=True)
    pauses = [tries.pause("/any/Method", reply, 60) for _ in range(MOST_UNSEEN + 1)]
    assert pauses[0] == 0.0
    assert None not in pauses[:-1]
    assert pauses[-1] is None
