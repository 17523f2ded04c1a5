"""The frames that a client sends: requests, as far as the server's windows allow, and what ends them."""

from __future__ import annotations

from collections import deque

from normfold.serving.client.transport.remote_call import RemoteCall
from normfold.serving.wire import http2_frames as h2
from normfold.serving.wire.http2_headers import LIST_BYTES

#: One frame from the server, in bytes.
FRAME_BYTES = 1 << 20
#: Data that the server may send on one stream before it gets its window back, in bytes.
WINDOW_BYTES = 1 << 24
#: Streams that are opened before the server has said how many it takes (RFC 9113 recommends to allow 100).
_BEFORE_SETTINGS = 100
#: The bytes of a message in one frame with its prefix, also where it is sent without a copy. They say which model is
#: asked: a server that is full for it refuses the request before it reads the rest.
_FIRST_BYTES = 1024
#: Pings to a server that has answered nothing since. Servers on grpcio end a connection with more of them.
_MOST_PINGS = 2
#: The numbers of streams end here; a connection that comes near is not used for further calls.
_LAST_NUMBER = h2.LARGEST_WINDOW - 2

GREETING = (
    h2.PREFACE
    + h2.settings(
        {
            h2.HEADER_TABLE_SIZE: 0,
            h2.ENABLE_PUSH: 0,
            h2.INITIAL_WINDOW_SIZE: WINDOW_BYTES,
            h2.MAX_FRAME_SIZE: FRAME_BYTES,
            h2.MAX_HEADER_LIST_SIZE: LIST_BYTES,
        }
    )
    + h2.frame(h2.WINDOW_UPDATE, 0, 0, (h2.LARGEST_WINDOW - h2.DEFAULT_WINDOW).to_bytes(4, "big"))
)


class Outgoing:
    """The frames to be written, the calls that they are for, and the server's windows."""

    def __init__(self) -> None:
        #: Frames and parts of frames, in their order.
        self.out: list[bytes | memoryview] = [GREETING]
        self.calls: dict[int, RemoteCall] = {}
        #: Whether the server takes no further calls on this connection.
        self.going_away = False
        #: Counts what comes; a connection on which it stays the same is silent.
        self.heard = 0
        #: ``heard`` when a call had waited in vain for anything to come; -1: none has.
        self._doubted = -1
        #: The pings since the server has last answered a call.
        self.pings = 0
        #: The calls that the server takes at once.
        self.most_calls = _BEFORE_SETTINGS
        #: The windows that the server gives: of the connection, of each new stream; and its largest frame.
        self.window, self.initial, self.largest = h2.DEFAULT_WINDOW, h2.DEFAULT_WINDOW, h2.DEFAULT_FRAME
        self._next = 1

    @property
    def room(self) -> int:
        """The number of calls that may be opened now."""
        if self.going_away or self._doubted == self.heard or self._next > _LAST_NUMBER:
            return 0
        return self.most_calls - len(self.calls)

    @property
    def silent(self) -> bool:
        """Whether a call has waited in vain for anything to come, and nothing has come since."""
        return self._doubted == self.heard

    def doubt(self, call: RemoteCall) -> None:
        """Nobody waits for ``call`` any more. If nothing at all has come since it was sent, the connection may be dead.

        Then it takes no calls until something comes, such as the answer to the ping that is sent now. A server that has
        answered several pings and no call may be slow, and must not be pinged for ever: its connection takes no more
        calls.
        """
        if call.heard != self.heard or self.silent:
            return
        self._doubted = self.heard
        if self.pings < _MOST_PINGS:
            self.pings += 1
            self.ping()
        else:
            self.going_away = True

    def open(self, call: RemoteCall, block: bytes, prefix: bytes, message: bytes, end: bool = True) -> None:
        """Begin a call with one message; ``end``: the request has no other. There must be ``room``."""
        number = call.number = self._next
        self._next += 2
        self.calls[number] = call
        call.heard = self.heard
        call.window = self.initial
        size = len(prefix) + len(message)
        out = self.out
        if size <= self.largest and size <= self.window and size <= call.window and len(block) <= h2.DEFAULT_FRAME:
            self.window -= size
            call.window -= size
            call.asked = end
            out += (
                h2.HEAD.pack(len(block) << 8 | h2.HEADERS, h2.END_HEADERS, number),
                block,
                h2.HEAD.pack(size << 8 | h2.DATA, h2.END_STREAM if end else 0, number),
                prefix,
                message,
            )
            return
        kind = h2.HEADERS
        for at in range(0, len(block), h2.DEFAULT_FRAME):
            part = block[at : at + h2.DEFAULT_FRAME]
            last = at + len(part) == len(block)
            out.append(h2.frame(kind, h2.END_HEADERS if last else 0, number, part))
            kind = h2.CONTINUATION
        self.send(call, prefix, message, end)

    def send(self, call: RemoteCall, prefix: bytes, message: bytes, end: bool = False) -> None:
        """Send one more message of a request, as the server's windows allow."""
        call.heard = self.heard
        if call.waiting is None:
            call.waiting = deque()
        data = memoryview(message)
        call.waiting.append(memoryview(prefix + bytes(data[:_FIRST_BYTES])))
        if len(data) > _FIRST_BYTES:
            call.waiting.append(data[_FIRST_BYTES:])
        call.end_waits = end
        self.release(call)

    def release(self, call: RemoteCall) -> None:
        """Send as much of the waiting data of a call as the server's windows allow."""
        waiting = call.waiting
        if waiting is None:
            return
        while waiting:
            data = waiting[0]
            size = min(len(data), self.largest, self.window, call.window)
            if size <= 0 and len(data):
                return
            self.window -= size
            call.window -= size
            whole = size == len(data)
            if whole:
                waiting.popleft()
            else:
                waiting[0] = data[size:]
            last = call.end_waits and not waiting
            self.out += (h2.HEAD.pack(size << 8 | h2.DATA, h2.END_STREAM if last else 0, call.number), data[:size])
            call.asked = last
        call.waiting = None

    def release_all(self) -> None:
        """Send as much of the waiting data of every call as the server's windows allow."""
        for call in list(self.calls.values()):
            if call.waiting is not None:
                if self.window <= 0:
                    return
                self.release(call)

    def cancel(self, call: RemoteCall, code: int = h2.CANCEL) -> None:
        """Forget a call, and ask the server to do so, too."""
        if self.calls.pop(call.number, None) is not None:
            call.waiting = None
            self.out.append(h2.frame(h2.RST_STREAM, 0, call.number, code.to_bytes(4, "big")))

    def ping(self) -> None:
        """Ask for a sign of life."""
        self.out.append(h2.frame(h2.PING, 0, 0, b"normfold"))
