"""Header blocks: all of HPACK (RFC 7541) can be read; blocks are written without table and Huffman code.

Our SETTINGS ask clients to keep no table (SETTINGS_HEADER_TABLE_SIZE 0). Then the meaning of a block does not depend on
earlier blocks, and equal blocks need to be read only once. Until these SETTINGS arrive, a client may use a table.
"""

from __future__ import annotations

from collections import deque
from functools import lru_cache

from hpack import HPACKDecodingError
from hpack.huffman_table import decode_huffman
from hpack.table import HeaderTable

Header = tuple[bytes, bytes]

STATIC: tuple[Header, ...] = tuple((bytes(name), bytes(value)) for name, value in HeaderTable.STATIC_TABLE)
#: The size of a table until the client has our SETTINGS, in bytes.
TABLE_BYTES = 4096
#: Counted for each header in a table or list, in addition to its bytes (RFC 7541, section 4.1).
OVERHEAD_BYTES = 32
#: All headers of one request, in bytes.
LIST_BYTES = 65_536


class HeaderError(ValueError):
    """A block cannot be read, and neither can later blocks of the connection."""


class HeaderReader:
    """Reads the header blocks of one connection, and keeps its table."""

    def __init__(self) -> None:
        self._table: deque[Header] = deque()
        self._size, self._largest = 0, TABLE_BYTES
        #: Whether the last block would mean the same after any other block.
        self.constant = False

    def read(self, block: bytes) -> list[Header]:
        """The headers of a block, in their order. Raises HeaderError."""
        try:
            return self._read(block)
        except IndexError:
            raise HeaderError("a header block ends within a header, or names one that is not in the table") from None
        except HPACKDecodingError as error:
            raise HeaderError(f"a header is not in Huffman code: {error}") from None

    def _read(self, block: bytes) -> list[Header]:
        headers: list[Header] = []
        at, end, total = 0, len(block), 0
        self.constant = not self._table
        while at < end:
            first = block[at]
            if first & 0x80:
                index, at = integer(block, at, 7)
                header = self._entry(index)
            elif first & 0xE0 == 0x20:
                size, at = integer(block, at, 5)
                if headers or size > TABLE_BYTES:
                    raise HeaderError(f"a header table of {size} bytes, or a new size behind headers")
                self._largest, self.constant = size, False
                self._shrink()
                continue
            else:
                index, at = integer(block, at, 6 if first & 0x40 else 4)
                if index:
                    name = self._entry(index)[0]
                else:
                    name, at = string(block, at)
                value, at = string(block, at)
                header = (name, value)
                if first & 0x40:
                    self._add(header)
            headers.append(header)
            total += len(header[0]) + len(header[1]) + OVERHEAD_BYTES
            if total > LIST_BYTES:
                raise HeaderError(f"more than {LIST_BYTES} bytes of headers")
        return headers

    def _entry(self, index: int) -> Header:
        if not index:
            raise IndexError
        return STATIC[index - 1] if index <= len(STATIC) else self._table[index - 1 - len(STATIC)]

    def _add(self, header: Header) -> None:
        self._table.appendleft(header)
        self._size += len(header[0]) + len(header[1]) + OVERHEAD_BYTES
        self._shrink()
        self.constant = self.constant and not self._table

    def _shrink(self) -> None:
        while self._size > self._largest:
            name, value = self._table.pop()
            self._size -= len(name) + len(value) + OVERHEAD_BYTES


def integer(block: bytes, at: int, bits: int) -> tuple[int, int]:
    """The integer at ``at`` with a prefix of ``bits`` bits, and the place behind it (section 5.1)."""
    most = (1 << bits) - 1
    value = block[at] & most
    at += 1
    if value < most:
        return value, at
    for shift in (0, 7, 14, 21):
        byte = block[at]
        at += 1
        value += (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise HeaderError("an integer of more than four bytes")


def string(block: bytes, at: int) -> tuple[bytes, int]:
    """The string at ``at``, and the place behind it (section 5.2)."""
    coded = block[at] & 0x80
    size, at = integer(block, at, 7)
    end = at + size
    if end > len(block):
        raise IndexError
    return _plain(block[at:end]) if coded else block[at:end], end


@lru_cache(1024)
def _plain(data: bytes) -> bytes:
    return decode_huffman(data)


def written(*headers: Header) -> bytes:
    """A block of these headers that uses no table."""
    parts = []
    for header in headers:
        if header in STATIC:
            parts.append(bytes([0x80 | STATIC.index(header) + 1]))
        else:
            parts += [b"\x00", _sized(header[0]), _sized(header[1])]
    return b"".join(parts)


def _sized(data: bytes) -> bytes:
    size = len(data)
    if size < 0x7F:
        return bytes([size]) + data
    size -= 0x7F
    prefix = bytearray([0x7F])
    while size >= 0x80:
        prefix.append(size & 0x7F | 0x80)
        size >>= 7
    prefix.append(size)
    return bytes(prefix) + data
