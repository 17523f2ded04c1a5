"""Header blocks of HTTP/2 (RFC 7541) for many equal requests: each is encoded twice at most, and decoded once.

From the second request on, the headers are indices into the peer's table. The peer is asked to keep no table for its
answers (SETTINGS_HEADER_TABLE_SIZE 0), so equal headers are equal bytes.
"""

from __future__ import annotations

from hpack import Decoder, Encoder

Headers = tuple[tuple[str, str], ...]

#: The largest number of decoded blocks that are remembered.
LIMIT = 1000

#: The first block fills the peer's table; the second, and every one after it, holds indices only.
_DIFFERENT = 2


class HeaderBlocks:
    """The header blocks of one connection: ``headers`` are those of every request."""

    def __init__(self, headers: list[tuple[str, str]]) -> None:
        self._headers, self._encoder = headers, Encoder()
        self._encoded, self._block = 0, b""
        self._decoder = Decoder()
        self._decoder.max_allowed_table_size = self._decoder.header_table_size = 0
        self._decoded: dict[bytes, Headers] = {}

    def request(self) -> bytes:
        """The header block of the next request."""
        if self._encoded < _DIFFERENT:
            self._block = self._encoder.encode(self._headers)
            self._encoded += 1
        return self._block

    def use_no_table(self) -> None:
        """Name no header by an index from now on, because the peer's table is too small for all of them."""
        self._encoder.header_table_size = 0
        self._encoded = 0

    def decode(self, block: bytes) -> Headers:
        """The headers in the block of an answer."""
        headers = self._decoded.get(block)
        if headers is None:
            headers = tuple((str(name), str(value)) for name, value in self._decoder.decode(block))
            if len(self._decoded) < LIMIT:
                self._decoded[block] = headers
        return headers
