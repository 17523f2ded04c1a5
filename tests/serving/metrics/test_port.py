"""The HTTP port: what it answers, and what it refuses."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
from http import HTTPStatus

import pytest

from normfold.serving.errors import StartError
from normfold.serving.metrics import port
from normfold.serving.metrics.port import HttpAnswer, HttpPort


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
        assert get(address, "/", "POST")[0] == 501


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
