"""TLS between the socket and its connection: what it costs to decrypt is done in turns, too."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from itertools import count

from tests.serving.frontends.conftest import MOST_BYTES, Methods
from tests.serving.frontends.raw import NoSocket

from normfold.serving.access.tls import TlsFiles
from normfold.serving.frontends.http2 import tls_side
from normfold.serving.frontends.http2.call import Service
from normfold.serving.frontends.http2.connection import ServerConnection
from normfold.serving.frontends.http2.connection_places import ConnectionPlaces
from normfold.serving.frontends.http2.holding import Holding
from normfold.serving.frontends.http2.limits import ROUND_TURNS
from normfold.serving.frontends.http2.requests import Requests
from normfold.serving.frontends.http2.tls_side import PART_BYTES, PIECE_BYTES, TlsSide
from normfold.serving.frontends.limits import DEFAULT_LIMITS
from normfold.serving.rpc.traffic import Traffic
from normfold.serving.wire import http2_frames as h2

PING = h2.frame(h2.PING, 0, 0, bytes(8))


class Client:
    """TLS of a client whose socket is a NoSocket."""

    def __init__(self, ca, socket: NoSocket) -> None:
        context = ssl.create_default_context(cafile=ca)
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        context.set_alpn_protocols(["h2"])
        self._in, self._out, self._socket = ssl.MemoryBIO(), ssl.MemoryBIO(), socket
        self._tls = context.wrap_bio(self._in, self._out, server_hostname="127.0.0.1")

    def begin(self) -> bytes:
        """The first message of the handshake."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self._tls.do_handshake()
        return self._out.read()

    async def shake_hands(self, server: TlsSide) -> None:
        """Carry out the handshake, in the server's turns, and greet."""
        server.data_received(self.begin())
        while not self._socket.written:
            await asyncio.sleep(0)
        self._take()
        self._tls.do_handshake()
        server.data_received(self._out.read() + self.records(h2.PREFACE + h2.settings({})))
        while not self._socket.written:
            await asyncio.sleep(0)

    def records(self, *parts: bytes) -> bytes:
        """A record with each of ``parts``."""
        for part in parts:
            self._tls.write(part)
        return self._out.read()

    def pongs(self) -> int:
        """The answers to pings that came since the last time."""
        return self.data().count(h2.frame(h2.PING, h2.ACK, 0, bytes(8)))

    def data(self) -> bytes:
        """What came since the last time."""
        self._take()
        got: list[bytes] = []
        with contextlib.suppress(ssl.SSLWantReadError):
            while part := self._tls.read(1 << 18):
                got.append(part)
        return b"".join(got)

    def _take(self) -> None:
        self._in.write(self._socket.written)
        self._socket.written = b""


class Sizes(NoSocket):
    """A socket that notes the size of each write."""

    def __init__(self):
        super().__init__()
        self.sizes: list[int] = []

    def write(self, data):
        super().write(data)
        self.sizes.append(len(data))


async def begun(certificate, socket: NoSocket) -> tuple[ServerConnection, TlsSide, Client]:
    """A connection after the handshake."""
    service = Service(Requests(Methods().table()), Traffic(), MOST_BYTES, DEFAULT_LIMITS, Holding(1 << 30))
    connection = ServerConnection(service, ConnectionPlaces(1))
    server = TlsSide(TlsFiles(certificate.cert, certificate.key).read().context, connection)
    server.connection_made(socket)
    client = Client(certificate.ca, socket)
    await client.shake_hands(server)
    return connection, server, client


def test_what_is_encrypted_together_is_small(certificate):
    """OpenSSL keeps the memory of the most that it ever held: an idle client must not cost its largest answer."""

    async def large() -> None:
        socket = Sizes()
        connection, server, client = await begun(certificate, socket)
        client.data()
        answer = bytes(range(256)) * 8192
        server.write(answer)
        assert client.data() == answer
        assert max(socket.sizes) < 1.1 * PART_BYTES
        connection.connection_lost(None)

    asyncio.run(large())


def test_records_of_one_byte_are_decrypted_a_piece_in_each_turn(certificate, monkeypatch):
    """250 kB of them take 10 ms, and the event loop would read 8 MB at once."""

    async def many() -> None:
        socket = NoSocket()
        connection, server, client = await begun(certificate, socket)
        monkeypatch.setattr(tls_side, "monotonic", count().__next__)  # each turn is over at the first look at the clock
        pings = 400
        small = [PING[at : at + 1] for at in range(len(PING))] * pings
        data = client.records(*small)
        pieces = -(-len(data) // PIECE_BYTES)
        assert pieces > 5
        server.data_received(data)
        found = [client.pongs()]
        assert not socket.is_read
        server.pause_reading()  # as a connection does whose client does not read
        held = connection.holding.bytes
        assert held > len(data) - 3 * PIECE_BYTES
        for _ in range(20):
            await asyncio.sleep(0)
        assert client.pongs() == 0
        server.resume_reading()
        while sum(found) < pings:
            await asyncio.sleep(0)
            found.append(client.pongs())
        assert max(found) <= pings / pieces + 2
        await asyncio.sleep(0)
        assert socket.is_read
        assert connection.holding.bytes < held - len(data) // 2
        server.data_received(client.records(*small))
        assert connection.holding.bytes > len(data) - 3 * PIECE_BYTES
        server.connection_lost(None)
        assert connection.holding.bytes == 0

    asyncio.run(many())


def test_the_handshakes_of_many_clients_that_come_at_once_are_done_a_few_in_each_turn(certificate):
    """1,000 of them, after a restart of the server, kept everybody else waiting for a second."""

    async def together() -> None:
        service = Service(Requests(Methods().table()), Traffic(), MOST_BYTES, DEFAULT_LIMITS, Holding(1 << 30))
        context = TlsFiles(certificate.cert, certificate.key).read().context
        sockets = [NoSocket() for _ in range(4 * ROUND_TURNS)]
        servers = [TlsSide(context, ServerConnection(service, ConnectionPlaces(1))) for _ in sockets]
        for server, socket in zip(servers, sockets, strict=True):
            server.connection_made(socket)
            server.data_received(Client(certificate.ca, socket).begin())
        answered = 0
        for _ in range(20):
            before, answered = answered, sum(bool(socket.written) for socket in sockets)
            assert answered <= before + ROUND_TURNS
            await asyncio.sleep(0)
        assert answered == len(sockets)
        assert all(socket.is_read for socket in sockets)
        for server in servers:
            server.connection_lost(None)

    asyncio.run(together())
