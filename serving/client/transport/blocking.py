"""Calls that block, without a thread of ours: the threads that wait for answers read the socket in turn.

One of the waiting threads *leads*: it waits for the socket and takes what comes, for all calls of the connection. Each
of the others waits for its own call. A leader whose call has ended leaves the lead to another.

The handler of a signal (Ctrl-C) may raise an exception after any call of a function. So a connection on which something
is half written or half read ends. The first statement of a ``finally`` gives the lead back. And each thread that waits
looks now and then whether somebody leads.
"""

from __future__ import annotations

import contextlib
import math
import select
import socket
import threading
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING

from normfold.serving.client.transport import failures
from normfold.serving.client.transport.answers import Reply
from normfold.serving.client.transport.connection import ClientEnd
from normfold.serving.client.transport.control import ConnectionFault
from normfold.serving.client.transport.remote_call import RemoteCall
from normfold.serving.errors import Status
from normfold.serving.wire import http2_frames as h2

if TYPE_CHECKING:
    from normfold.serving.client.transport.tls import TlsEnd

#: Bytes that are read at a time; more while a large message comes.
_READ_BYTES, _MUCH_BYTES = 1 << 16, 1 << 20
#: A thread that waits for the socket to take its request looks this often whether it must lead, in seconds.
_LOOK_SECONDS = 0.05
#: Any other thread that waits looks this often, in seconds: an exception may have kept another from waking it.
WAKE_SECONDS = 1.0
#: Parts that are written together, in bytes, by a copy of them.
_JOINED_BYTES = 1 << 16
#: The time for an answer to a ping, in seconds.
PING_SECONDS = 20.0


class BlockingConnection:
    """One connection that any number of threads use at once."""

    def __init__(self, sock: socket.socket, address: str, tls: TlsEnd | None, keepalive: float) -> None:
        """``sock`` is connected and does not block. ``keepalive``: seconds of silence before a ping; 0: no pings."""
        self.end = ClientEnd()
        self._sock, self._address, self._tls, self._keepalive = sock, address, tls, keepalive
        self._lock = threading.Lock()
        #: The call whose thread leads, if one does.
        self._leader: RemoteCall | None = None
        #: The bytes that the socket has not taken yet.
        self._left: list[memoryview] = []
        #: The number of the first error of the socket.
        self._errno: int | None = None
        self._first = b""
        self._reading, self._both = select.poll(), select.poll()
        self._reading.register(sock, select.POLLIN)
        self._both.register(sock, select.POLLIN | select.POLLOUT)

    def run(self, call: RemoteCall, block: bytes, message: tuple[bytes, bytes], deadline: float) -> Reply | None:
        """Send a call and wait for its reply; None: this connection takes no call now."""
        try:
            with self._lock:
                if not self.end.calls and self._leader is None:
                    self._catch_up()
                if self.end.room <= 0:
                    return None
                self.end.open(call, block, *message)
                self._flush()
        except BaseException:
            self._interrupted()
            raise
        try:
            while call.reply is None and (left := deadline - monotonic()) > 0:
                waiter = writing = None
                with self._lock:
                    if call.reply is not None:
                        break
                    if self._leader is None:
                        self._leader = call
                    elif not self._left:
                        call.waiter = waiter = threading.Lock()
                        waiter.acquire()
                    else:  # the socket is open; a poll object of its own, because only one thread may wait with each
                        writing = select.poll()
                        writing.register(self._sock, select.POLLOUT)
                if self._leader is call:
                    self._lead(call, deadline)
                elif waiter is not None:
                    waiter.acquire(timeout=min(left, WAKE_SECONDS))
                elif writing is not None:
                    writing.poll(1000 * min(left, _LOOK_SECONDS))
                    self._change(self._flush)
        finally:
            if self._leader is call:
                self._leader = None  # no call of a function before this: no exception can come between
            self._leave(call)
        return call.reply or failures.EXPIRED

    def close(self, reply: Reply = failures.CLOSED) -> None:
        """Close the socket; calls without an answer end with ``reply``."""
        with self._lock:
            self._give_up(reply.details, reply.status)

    def listen(self) -> None:
        """Take what has come, if no thread does that anyway."""
        self._change(self._catch_up_alone, self._flush)

    def abandon(self) -> None:
        """Close the socket of a process that this one was forked from, and nothing else."""
        self.end.going_away = True
        self._sock.close()

    # leading

    def _lead(self, call: RemoteCall, deadline: float) -> None:
        """Take what comes until ``call`` has ended, or its deadline has passed."""
        keepalive, heard, pinged, since = self._keepalive, self.end.heard, False, monotonic()
        while call.reply is None:
            left = deadline - monotonic()
            if left <= 0:
                return
            if keepalive:
                if self.end.heard != heard:
                    heard, pinged, since = self.end.heard, False, monotonic()
                silence = since + keepalive + (PING_SECONDS if pinged else 0) - monotonic()
                if silence <= 0:
                    if pinged:
                        self.close(failures.no_ping(self._address))
                        return
                    pinged = True
                    self._change(self.end.ping, self._flush)
                    continue
                left = min(left, silence)
            if not (self._both if self._left else self._reading).poll(math.ceil(left * 1000)):
                continue
            try:
                data = self._read()
                with self._lock:
                    if data is not None:
                        self._take(data)
                    self._flush()
            except BaseException:
                self._interrupted()
                raise

    def _wake_another(self) -> None:
        for call in self.end.calls.values():
            if call.waiter is not None:
                self.woken(call)
                return

    @staticmethod
    def woken(call: RemoteCall) -> None:
        """Wake the thread that waits for ``call``."""
        waiter, call.waiter = call.waiter, None
        if waiter is not None:
            waiter.release()

    def _leave(self, call: RemoteCall) -> None:
        """The thread of ``call`` waits no more, whatever the reason."""
        others = self._leader is None and self.end.calls
        if call.reply is None or others or self.end.going_away:
            self._change(lambda: self._left_by(call))

    def _left_by(self, call: RemoteCall) -> None:
        if call.reply is None:
            self.end.doubt(call)
            self.end.cancel(call)
            self._flush()
        if self._leader is None:
            self._wake_another()
        if self.end.going_away and not self.end.calls:
            self._give_up("the server goes away")

    def _change(self, *steps: Callable[[], object]) -> None:
        """Carry out ``steps``, which change what the threads share."""
        try:
            with self._lock:
                for step in steps:
                    step()
        except BaseException:
            self._interrupted()
            raise

    def _interrupted(self) -> None:
        """An exception came while something was half done: the connection is of no use any more."""
        self.end.going_away = True  # first: whatever else comes, no further call begins here
        with self._lock:
            self._give_up("the connection was interrupted")

    # the socket

    def _read(self) -> bytes | None:
        """The bytes that have come; None: there are none. b"" at the end."""
        try:
            return self._sock.recv(_MUCH_BYTES if self.end.reads_much else _READ_BYTES)
        except BlockingIOError:
            return None
        except OSError as error:
            self._errno = self._errno or error.errno
            return b""

    def _catch_up_alone(self) -> None:
        if self._leader is None:
            self._catch_up()

    def _catch_up(self) -> None:
        """Take what came while nobody waited: a farewell, a ping, the end."""
        while not self.end.going_away and (data := self._read()) is not None:
            self._take(data)

    def _take(self, data: bytes) -> None:
        try:
            if self._tls is not None:
                data, came = self._tls.decrypted(data), data
                if self._tls.ended or not came:
                    if data:
                        self.end.receive(data)
                    data = b""
                elif not data:
                    return
            if not data:
                self._ended()
                return
            if not self.end.settled:
                self._first += data[:16]
            self.end.receive(data)
        except ConnectionFault as fault:
            why = f"the server at {self._address} broke the protocol: {fault}"
            if not self.end.settled:
                why = failures.not_grpc(self._address, self._first, str(fault)).details
            self.end.out.append(h2.goaway(0, fault.code))
            with contextlib.suppress(OSError):
                self._flush()
            self._give_up(why)
        except OSError as error:  # of TLS
            self._give_up(failures.no_tls(self._address, failures.tls_words(error)).details)

    def _ended(self) -> None:
        """Nothing more comes: the server has closed the connection, or the system has given it up."""
        has_tls = self._tls is not None
        self._give_up(failures.ended(self._address, self._errno, self.end.settled, has_tls).details)

    def _flush(self) -> None:
        """Write as much as the socket takes now."""
        left = self._left
        try:
            if out := self.end.out:
                self.end.out = []
                if self._tls is not None:
                    left.append(memoryview(self._tls.encrypted(out)))
                elif sum(map(len, out)) <= _JOINED_BYTES:
                    left.append(memoryview(b"".join(out)))
                else:
                    left += [memoryview(part) for part in out if len(part)]
            while left:
                sent = self._sock.send(left[0]) if len(left) == 1 else self._sock.sendmsg(left[:64])
                while left and sent >= len(left[0]):
                    sent -= len(left.pop(0))
                if sent:
                    left[0] = left[0][sent:]
        except BlockingIOError:
            return
        except OSError as error:
            self._errno = self._errno or error.errno  # the system says it once; the next read ends the connection
            left.clear()

    def _give_up(self, why: str, status: Status = Status.UNAVAILABLE) -> None:
        """End the connection and all its calls."""
        self._left.clear()
        self.end.lost(why, status)
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)  # wakes the thread that leads
        if self._leader is None:
            self._sock.close()
