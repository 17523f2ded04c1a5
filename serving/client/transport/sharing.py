"""The connections of a ``Client``: made when they are needed, shared by its threads, replaced when they end."""

from __future__ import annotations

import os
import threading
import time
import weakref
from typing import TYPE_CHECKING

from normfold.serving.client.transport import failures
from normfold.serving.client.transport.answers import Reply
from normfold.serving.client.transport.blocking import BlockingConnection
from normfold.serving.client.transport.destination import Endpoint
from normfold.serving.client.transport.dialling import dial, shake_hands
from normfold.serving.client.transport.opening import Opening
from normfold.serving.client.transport.remote_call import RemoteCall
from normfold.serving.client.transport.retries import Retries
from normfold.serving.errors import Status

if TYPE_CHECKING:
    import ssl

#: Connections of one client. A further one is made when the server takes no more calls on those that there are.
MOST_CONNECTIONS = 16

_ALL: weakref.WeakSet[SharedConnections] = weakref.WeakSet()


class SharedConnections:
    """Sends calls of any thread to one server."""

    def __init__(
        self,
        address: str,
        destination: Endpoint,
        opening: Opening,
        tls: tuple[ssl.SSLContext, str] | None = None,
        keepalive: float = 0.0,
    ) -> None:
        """Connect to nothing yet. ``tls``: how, and the name that the server's certificate must have."""
        self._address, self._destination, self._opening, self._tls, self._keepalive = (
            address,
            destination,
            opening,
            tls,
            keepalive,
        )
        self._over = threading.Event()
        self._begin()
        _ALL.add(self)

    def _begin(self) -> None:
        closed, self._over = self._over.is_set(), threading.Event()  # once the client is closed
        if closed:
            self._over.set()
        self._connections: list[BlockingConnection] = []
        self._changed = threading.Condition()
        self._waiting = 0
        self._dialling = False
        #: The failures so far, and the last one.
        self._failed, self._failure = 0, failures.EXPIRED

    def call(self, path: str, data: bytes, seconds: float) -> Reply:
        """The reply to a call of ``path`` with the serialized request ``data``, within ``seconds``."""
        message = self._opening.message(data)
        deadline = time.monotonic() + seconds
        reply = self._attempt(self._opening.block(path, seconds), message, deadline)
        if reply.status is Status.OK:
            return reply
        retries = Retries()
        while (pause := retries.pause(path, reply, deadline - time.monotonic())) is not None:
            if self._over.wait(pause):
                return failures.CLOSED
            left = max(deadline - time.monotonic(), 1e-3)
            reply = self._attempt(self._opening.block(path, round(left, 2) or left), message, deadline)
        return reply

    def close(self) -> None:
        """Close the connections; calls without an answer end as CANCELLED."""
        with self._changed:
            self._over.set()
            connections, self._connections = self._connections, []
            self._changed.notify_all()
        for connection in connections:
            connection.close()

    def forked(self) -> None:
        """Forget the connections of the parent process, in a child: the sockets are the parent's."""
        connections = self._connections
        self._begin()
        for connection in connections:
            connection.abandon()

    def _attempt(self, block: bytes, message: tuple[bytes, bytes], deadline: float) -> Reply:
        for connection in self._connections:
            if connection.end.room > 0:
                break
        else:
            found = self._connection(deadline)
            if isinstance(found, Reply):
                return found
            connection = found
        while True:
            call = RemoteCall(BlockingConnection.woken)
            reply = connection.run(call, block, message, deadline)
            if self._waiting:
                with self._changed:
                    self._changed.notify()
            if reply is not None:
                return reply
            found = self._connection(deadline)
            if isinstance(found, Reply):
                return found
            connection = found

    def _connection(self, deadline: float) -> BlockingConnection | Reply:
        """A connection that takes a call, as soon as there is one; a reply where none comes about."""
        with self._changed:
            failed = self._failed
            while True:
                if self._over.is_set():
                    return failures.CLOSED
                self._connections = [one for one in self._connections if not one.end.going_away]
                for connection in self._connections:
                    if connection.end.room > 0:
                        return connection
                if not self._dialling and len(self._connections) < MOST_CONNECTIONS:
                    self._dialling = True
                    break
                left = deadline - time.monotonic()
                if left <= 0:
                    return failures.EXPIRED
                self._waiting += 1
                try:
                    self._changed.wait(min(left, threading.TIMEOUT_MAX))
                finally:
                    self._waiting -= 1
                if self._failed != failed:
                    return self._failure
        made: BlockingConnection | None = None
        failure = None
        try:
            made = self._dial(deadline)
        except TimeoutError:
            return failures.EXPIRED
        except OSError as error:
            failure = failures.of_error(self._address, error)
            return failure
        finally:
            with self._changed:
                self._dialling = False
                closed = self._over.is_set()
                if made is not None and not closed:
                    self._connections = [*self._connections, made]
                elif failure is not None:
                    self._failed, self._failure = self._failed + 1, failure
                self._changed.notify_all()
        if closed:
            made.close()
            return failures.CLOSED
        return made

    def _dial(self, deadline: float) -> BlockingConnection:
        sock = dial(self._destination, deadline)
        try:
            tls = None
            if self._tls is not None:
                from normfold.serving.client.transport.tls import TlsEnd

                tls = TlsEnd(*self._tls)
                shake_hands(sock, tls, deadline)
            connection = BlockingConnection(sock, self._address, tls, self._keepalive)
            connection.end.expect_like(one.end for one in self._connections)
            return connection
        except BaseException:
            sock.close()
            raise


def _forked() -> None:
    for connections in list(_ALL):
        connections.forked()


os.register_at_fork(after_in_child=_forked)
