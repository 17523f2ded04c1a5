"""The connections of a ``Client``: made when they are needed, shared by its threads, replaced when they end.

As in blocking.py, an exception may come after any call of a function. It may leave an Event or a Condition locked for
ever, so there is none here: each thread that waits does so at a lock of its own.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import OrderedDict
from typing import TYPE_CHECKING

from normfold.serving.client.transport import failures
from normfold.serving.client.transport.answers import Reply
from normfold.serving.client.transport.blocking import WAKE_SECONDS, BlockingConnection
from normfold.serving.client.transport.destination import Endpoint
from normfold.serving.client.transport.dialling import Address, dial, shake_hands
from normfold.serving.client.transport.opening import Opening, Pairs
from normfold.serving.client.transport.remote_call import RemoteCall
from normfold.serving.client.transport.retries import Retries
from normfold.serving.errors import Status

if TYPE_CHECKING:
    import ssl
    from _thread import LockType

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
        self._closed = False
        #: Where the last connection came about.
        self._worked: Address | None = None
        self._begin()
        _ALL.add(self)

    def _begin(self) -> None:
        self._connections: list[BlockingConnection] = []
        self._lock = threading.Lock()
        #: Held by nobody in particular until the client is closed.
        self._over = threading.Lock()
        if not self._closed:
            self._over.acquire()
        #: The locks of those that wait for a connection, in their order.
        self._waiting: OrderedDict[LockType, None] = OrderedDict()
        #: Whoever makes a connection now.
        self._dialler: object = None
        #: The failures so far, and the last one.
        self._failed, self._failure = 0, failures.EXPIRED

    def call(self, path: str, data: bytes, seconds: float, metadata: Pairs | None = None) -> Reply:
        """The reply to a call of ``path`` with the serialized request ``data``, within ``seconds``."""
        message = self._opening.message(data)
        deadline = time.monotonic() + seconds
        reply = self._attempt(self._opening.block(path, seconds, metadata), message, deadline)
        if reply.status is Status.OK:
            return reply
        retries = Retries()
        while (pause := retries.pause(path, reply, deadline - time.monotonic())) is not None:
            if self._closed_within(pause):
                return failures.CLOSED
            left = max(deadline - time.monotonic(), 1e-3)
            reply = self._attempt(self._opening.block(path, round(left, 2) or left, metadata), message, deadline)
        return reply

    def close(self) -> None:
        """Close the connections; calls without an answer end as CANCELLED."""
        with self._lock:
            first, self._closed = not self._closed, True
            connections, self._connections = self._connections, []
            self._wake(len(self._waiting))
        if first:
            self._over.release()
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
                with self._lock:
                    self._wake(1)
            if reply is not None:
                return reply
            found = self._connection(deadline)
            if isinstance(found, Reply):
                return found
            connection = found

    def _connection(self, deadline: float) -> BlockingConnection | Reply:
        """A connection that takes a call, as soon as there is one; a reply where none comes about."""
        failed, me = self._failed, object()
        while True:
            waiter = None
            try:
                with self._lock:
                    found = self._found(failed)
                    if found is not None:
                        return found
                    left = deadline - time.monotonic()
                    if left <= 0:
                        return failures.EXPIRED
                    if self._dialler is None and len(self._connections) < MOST_CONNECTIONS:
                        self._dialler = me
                    else:
                        waiter = threading.Lock()
                        waiter.acquire()
                        self._waiting[waiter] = None
                if waiter is None:
                    return self._made(deadline)
                waiter.acquire(timeout=min(left, WAKE_SECONDS))
            finally:
                if self._dialler is me:
                    self._dialler = None  # no call of a function before this: no exception can come between
                    self._stop_waiting(None)
                elif waiter is not None:
                    self._stop_waiting(waiter)

    def _found(self, failed: int) -> BlockingConnection | Reply | None:
        """A connection that takes a call, or why there is none; None: one must be made, or waited for."""
        if self._closed:
            return failures.CLOSED
        for connection in self._connections:
            if connection.end.silent or not connection.end.calls:  # no thread reads what it says, such as of more room
                connection.listen()
        for connection in [one for one in self._connections if one.end.silent and not one.end.calls][:-1]:
            connection.close()  # a newer one is silent, too: that is listened to
        self._connections = [one for one in self._connections if not one.end.going_away]
        for connection in self._connections:
            if connection.end.room > 0:
                return connection
        return None if self._failed == failed else self._failure

    def _made(self, deadline: float) -> BlockingConnection | Reply:
        """One more connection; a reply where none comes about."""
        try:
            made = self._dial(deadline)
        except OSError as error:
            if self._closed:
                return failures.CLOSED
            if isinstance(error, TimeoutError) and error.errno is None:
                return failures.EXPIRED  # the deadline has passed, and not that of the system
            failure = failures.of_error(self._address, error)
            with self._lock:
                self._failed, self._failure = self._failed + 1, failure
            return failure
        with self._lock:
            if not self._closed:
                self._connections = [*self._connections, made]
                return made
        made.close()
        return failures.CLOSED

    def _stop_waiting(self, waiter: LockType | None) -> None:
        """One that has waited goes on; None: whoever made a connection, and so do all others."""
        with self._lock:
            if waiter is not None:
                self._waiting.pop(waiter, None)
            else:
                self._wake(len(self._waiting))

    def _wake(self, count: int) -> None:
        for _ in range(min(count, len(self._waiting))):
            self._waiting.popitem(last=False)[0].release()

    def _closed_within(self, seconds: float) -> bool:
        """Whether the client is closed within ``seconds``."""
        if self._over.acquire(timeout=seconds):
            self._over.release()
        return self._closed

    def _wait(self, seconds: float) -> None:
        """Wait. Raises OSError once the client is closed."""
        if self._closed_within(seconds):
            raise ConnectionAbortedError

    def _dial(self, deadline: float) -> BlockingConnection:
        sock, self._worked = dial(self._destination, deadline, self._worked, self._wait)
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
