"""The HTTP port: what it answers, and what it refuses."""

from __future__ import annotations

import contextlib
import http.client
import resource
import socket
import threading
from http import HTTPStatus

import pytest
from tests.waiting import wait_until

from normfold.serving.errors import StartError
from normfold.serving.metrics import port
from normfold.serving.metrics.places import Places
from normfold.serving.metrics.port import HttpAnswer, HttpPort
from normfold.serving.process import open_files
from normfold.serving.process.open_files import METRICS_CONNECTIONS
from normfold.serving.wire import http2_frames


@contextlib.contextmanager
def opened(answer):
    listening = HttpPort("127.0.0.1:0", answer)
    try:
        yield listening.address
    finally:
        listening.close()


def get(address, path, method="GET"):
    connection = http.client.HTTPConnection(address, timeout=30)
    connection.request(method, path)
    response = connection.getresponse()
    return response.status, response.read(), response.headers


def test_get_and_head_are_answered_and_other_methods_refused():
    with opened(lambda path: HttpAnswer(HTTPStatus.OK, path.encode())) as address:
        assert get(address, "/a?b=c")[:2] == (200, b"/a")
        status, body, headers = get(address, "/abc", "HEAD")
        assert (status, body, headers["Content-Length"]) == (200, b"", "4")
        status, body, headers = get(address, "/", "POST")
        assert (status, body) == (405, b"POST is not answered here, only GET and HEAD\n")
        assert (headers["Allow"], headers["Content-Type"]) == ("GET, HEAD", "text/plain; charset=utf-8")


def answer_to(address, sent):
    host, _, number = address.rpartition(":")
    with socket.create_connection((host, int(number)), timeout=30) as connection:
        connection.sendall(sent)
        return b"".join(iter(lambda: connection.recv(4096), b""))


@pytest.mark.parametrize(
    ("sent", "line", "said"),
    [
        (http2_frames.PREFACE, b"HTTP/1.0 505 ", b"this port speaks HTTP/1; gRPC is on the port of normfold serve --l"),
        (b"nonsense\r\n\r\n", b"HTTP/1.0 400 ", b"Bad request syntax ('nonsense')"),
        (b"BREW / HTTP/1.1\r\n\r\n", b"HTTP/1.0 405 ", b"BREW is not answered here"),
    ],
)
def test_what_is_refused_is_refused_with_a_status_and_a_line_of_text(sent, line, said):
    with opened(lambda path: HttpAnswer(HTTPStatus.OK, b"")) as address:
        answer = answer_to(address, sent)
        assert answer.startswith(line)
        assert b"\r\nContent-Type: text/plain" in answer
        assert answer.partition(b"\r\n\r\n")[2].startswith(said)


def test_a_port_in_use_is_named_with_the_option():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(StartError, match=rf"{address} for metrics: Address already in use.*--metrics-listen"):
            HttpPort(address, lambda path: HttpAnswer(HTTPStatus.OK, b""))


def test_more_requests_than_threads_are_refused_at_once(monkeypatch):
    monkeypatch.setattr(port, "MOST_AT_ONCE", 1)
    entered, leave = threading.Event(), threading.Event()

    def slow(path):
        entered.set()
        leave.wait(30)
        return HttpAnswer(HTTPStatus.OK, b"slow")

    with opened(slow) as address:
        first = []
        asking = threading.Thread(target=lambda: first.append(get(address, "/slow")[1]))
        asking.start()
        assert entered.wait(30)
        assert get(address, "/")[0] == 503
        leave.set()
        asking.join(30)
        assert first == [b"slow"]


def pending(address: str) -> socket.socket:
    """A connection that has sent half the line of its request."""
    host, _, number = address.rpartition(":")
    connection = socket.create_connection((host, int(number)), timeout=30)
    connection.sendall(b"GET /metrics HT")
    return connection


def ended(connection: socket.socket) -> bool:
    """Wait until the server closes the connection."""
    with contextlib.suppress(ConnectionError):
        while connection.recv(1 << 16):
            pass
    return True


def threads() -> int:
    return sum(thread.name.endswith("(process_request_thread)") for thread in threading.enumerate())


def test_connections_that_ask_nothing_are_few_and_give_way_to_those_that_ask():
    with opened(lambda path: HttpAnswer(HTTPStatus.OK, path.encode())) as address:
        first = [pending(address) for _ in range(METRICS_CONNECTIONS)]
        wait_until(lambda: threads() == METRICS_CONNECTIONS)
        more = [pending(address) for _ in range(3 * METRICS_CONNECTIONS)]
        assert all(map(ended, [*first, *more[: 2 * METRICS_CONNECTIONS]]))
        wait_until(lambda: threads() == METRICS_CONNECTIONS)
        assert get(address, "/metrics")[:2] == (200, b"/metrics")
        for connection in [*first, *more]:
            connection.close()


def test_whoever_asks_while_as_many_as_allowed_are_answered_is_told_so():
    leave, entered = threading.Event(), threading.Semaphore(0)

    def slow(path):
        entered.release()
        leave.wait(30)
        return HttpAnswer(HTTPStatus.OK, b"slow")

    with opened(slow) as address:
        answers = []
        waiting = [
            threading.Thread(target=lambda: answers.append(get(address, "/")[1])) for _ in range(port.MOST_AT_ONCE)
        ]
        for thread in waiting:
            thread.start()
        assert all(entered.acquire(timeout=30) for _ in waiting)
        for _ in range(2 * METRICS_CONNECTIONS):
            assert get(address, "/")[0] == 503
        leave.set()
        for thread in waiting:
            thread.join(30)
        assert answers == [b"slow"] * port.MOST_AT_ONCE


def test_who_has_asked_keeps_its_place():
    places = Places(1, 60.0)
    (first, _a), (second, _b) = socket.socketpair(), socket.socketpair()
    assert places.take(first)
    assert places.asked(first)
    assert not places.take(second)
    with places.given_back(first):
        first.close()
    assert places.take(second)


@pytest.mark.parametrize("sent", [b"GET /metrics HT", b"GET /metrics HTTP/1.0\r\nX: "])
def test_a_request_that_drips_has_one_time_limit_and_is_not_answered(monkeypatch, sent):
    monkeypatch.setattr(port, "PATIENCE_SECONDS", 0.6)
    asked = []

    def answer(path):
        asked.append(path)
        return HttpAnswer(HTTPStatus.OK, b"")

    with opened(answer) as address:
        client = pending(address)
        client.settimeout(0.05)
        client.sendall(sent.removeprefix(b"GET /metrics HT"))
        while True:
            try:
                client.sendall(b"T")
                if not client.recv(1):
                    break
            except TimeoutError:
                continue
            except ConnectionError:
                break
        wait_until(lambda: threads() == 0)
        assert asked == []


def test_an_answer_that_is_not_taken_has_the_same_time_limit(monkeypatch):
    monkeypatch.setattr(port, "PATIENCE_SECONDS", 0.6)
    monkeypatch.setattr(port._Handler, "timeout", 60)
    with opened(lambda path: HttpAnswer(HTTPStatus.OK, bytes(64 << 20))) as address:
        client = pending(address)
        client.sendall(b"TP/1.0\r\n\r\n")
        wait_until(lambda: threads() == 1)
        wait_until(lambda: threads() == 0)
        client.close()


@pytest.mark.parametrize(("files", "connections"), [(64, 22), (256, 112), (1024, 744), (resource.RLIM_INFINITY, None)])
def test_the_connections_of_grpc_leave_files_for_those_of_this_port_and_for_shared_memory(
    monkeypatch, files, connections
):
    monkeypatch.setattr(resource, "getrlimit", lambda which: (files, files))
    most = open_files.most_connections()
    assert most == connections or (connections is None and most > 1 << 29)
    assert files == resource.RLIM_INFINITY or most + METRICS_CONNECTIONS + open_files.most_shared_objects() < files
