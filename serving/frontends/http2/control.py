"""The frames that carry neither data nor headers (RFC 9113, section 6): one function a kind, in one table."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Protocol

from normfold.serving.frontends.http2.call import ServerCall
from normfold.serving.frontends.http2.frame_reader import FrameReader
from normfold.serving.frontends.http2.lifetime import Lifetime, Lived
from normfold.serving.frontends.http2.limits import CALLS_A_FRAME, MOST_SETTINGS, Fault, expect
from normfold.serving.wire import http2_frames as h2

_SETTING = struct.Struct(">HI")


class Controlled(Lived, Protocol):
    """The connection, as these frames need it."""

    calls: dict[int, ServerCall]
    frames: FrameReader
    lifetime: Lifetime

    def settle(self) -> None:
        """The client has sent its first SETTINGS."""

    def fruitless(self, frames: int = 1) -> None:
        """Count frames that bring no call nearer to its end. Raises Fault when there were too many."""

    def check_opened(self, number: int) -> None:
        """Raise Fault if the client has never opened stream ``number``."""

    def reset(self, call: ServerCall, code: int) -> None:
        """End a call with an error code of HTTP/2."""

    def drop(self, call: ServerCall) -> None:
        """Forget a call: nobody waits for its answer any more."""


def _settings(connection: Controlled, flags: int, number: int, payload: bytes) -> None:
    connection.fruitless()
    ack = flags & h2.ACK
    expect(number == 0 and (connection.frames.settled or not ack), len(payload) % 6 == 0 and not (ack and payload))
    if ack:
        return
    connection.settle()
    if len(payload) > 6 * MOST_SETTINGS:
        raise Fault(h2.ENHANCE_YOUR_CALM, f"more than {MOST_SETTINGS} settings in one frame")
    sender, calls = connection.sender, connection.calls
    windows: list[int] = []
    for key, value in _SETTING.iter_unpack(payload):
        if key == h2.INITIAL_WINDOW_SIZE:
            windows.append(value)
        elif key == h2.MAX_FRAME_SIZE:
            expect(h2.DEFAULT_FRAME <= value <= h2.LARGEST_FRAME)
            sender.largest = value
        elif key == h2.ENABLE_PUSH:
            expect(value <= 1)
    if windows:
        wider = max(windows) - sender.initial
        if max(windows) > h2.LARGEST_WINDOW or any(call.window + wider > h2.LARGEST_WINDOW for call in calls.values()):
            raise Fault(h2.FLOW_CONTROL_ERROR, f"windows of {max(windows)} bytes")
        if by := windows[-1] - sender.initial:
            connection.fruitless(len(calls) // CALLS_A_FRAME)
            sender.widen_all(by, calls.values())
    sender.out.append(h2.frame(h2.SETTINGS, h2.ACK, 0))


def _window_update(connection: Controlled, flags: int, number: int, payload: bytes) -> None:
    expect(True, len(payload) == 4)
    by = int.from_bytes(payload, "big") & h2.LARGEST_WINDOW  # the first bit is reserved
    call = connection.calls.get(number)
    if number and call is None:
        connection.check_opened(number)
        connection.fruitless()
        return
    sender = connection.sender
    if (sender.window + sender.withheld if call is None else call.window) + by > h2.LARGEST_WINDOW or not by:
        code = h2.FLOW_CONTROL_ERROR if by else h2.PROTOCOL_ERROR
        if call is None:
            raise Fault(code, f"a window is widened by {by}")
        connection.reset(call, code)
        return
    sender.widen(by, call)


def _ping(connection: Controlled, flags: int, number: int, payload: bytes) -> None:
    connection.fruitless()
    expect(number == 0, len(payload) == 8)
    if flags & h2.ACK:
        connection.lifetime.answered(connection, payload)
    else:
        connection.sender.out.append(h2.frame(h2.PING, h2.ACK, 0, payload))


def _rst_stream(connection: Controlled, flags: int, number: int, payload: bytes) -> None:
    connection.fruitless()
    expect(number != 0, len(payload) == 4)
    connection.check_opened(number)
    if (call := connection.calls.get(number)) is not None:
        connection.drop(call)


def _priority(connection: Controlled, flags: int, number: int, payload: bytes) -> None:
    connection.fruitless()
    expect(number != 0, len(payload) == 5)


def _push_promise(connection: Controlled, flags: int, number: int, payload: bytes) -> None:
    raise Fault(h2.PROTOCOL_ERROR, "clients do not push")


def _goaway(connection: Controlled, flags: int, number: int, payload: bytes) -> None:
    connection.fruitless()
    expect(number == 0, len(payload) >= 8)


def ignore(connection: Controlled, flags: int, number: int, payload: bytes) -> None:
    """Ignore a frame of a kind that RFC 9113 does not have."""
    connection.fruitless()


CONTROL: Mapping[int, Callable[[Controlled, int, int, bytes], None]] = {
    h2.PRIORITY: _priority,
    h2.RST_STREAM: _rst_stream,
    h2.SETTINGS: _settings,
    h2.PUSH_PROMISE: _push_promise,
    h2.PING: _ping,
    h2.GOAWAY: _goaway,
    h2.WINDOW_UPDATE: _window_update,
}
