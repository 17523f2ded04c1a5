"""The limits of one client, the greeting that announces them, and the fault that ends a connection."""

from __future__ import annotations

from normfold.serving.errors import Status
from normfold.serving.wire import http2_frames as h2
from normfold.serving.wire.http2_headers import LIST_BYTES

#: Calls under way on one connection.
MOST_CALLS = 1024
#: The memory that a call takes beside its messages, in bytes: 2,000 for a stream with one answer to each message, 3,200
#: for any other, and the trace of its caller.
CALL_BYTES = 4096
#: The calls of a connection that are not counted, and those behind them that are counted together.
FEW_CALLS = 8
#: The calls of a connection for which there is always room: ordinary clients go on, however much others hold.
ORDINARY_CALLS = 32
#: Data that the client may send on one stream before we have read them, in bytes.
WINDOW_BYTES = 1 << 20
#: A whole block of headers, in one frame or several, in bytes. A larger one ends the connection; one with more than
#: LIST_BYTES or LIST_HEADERS is read, so that later blocks can be, but its call is refused.
BLOCK_BYTES = 1 << 20
#: One frame from the client, in bytes.
FRAME_BYTES = 1 << 20
#: Bytes of a frame and of a block of headers that are not complete for which there is always room: a client's ordinary
#: frame, cut in two on its way, must not end its connection because others hold much. They are counted all the same.
UNFINISHED_BYTES = h2.DEFAULT_FRAME
#: Frames since the last message of an answer that cost work without bringing any call nearer to its end, ...
MOST_FRUITLESS = 10_000
#: ... of which this many are forgotten each second: a long silence with pings in it is no flood.
FORGOTTEN_EACH_SECOND = 100
#: A larger window is worth a frame if it lets at least this much data go, in bytes.
FRUITFUL_BYTES = 1024
#: Streams whose waiting data are queued in one turn because windows have become larger.
TURN_STREAMS = 128
#: A change of the windows of all streams counts as one more such frame for this many calls.
CALLS_A_FRAME = 32
#: Settings in one frame.
MOST_SETTINGS = 64
#: The number of last streams of which we remember whether we have reset them. Frames that come later on such a stream
#: are ignored: the client may not have seen the reset yet.
RECENT_STREAMS = 1 << 14
#: Time for the frames of one connection before the other connections have their turn, ...
TURN_SECONDS = 0.003
#: ... and for those of all connections that have frames left, before everything else has its turn.
ROUND_SECONDS = 0.004
#: The most turns in one round. A turn in a round lasts at least ROUND_SECONDS / ROUND_TURNS.
ROUND_TURNS = 8
#: Messages that streams ask in one round, or as soon as they come where there is no round: each has a task that begins
#: in the next turn of the event loop, and 32 of them take some milliseconds.
ROUND_MESSAGES = 32
#: The least time in which data that have just come are taken. They are taken at once and wait for no round.
SHORTEST_TURN_SECONDS = 0.0001
#: Reads of this size share ROUND_SECONDS in one turn of the event loop. Smaller ones hold a few calls and take little
#: time, so nobody looks at the clock for them.
LONG_READ_BYTES = 2048
#: Calls that are opened in one turn, of those that have sent headers and no data: each has a task that begins later.
OPENED_CALLS = 4
#: Calls that end in one turn where all of a connection do: each may have work to do at its end.
ENDED_CALLS = 32
#: A read of this size filled the buffer of the event loop, or nearly: more waits in the socket. uvloop would read it at
#: once, up to 32 buffers of 256,000 bytes from one connection; with TLS a buffer holds a little less.
FULL_READ_BYTES = 240_000
#: Time for a new client to send the preface and its SETTINGS.
HANDSHAKE_SECONDS = 20.0
#: Time that a connection which has sent everything waits for the client to close it, too.
LINGER_SECONDS = 0.25
#: The longest time that its last bytes may take to reach the client's system before.
LAST_BYTES_SECONDS = 60.0
#: TCP sends this many bytes before the client acknowledges any, so nobody waits for fewer: the client may be gone.
FLYING_BYTES = 10 * 1460
#: Time between two signs of life to a client that sends nothing more and waits for answers.
PROBE_SECONDS = 0.1
#: A connection whose client is asked to leave takes calls until the client knows, but at most for this time.
FAREWELL_SECONDS = 2.0
#: The part by which the age of a connection is longer or shorter by chance, so that not all clients come back at once.
JITTER = 0.1
#: Once the socket holds this much that the client has not read, we do not read from the client either.
UNSENT_BYTES = 1 << 20
#: Connections are looked at for so long, in seconds, before everything else has its turn, ...
LOOK_SECONDS = 0.002
#: ... which lasts at least so long: the look at all connections takes a fifth of the event loop's time, never more.
PAUSE_SECONDS = 4 * LOOK_SECONDS
#: While more is held for all connections than may be, a connection that takes nothing of what waits for it in the
#: socket is closed after this time.
CROWDED_SECONDS = 5.0
#: Data that are given to the socket before it is seen whether it takes them. More than UNSENT_BYTES: it says so then.
PORTION_BYTES = 2 * UNSENT_BYTES

#: The first frames of the server.
GREETING = h2.settings(
    {
        h2.HEADER_TABLE_SIZE: 0,
        h2.MAX_CONCURRENT_STREAMS: MOST_CALLS,
        h2.INITIAL_WINDOW_SIZE: WINDOW_BYTES,
        h2.MAX_FRAME_SIZE: FRAME_BYTES,
        h2.MAX_HEADER_LIST_SIZE: LIST_BYTES,
    }
) + h2.frame(h2.WINDOW_UPDATE, 0, 0, (h2.LARGEST_WINDOW - h2.DEFAULT_WINDOW).to_bytes(4, "big"))


class Fault(Exception):
    """A mistake of the client that ends the connection: an error code of HTTP/2 and the reason."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(why)
        self.code = code


class CallFault(Exception):
    """A mistake of the client that ends its call: the status of the call and its details."""

    def __init__(self, status: Status, details: str) -> None:
        super().__init__(details)
        self.status = status


def expect(sound: bool, size: bool = True) -> None:
    """Raise Fault unless the frame has a right size (``size``) and may be sent here (``sound``)."""
    if not size:
        raise Fault(h2.FRAME_SIZE_ERROR, "a frame of a wrong size")
    if not sound:
        raise Fault(h2.PROTOCOL_ERROR, "a frame on a stream, or with a value, that is not allowed")
