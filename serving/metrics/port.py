"""The HTTP port of a server, for scrapers, probes and load balancers: metrics and health, and nothing else.

It is served by threads of its own. The event loop answers what they ask, so that a loop that hangs fails the probes.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from normfold.serving.errors import StartError
from normfold.serving.metrics.places import Places
from normfold.serving.process.address import host_and_port
from normfold.serving.process.open_files import METRICS_CONNECTIONS

log = logging.getLogger(__name__)

#: Time from the beginning of a connection to its end, for a whole request and its answer, in seconds.
PATIENCE_SECONDS = 10.0

#: Requests that are answered at the same time; more are refused.
MOST_AT_ONCE = METRICS_CONNECTIONS // 2


class HttpAnswer(NamedTuple):
    """The answer to one request."""

    status: HTTPStatus
    body: bytes
    content_type: str = "text/plain; charset=utf-8"


class HttpPort:
    """Answers GET and HEAD with what ``answer`` returns for the path of the request."""

    def __init__(self, listen: str, answer: Callable[[str], HttpAnswer], reuse_port: bool = False) -> None:
        """Listen on "host:port" (port 0: any free one); ``answer`` is called on threads. Raises StartError.

        With ``reuse_port`` other processes that set it, too, may listen on the same port.
        """
        host, port = host_and_port(listen)
        try:
            family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            self._server = _Server(where, family, answer, reuse_port)
        except OSError as error:
            why = error.strerror or str(error)
            raise StartError(
                f"cannot listen on {listen} for metrics: {why}; choose another with --metrics-listen host:port, or off"
            ) from None
        #: "host:port" with the real port.
        self.address = f"{listen.rpartition(':')[0]}:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, name="normfold-http", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Close the port. Requests under way may be cut."""
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(
        self, where: tuple[object, ...], family: int, answer: Callable[[str], HttpAnswer], reuse_port: bool
    ) -> None:
        self.address_family, self.allow_reuse_port, self.answer = family, reuse_port, answer
        self.free = threading.Semaphore(MOST_AT_ONCE)
        self.places = Places(METRICS_CONNECTIONS, PATIENCE_SECONDS)
        super().__init__(where[:2], _Handler)  # type: ignore[arg-type]

    def server_bind(self) -> None:
        # The library's own looks up the host's name, which may take seconds.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if self.allow_reuse_port:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()

    # called by the library, in the thread that accepts; shutdown_request in that of a connection, too

    def verify_request(self, request: Any, client_address: object) -> bool:
        return self.places.take(request)

    def service_actions(self) -> None:
        self.places.look()

    def shutdown_request(self, request: Any) -> None:
        with self.places.given_back(request):
            super().shutdown_request(request)

    def handle_error(self, request: object, client_address: object) -> None:
        log.debug("a client of the metrics port left", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    timeout = PATIENCE_SECONDS
    server_version, sys_version = "normfold", ""
    server: _Server

    def do_GET(self) -> None:
        if not self.server.places.asked(self.connection):
            return
        if not self.server.free.acquire(blocking=False):
            self._send(HttpAnswer(HTTPStatus.SERVICE_UNAVAILABLE, b"too many requests at once\n"))
            return
        try:
            self._send(self.server.answer(self.path.partition("?")[0]))
        finally:
            self.server.free.release()

    do_HEAD = do_GET  # noqa: N815 - the library's name

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse a request that the library does not take, in one line instead of a page."""
        status, said = HTTPStatus(code), message or HTTPStatus(code).phrase
        if status is HTTPStatus.NOT_IMPLEMENTED:
            status, said = HTTPStatus.METHOD_NOT_ALLOWED, f"{self.command} is not answered here, only GET and HEAD"
        elif status is HTTPStatus.HTTP_VERSION_NOT_SUPPORTED:
            said = "this port speaks HTTP/1; gRPC is on the port of normfold serve --listen"
        self.request_version = self.protocol_version  # else a request that is not read has an answer without a status
        self.close_connection = True
        self._send(HttpAnswer(status, f"{said}\n".encode()))

    def _send(self, answer: HttpAnswer) -> None:
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        self.send_header("Cache-Control", "no-store")
        if answer.status is HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET, HEAD")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def log_message(self, format: str, *args: object) -> None:
        log.debug(format, *args)
