"""TLS and mutual TLS, on both frontends: with our clients, with gRPC, and with a socket of our certificate."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import ssl
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import grpc
import numpy as np
import pytest
import uvloop
from tests.waiting import wait_until

from normfold.protos import grpc_service as pb
from normfold.serving.access import tls as server_tls
from normfold.serving.access.tls import TlsFiles
from normfold.serving.client.async_client import AsyncClient
from normfold.serving.client.client import Client, ClientError
from normfold.serving.client.connection import ClientTls
from normfold.serving.client.transport import failures
from normfold.serving.errors import StartError
from normfold.serving.frontends.http2 import socket_side
from normfold.serving.process import file_watch
from normfold.serving.wire.http2_frames import PREFACE, settings

X = np.array([[1, 2, 3, 4]], np.float32)


@pytest.fixture(scope="module")
def options(certificate):
    return {"tls_cert": certificate.cert, "tls_key": certificate.key, "strict_readiness": False}


@pytest.fixture
def secure(repository, serve, frontend, options):
    """The address of a server with TLS."""
    with serve(repository, frontend=frontend, **options) as one:
        yield one.server.address


@pytest.fixture
def mutual(repository, serve, frontend, options, certificate):
    """The address of a server that wants certificates of its clients."""
    with serve(repository, frontend=frontend, tls_client_ca=certificate.ca, **options) as one:
        yield one.server.address


def handshake(address: str, ca: Path, **wanted: object) -> ssl.SSLSocket:
    """A socket after the handshake."""
    context = ssl.create_default_context(cafile=ca)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.set_alpn_protocols(wanted.pop("protocols", ["h2"]))
    for name, value in wanted.items():
        setattr(context, name, value)
    host, _, port = address.rpartition(":")
    return context.wrap_socket(socket.create_connection((host, int(port)), timeout=20), server_hostname=host)


@pytest.mark.usefixtures("each_transport")
def test_both_clients_ask_over_tls(secure, certificate):
    tls = ClientTls(ca=certificate.ca)
    with Client(secure, tls=tls) as client:
        assert client.infer("m", X, version=1)["y"].tolist() == (2 * X).tolist()

    async def ask(stream):
        async with AsyncClient(secure, tls=tls, stream=stream) as client:
            return (await client.infer("m", X, version=1))["y"].tolist()

    for stream in (False, True):
        assert asyncio.run(ask(stream)) == (2 * X).tolist()


@pytest.mark.usefixtures("each_transport")
def test_large_messages_both_ways_arrive_whole(secure, certificate):
    many = np.arange(4 << 18, dtype=np.float32).reshape(-1, 4)
    with Client(secure, tls=ClientTls(ca=certificate.ca)) as client:
        np.testing.assert_array_equal(client.infer("nb", many)["y"], 2 * many)


@pytest.mark.usefixtures("each_transport")
def test_the_name_in_the_certificate_may_be_given(authority, repository, serve, frontend):
    there = authority.issue("normfold.example")
    with serve(repository, frontend=frontend, tls_cert=there.cert, tls_key=there.key, strict_readiness=False) as one:
        with Client(one.server.address, tls=ClientTls(ca=there.ca)) as client, pytest.raises(ClientError) as caught:
            client.is_live()
        assert "is for another name: give the name that it has, with --tls-server-name NAME" in caught.value.details
        assert "ClientTls(server_name=…)" in caught.value.details
        with Client(one.server.address, tls=ClientTls(ca=there.ca, server_name="normfold.example")) as client:
            assert client.is_live()


@pytest.mark.usefixtures("each_transport")
@pytest.mark.parametrize("tls", [None, "stranger"])
def test_a_client_without_tls_or_with_another_authority_gets_no_answer(secure, stranger, tls):
    with (
        Client(secure, tls=None if tls is None else ClientTls(ca=stranger.ca), timeout=20) as client,
        pytest.raises(ClientError) as caught,
    ):
        client.is_live()
    assert caught.value.status is grpc.StatusCode.UNAVAILABLE
    assert ("--tls-ca" in caught.value.details) == (tls is not None or "does it want TLS" in caught.value.details)


def test_a_certificate_that_is_refused_is_told_with_the_option_that_helps():
    for why, said in (
        ("handshake: certificate has expired", "has expired: the server needs a new one"),
        ("handshake: self-signed certificate in certificate chain", "give the certificates that did, with --tls-ca"),
        ("handshake: tlsv1 alert unknown ca", "an authority of the server's --tls-client-ca must have signed it"),
        ("handshake: tlsv13 alert certificate required", "give one with --tls-cert FILE and --tls-key FILE"),
        ("handshake: ip address mismatch, certificate is not valid for '127.0.0.1'.", "with --tls-server-name NAME"),
        ("handshake: something else", "found no way to use TLS together"),
    ):
        details = failures.no_tls("h:1", why).details
        assert said in details
        assert "h:1" in details
        assert why in details


@pytest.mark.usefixtures("each_transport")
def test_only_clients_with_a_certificate_of_the_authority_come_in(mutual, certificate, known_client, stranger):
    with Client(mutual, tls=ClientTls(certificate.ca, known_client.cert, known_client.key)) as client:
        assert client.is_live()
    other = stranger.issue("client@example.org")
    for tls in (ClientTls(certificate.ca), ClientTls(certificate.ca, other.cert, other.key)):
        with Client(mutual, tls=tls, timeout=20) as client, pytest.raises(ClientError) as caught:
            client.is_live()
        assert caught.value.status is grpc.StatusCode.UNAVAILABLE


def test_the_handshake_offers_h2_and_tls_1_2_at_least(secure, certificate):
    with handshake(secure, certificate.ca) as one:
        assert (one.selected_alpn_protocol(), one.version()) == ("h2", "TLSv1.3")
    with handshake(secure, certificate.ca, maximum_version=ssl.TLSVersion.TLSv1_2) as one:
        assert one.version() == "TLSv1.2"
        assert one.cipher()[0].startswith("ECDHE-")
        assert "GCM" in one.cipher()[0] or "CHACHA20" in one.cipher()[0]
    with pytest.raises(OSError, match=r"."), pytest.warns(DeprecationWarning, match="TLS"):
        handshake(secure, certificate.ca, minimum_version=ssl.TLSVersion.TLSv1, maximum_version=ssl.TLSVersion.TLSv1_1)


def test_a_session_is_resumed_no_more_once_the_clients_certificate_has_expired(
    repository, serve, options, certificate, known_client, monkeypatch
):
    context = ssl.create_default_context(cafile=certificate.ca)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    context.load_cert_chain(known_client.cert, known_client.key)

    def connect(session: ssl.SSLSession | None) -> ssl.SSLSocket:
        sock = socket.create_connection(("127.0.0.1", int(one.server.address.rpartition(":")[2])), timeout=20)
        secure = context.wrap_socket(sock, server_hostname="127.0.0.1", session=session)
        secure.sendall(PREFACE + settings({}))
        return secure

    with (
        serve(repository, frontend="http2", tls_client_ca=certificate.ca, **options) as one,
        connect(None) as first,
        connect(first.session) as second,
    ):
        assert first.recv(1)
        assert second.recv(1)
        assert second.session_reused
        later = ssl.cert_time_to_seconds("Jan  1 00:00:00 4000 GMT")
        monkeypatch.setattr(server_tls, "time", SimpleNamespace(time=lambda: later))
        with contextlib.suppress(ssl.SSLError, ConnectionError), connect(first.session) as third:
            assert third.session_reused
            assert third.recv(1) == b""


@pytest.mark.parametrize("protocols", [["http/1.1"], []], ids=["another", "none"])
def test_a_client_that_does_not_speak_h2_is_sent_away(secure, certificate, protocols, caplog):
    with (
        contextlib.suppress(ssl.SSLError, ConnectionError),
        handshake(secure, certificate.ca, protocols=protocols) as sock,
    ):
        sock.sendall(PREFACE + settings({}))  # it speaks HTTP/2 all the same, and gets no answer
        assert sock.recv(1) == b""
    assert live(secure, ClientTls(certificate.ca))
    assert not [record for record in caplog.records if record.exc_info]  # a line with a traceback for each client


def live(address: str, tls: ClientTls) -> bool:
    with Client(address, tls=tls, timeout=10) as client:
        try:
            return client.is_live()
        except ClientError:
            return False


def test_files_are_read_again_and_open_connections_go_on(
    repository, serve, frontend, authority, stranger, certificate, known_client, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(file_watch, "LOOK_SECONDS", 0.02)
    cert, key, ca = (tmp_path / name for name in ("cert", "key", "ca"))
    for source, copy in ((certificate.cert, cert), (certificate.key, key), (certificate.ca, ca)):
        shutil.copy(source, copy)
    with serve(
        repository, frontend=frontend, tls_cert=cert, tls_key=key, tls_client_ca=ca, strict_readiness=False
    ) as one:
        address, old = one.server.address, ClientTls(certificate.ca, known_client.cert, known_client.key)
        with Client(address, tls=old) as before:
            assert before.is_live()
            new = stranger.issue("127.0.0.1")
            guest = stranger.issue("guest@example.org")
            shutil.copy(new.cert, cert)  # a certificate without its key is not taken
            wait_until(lambda: "the key is not that of the certificate" in caplog.text)
            assert live(address, old)
            shutil.copy(new.key, key)
            wait_until(lambda: live(address, ClientTls(stranger.ca, known_client.cert, known_client.key)))
            assert not live(address, old)
            shutil.copy(stranger.ca, ca)
            wait_until(lambda: live(address, ClientTls(stranger.ca, guest.cert, guest.key)))
            assert not live(address, ClientTls(stranger.ca, known_client.cert, known_client.key))
            assert before.is_live()


def test_a_handshake_that_never_ends_holds_its_place_for_a_while_only(
    repository, serve, options, certificate, monkeypatch
):
    monkeypatch.setattr(socket_side, "HANDSHAKE_SECONDS", 0.2)
    with (
        serve(repository, frontend="http2", max_connections=1, **options) as one,
        contextlib.closing(socket.create_connection(("127.0.0.1", int(one.server.address.rpartition(":")[2])))) as sock,
    ):
        assert live(one.server.address, ClientTls(certificate.ca))  # it takes the place of the one that is silent
        sock.settimeout(20)
        assert sock.recv(1) == b""


@pytest.mark.parametrize("kind", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.usefixtures("each_transport")
def test_an_async_client_asks_over_tls_on_one_event_loop_after_another(secure, certificate, kind):
    client = AsyncClient(secure, tls=ClientTls(ca=certificate.ca), timeout=60)

    async def ask():
        return (await client.infer("m", X, version=1))["y"].tolist()

    for what in (ask, ask, ask, client.close):
        loop = kind()
        assert loop.run_until_complete(what()) in ((2 * X).tolist(), None)
        loop.close()


def test_a_server_that_stops_sends_the_last_byte_over_tls(repository, serve, frontend, options, certificate):
    many = np.arange(4 << 20, dtype=np.float32).reshape(-1, 4)
    with contextlib.ExitStack() as stack:
        one = stack.enter_context(serve(repository, frontend=frontend, **options))
        client = stack.enter_context(Client(one.server.address, tls=ClientTls(certificate.ca), timeout=60))
        request = pb.ModelInferRequest(model_name="nb", raw_input_contents=[many.tobytes()])
        request.inputs.add(name="x", datatype="FP32", shape=many.shape)
        thread = stack.enter_context(ThreadPoolExecutor(1))
        answer = thread.submit(client.call, "ModelInfer", request, pb.ModelInferResponse)
        statistics = one.server.catalog.entries["nb"].ready[0].statistics
        wait_until(lambda: statistics.success.count == 1)
        assert one.on_loop(one.server.shut_down())
        assert np.frombuffer(answer.result(60).raw_output_contents[0], "f4")[-1] == 2 * many[-1, -1]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cert": "none.pem"}, r"--tls-cert .*none.pem cannot be read: No such file or directory"),
        ({"key": "cert"}, r"--tls-key .* cannot be read: it has no line with PRIVATE KEY; is it the right file"),
        ({"cert": "key"}, r"--tls-cert .* cannot be read: it has no line with BEGIN CERTIFICATE; is it the right file"),
        ({"client_ca": "key"}, r"--tls-client-ca .* it has no line with BEGIN CERTIFICATE"),
        ({"key": "other"}, r"cannot be used: the key is not that of the certificate; expected"),
        ({"key": "locked"}, r"cannot be used: the key has a passphrase; expected"),
        ({"cert": "broken"}, r"--tls-cert .* cannot be used: .*; expected a certificate and its key"),
    ],
)
def test_files_that_cannot_be_used_are_named(tmp_path, certificate, known_client, changes, words):
    from cryptography.hazmat.primitives import serialization

    made = serialization.load_pem_private_key(certificate.key.read_bytes(), None)
    locked = made.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    (tmp_path / "locked").write_bytes(locked)
    (tmp_path / "broken").write_text("-----BEGIN CERTIFICATE-----\nabc\n-----END CERTIFICATE-----\n")
    there = {"cert": certificate.cert, "key": certificate.key, "other": known_client.key}
    paths = {"cert": certificate.cert, "key": certificate.key, "client_ca": None}
    paths |= {name: there.get(other, tmp_path / other) for name, other in changes.items()}
    with pytest.raises(StartError, match=words):
        TlsFiles(**paths).read()
