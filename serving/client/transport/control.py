"""A server's frames with neither data nor headers (RFC 9113, section 6): one function a kind, in one table."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Protocol

from normfold.serving.client.transport.remote_call import RemoteCall
from normfold.serving.wire import http2_frames as h2

#: A larger window helps if it lets at least this much data go, in bytes.
_FRUITFUL_BYTES = 1024
_SETTING = struct.Struct(">HI")


class ConnectionFault(Exception):
    """A server that breaks the protocol: an error code of HTTP/2 and the reason. The connection ends."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(why)
        self.code = code


class Steered(Protocol):
    """The client's end of a connection, as these frames need it."""

    out: list[bytes | memoryview]
    calls: dict[int, RemoteCall]
    settled: bool
    most_calls: int
    window: int
    initial: int
    largest: int

    def fruitless(self) -> None:
        """Count a frame that brings no call nearer to its end. Raises ConnectionFault when there were too many."""

    def check_opened(self, number: int) -> None:
        """Raise ConnectionFault unless stream ``number`` is one that we have opened."""

    def release(self, call: RemoteCall) -> None:
        """Send as much of the waiting data of a call as the server's windows allow."""

    def release_all(self) -> None:
        """Send as much of the waiting data of every call as the server's windows allow."""

    def was_reset(self, number: int, code: int) -> None:
        """The server has reset stream ``number``."""

    def refuse_from(self, number: int) -> None:
        """The server goes away, and has not looked at streams from ``number`` on."""


def expect(sound: bool, size: bool = True) -> None:
    """Raise ConnectionFault unless a frame has a right size (``size``) and may be sent here (``sound``)."""
    if not size:
        raise ConnectionFault(h2.FRAME_SIZE_ERROR, "a frame of a wrong size")
    if not sound:
        raise ConnectionFault(h2.PROTOCOL_ERROR, "a frame on a stream, or with a value, that is not allowed")


def _settings(end: Steered, flags: int, number: int, payload: bytes) -> None:
    end.fruitless()
    ack = flags & h2.ACK
    expect(number == 0, len(payload) % 6 == 0 and not (ack and payload))
    if ack:
        return
    if not end.settled:
        end.settled, end.most_calls = True, h2.LARGEST_WINDOW
    for key, value in _SETTING.iter_unpack(payload):
        if key == h2.MAX_CONCURRENT_STREAMS:
            end.most_calls = value
        elif key == h2.INITIAL_WINDOW_SIZE:
            by = value - end.initial
            if value > h2.LARGEST_WINDOW or any(call.window + by > h2.LARGEST_WINDOW for call in end.calls.values()):
                raise ConnectionFault(h2.FLOW_CONTROL_ERROR, f"windows of {value} bytes")
            end.initial = value
            for call in end.calls.values():
                call.window += by
        elif key == h2.MAX_FRAME_SIZE:
            expect(h2.DEFAULT_FRAME <= value <= h2.LARGEST_FRAME)
            end.largest = value
        elif key == h2.ENABLE_PUSH:
            expect(value == 0)
    end.out.append(h2.frame(h2.SETTINGS, h2.ACK, 0))
    end.release_all()


def _window_update(end: Steered, flags: int, number: int, payload: bytes) -> None:
    expect(True, len(payload) == 4)
    by = int.from_bytes(payload, "big") & h2.LARGEST_WINDOW
    expect(by > 0)
    if by < _FRUITFUL_BYTES:
        end.fruitless()
    if number:
        end.check_opened(number)
        if (call := end.calls.get(number)) is None:
            return
        call.window += by
        if call.window > h2.LARGEST_WINDOW:
            raise ConnectionFault(h2.FLOW_CONTROL_ERROR, f"a window of {call.window} bytes")
        end.release(call)
        return
    end.window += by
    if end.window > h2.LARGEST_WINDOW:
        raise ConnectionFault(h2.FLOW_CONTROL_ERROR, f"a window of {end.window} bytes")
    end.release_all()


def _ping(end: Steered, flags: int, number: int, payload: bytes) -> None:
    end.fruitless()
    expect(number == 0, len(payload) == 8)
    if not flags & h2.ACK:
        end.out.append(h2.frame(h2.PING, h2.ACK, 0, payload))


def _rst_stream(end: Steered, flags: int, number: int, payload: bytes) -> None:
    end.fruitless()
    expect(number != 0, len(payload) == 4)
    end.was_reset(number, int.from_bytes(payload, "big"))


def _priority(end: Steered, flags: int, number: int, payload: bytes) -> None:
    end.fruitless()
    expect(number != 0, len(payload) == 5)


def _push_promise(end: Steered, flags: int, number: int, payload: bytes) -> None:
    raise ConnectionFault(h2.PROTOCOL_ERROR, "PUSH_PROMISE, which our SETTINGS forbid")


def _goaway(end: Steered, flags: int, number: int, payload: bytes) -> None:
    end.fruitless()
    expect(number == 0, len(payload) >= 8)
    last = int.from_bytes(payload[:4], "big") & h2.LARGEST_WINDOW
    end.refuse_from(last + 1)


def ignore(end: Steered, flags: int, number: int, payload: bytes) -> None:
    """Ignore a frame of a kind that RFC 9113 does not have."""
    end.fruitless()


CONTROL: Mapping[int, Callable[[Steered, int, int, bytes], None]] = {
    h2.PRIORITY: _priority,
    h2.RST_STREAM: _rst_stream,
    h2.SETTINGS: _settings,
    h2.PUSH_PROMISE: _push_promise,
    h2.PING: _ping,
    h2.GOAWAY: _goaway,
    h2.WINDOW_UPDATE: _window_update,
}
