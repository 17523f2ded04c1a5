"""One connection: from its frames to calls (RFC 9113). A client that breaks the protocol or floods us is cut off."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from normfold.serving.errors import Status
from normfold.serving.frontends.http2.call import ServerCall, Service
from normfold.serving.frontends.http2.call_places import CallPlaces
from normfold.serving.frontends.http2.connection_places import ConnectionPlaces
from normfold.serving.frontends.http2.control import CONTROL, ignore
from normfold.serving.frontends.http2.frame_reader import FrameReader
from normfold.serving.frontends.http2.holding import Holding
from normfold.serving.frontends.http2.kinds import kind_of, logged_kind_of
from normfold.serving.frontends.http2.leftovers import drop_all, end_requests, go_on
from normfold.serving.frontends.http2.lifetime import Lifetime
from normfold.serving.frontends.http2.limits import FULL_READ_BYTES, LONG_READ_BYTES, Fault
from normfold.serving.frontends.http2.opening import CallOpening
from normfold.serving.frontends.http2.past_streams import PastStreams
from normfold.serving.frontends.http2.patience import Patience
from normfold.serving.frontends.http2.progress import Progress
from normfold.serving.frontends.http2.refused_again import RefusedAgain
from normfold.serving.frontends.http2.requests import TOO_LARGE, Asked, trailers_well_formed
from normfold.serving.frontends.http2.sending import LAST, AnswerStream
from normfold.serving.frontends.http2.socket_side import SocketSide
from normfold.serving.frontends.http2.turns import Steps
from normfold.serving.wire import http2_frames as h2
from normfold.serving.wire.http2_headers import HeaderError, HeaderReader


class ServerConnection(SocketSide):
    """The server's end of one connection."""

    def __init__(self, service: Service, places: ConnectionPlaces[ServerConnection]) -> None:
        super().__init__(Holding(service.limits.max_connection_bytes, service.holding))
        self.service, self._places = service, places
        self.frames, self.call_places = FrameReader(self.holding), CallPlaces(self.holding)
        #: The calls under way, by the number of their stream; ``CallOwner`` says what the other two are.
        self.calls, self.uncut, self.held = dict[int, ServerCall](), dict[int, ServerCall](), dict[int, int]()
        self._headers, self._past, self.steps = HeaderReader(), PastStreams(), Steps(service.turns)
        #: Keeps the header table right behind the beginning of a block that is too large.
        self.more_headers = self._headers.read_rest
        #: The last stream that was opened, the data that may still come, and those of streams with a content-length.
        self.last, self._credit, self.promised = 0, h2.LARGEST_WINDOW, dict[int, int]()
        self._patience, self.progress = Patience(), Progress(service.limits.stall_seconds)
        self.lifetime = Lifetime(service.limits, asyncio.get_running_loop().time())
        #: Refuses requests like one that was refused; None: none was in this turn, nor would be now.
        self.again: RefusedAgain | None = None
        self.opening = CallOpening(kind_of if service.log is None else logged_kind_of)

    # called by the side of the socket

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet the client if there is a place for it; asyncio may accept many clients before it calls this."""
        if self._places.take(self):
            super().connection_made(transport)
        else:
            transport.close()

    def take(self, data: bytes) -> bool:
        """Take frames for one turn; whether some are left, or wait in the socket."""
        turns = self.service.turns
        long = len(data) >= LONG_READ_BYTES
        seconds = turns.long_read_seconds() if long else turns.seconds if data else turns.round_seconds
        self.again = self.again.renewed(self) if self.again is not None and self.service.open_to_all else None
        try:
            left = self.frames.feed(data, self, seconds) or len(data) >= FULL_READ_BYTES
            if self.opening.begun:
                left = self.opening.open_some(self) or left
            if self.sender.widened or self.uncut:
                left = go_on(self) or left
        except (Fault, HeaderError) as error:
            self.give_up(error)
            left = False
        finally:
            if self.again is not None:
                self.again.settle(self.service.traffic, self.fruitful)
        if self.again is not None and not (left or self.sender.waiting):
            self.rest_seconds = self.again.rest_seconds(self.service.rests, self)
        turns.end(self, left)
        self.opening.start_clocks(self.calls)
        return left

    def in_turn(self, turn: Callable[[], None]) -> None:
        """Call ``turn`` when it is this connection's turn again."""
        self.service.turns.add(turn)

    def busy(self) -> bool:
        """Whether calls are under way."""
        return bool(self.calls or self.opening.begun)

    def half_closed(self) -> None:
        """End every request that has not ended, where its data end: nothing more of it can come."""
        end_requests(self, iter(list(self.calls.values())))

    def lost(self) -> None:
        """Cancel every call."""
        self._places.free(self)
        self.frames.forget()
        self.service.turns.end(self, False)
        drop_all(self)

    # called by calls and by the frontend

    def close(self, call: ServerCall) -> None:
        """End ``call``: its whole answer is queued."""
        self._patience.renew()
        if not self.sender.waits(call):
            self._closed(call)
        self.flush_soon()

    def grant(self, call: ServerCall, size: int) -> None:
        """Let the client send ``size`` more bytes of the call's data."""
        call.credit += size
        self.sender.out.append(h2.frame(h2.WINDOW_UPDATE, 0, call.number, size.to_bytes(4, "big")))
        self.flush_soon()

    def release(self, number: int) -> None:
        """Hold nothing more of the request on this stream."""
        if self.held:
            self.holding.add(-self.held.pop(number, 0))

    def fruitful(self) -> None:
        """A message of an answer is queued: forget the frames that led to nothing."""
        self._patience.renew()

    def leave(self) -> None:
        """Accept no more calls; close the connection when the calls under way have ended."""
        if not self.leaving:
            self.leaving = True
            self.sender.out.append(h2.goaway(self.last))
        self.flush()

    def answer_headers(self, number: int, flags: int, block: bytes) -> None:
        """Answer a request with nothing but headers."""
        self.sender.out.append(h2.frame(h2.HEADERS, LAST, number, block))
        if not flags & h2.END_STREAM:
            self._rst(number, h2.NO_ERROR)

    # called by the reader of frames

    def data(self, data: bytes, begin: int, end: int, flags: int, number: int) -> None:
        """Pass data on to their call."""
        size = end - begin
        self._credit -= size
        if self._credit < h2.LARGEST_WINDOW // 2:
            by, self._credit = h2.LARGEST_WINDOW - self._credit, h2.LARGEST_WINDOW
            self.sender.out.append(h2.frame(h2.WINDOW_UPDATE, 0, 0, by.to_bytes(4, "big")))
        if (call := self.calls.get(number)) is None:
            if (asked := self.opening.begun.pop(number, None)) is None:
                self._stray(number)
                return
            if self.again is not None and self.again.takes(self, number, flags, asked, data, begin, end):
                return
            if (call := self.opening.open(self, number, flags, asked)) is None:
                return
        call.credit -= size
        if call.credit < 0 or call.request_ended:
            self.reset(call, h2.STREAM_CLOSED if call.request_ended else h2.FLOW_CONTROL_ERROR)
            return
        if flags & h2.PADDED:
            if not size or data[begin] >= size:
                raise Fault(h2.PROTOCOL_ERROR, "more padding than data")
            begin, end = begin + 1, end - data[begin]
        if flags & h2.END_STREAM:
            call.request_ended = True
        elif begin == end:
            self.fruitless()
        if self.promised and number in self.promised:
            left = self.promised[number] = self.promised[number] - (end - begin)
            if left < 0 or (left and call.request_ended):
                self.reset(call, h2.PROTOCOL_ERROR)
                return
        call.received(data, begin, end)

    def headers(self, number: int, flags: int, block: bytes) -> None:
        """Begin the call that a block of headers asks for, or refuse it. It is opened with its first data."""
        if number <= self.last:
            self._trailers(number, flags, block)
            return
        asked = self.service.requests.read(block, self._headers)
        if self.leaving:
            return
        if number > self.last + 2:
            self._past.passed_over.append(range(self.last + 1, number))
        self.last = number
        if len(self.calls) + len(self.opening.begun) >= self.call_places.most and not self.call_places.more():
            self.fruitless()
            self.service.refused(asked, Status.UNAVAILABLE, self.peer)
            self._rst(number, h2.REFUSED_STREAM)
        elif asked.method is None:
            self._refuse(number, flags, asked)
        elif not flags & h2.END_STREAM:
            self.opening.begun[number] = asked
        elif (call := self.opening.open(self, number, flags, asked)) is not None:
            self.end_request(call)

    def control(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        """Do what a frame of any other kind asks for."""
        if self.opening.begun:
            self.opening.open_one(self, number)
        CONTROL.get(kind, ignore)(self, flags, number, payload)

    def fruitless(self, frames: int = 1) -> None:
        """Count frames that bring no call nearer to its end. Raises Fault when there were too many."""
        self._patience.spend(frames)

    def settle(self) -> None:
        """The client has sent its first SETTINGS: it speaks HTTP/2."""
        self.frames.settled = True
        self.greeted()

    def check_opened(self, number: int) -> None:
        """Raise Fault if the client has never opened stream ``number``."""
        if (number > self.last and not self.leaving) or number % 2 == 0:
            raise Fault(h2.PROTOCOL_ERROR, f"stream {number} was never opened")

    # the ends of calls and of the connection

    def finish(self, streams: list[AnswerStream]) -> None:
        """Forget calls of which the last byte is queued now, and wake those that wait for the client's windows."""
        for stream in streams:
            self._closed(stream)
        self._wake()

    def reset(self, call: ServerCall, code: int) -> None:
        """End a call with an error code of HTTP/2."""
        self.drop(call)
        self._rst(call.number, code)

    def drop(self, call: ServerCall) -> None:
        """Forget a call: nobody waits for its answer any more."""
        if self.calls.pop(call.number, None) is not None:
            self.promised.pop(call.number, None)
            call.abandon()

    def _closed(self, stream: AnswerStream) -> None:
        if (call := self.calls.pop(stream.number, None)) is None:
            return
        if call.method.counted:
            self.service.traffic.leave()
        if self.held:
            self.release(call.number)
        if self.promised:
            self.promised.pop(call.number, None)
        if not call.request_ended:
            self._rst(call.number, h2.NO_ERROR)  # the answer is complete: the client may stop sending

    def _stray(self, number: int) -> None:
        """Data came on a stream without a call. Raises Fault if it never had one."""
        self.check_opened(number)
        self.fruitless()
        if number <= self.last and not self._past.was_reset(number):
            self._rst(number, h2.STREAM_CLOSED)

    def _trailers(self, number: int, flags: int, block: bytes) -> None:
        """Take headers on a stream that is open, or was: the trailers of a request, whose contents mean nothing."""
        headers = self._headers.read(block)
        if self.opening.begun:
            self.opening.open_one(self, number)
        if (call := self.calls.get(number)) is None:
            self._past.check_reset(number)
            self.fruitless()
            return
        if call.request_ended:
            self.reset(call, h2.STREAM_CLOSED)
        elif not flags & h2.END_STREAM or not trailers_well_formed(headers):
            self.reset(call, h2.PROTOCOL_ERROR)
        elif self._headers.too_large:
            call.end(Status.RESOURCE_EXHAUSTED, TOO_LARGE)
        else:
            self.end_request(call)

    def end_request(self, call: ServerCall) -> None:
        """Take the end of a request that came without data."""
        call.request_ended = True
        if self.promised.get(call.number):
            self.reset(call, h2.PROTOCOL_ERROR)
        else:
            call.received(b"", 0, 0)

    def _refuse(self, number: int, flags: int, asked: Asked) -> None:
        self.fruitless()
        self.service.refused(asked, asked.seen, self.peer)
        if asked.refusal is None:
            self._rst(number, h2.PROTOCOL_ERROR)
        else:
            self.answer_headers(number, flags, asked.refusal)

    def _rst(self, number: int, code: int) -> None:
        self._past.remember(number)
        self.sender.out.append(h2.frame(h2.RST_STREAM, 0, number, code.to_bytes(4, "big")))

    def give_up(self, error: Fault | HeaderError) -> None:
        """End the connection with its reason; nothing more of it is read."""
        self.frames.forget()
        self.sender.out.append(h2.goaway(self.last, error.code, str(error)))
        self.leaving = True
        drop_all(self)
