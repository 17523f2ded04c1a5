"""Header blocks: all of HPACK (RFC 7541) can be read; blocks are written without table and Huffman code.

Our SETTINGS ask the peer to keep no table (SETTINGS_HEADER_TABLE_SIZE 0). Then the meaning of a block does not depend
on earlier blocks, and equal blocks need to be read only once. Until these SETTINGS arrive, the peer may use a table.
"""

from __future__ import annotations

import base64
from collections import deque
from functools import lru_cache

from hpack import HPACKDecodingError
from hpack.huffman_table import decode_huffman
from hpack.table import HeaderTable

from normfold.serving.wire.http2_frames import COMPRESSION_ERROR

Header = tuple[bytes, bytes]

STATIC: tuple[Header, ...] = tuple((bytes(name), bytes(value)) for name, value in HeaderTable.STATIC_TABLE)
#: The size of a table until the peer has our SETTINGS, in bytes.
TABLE_BYTES = 4096
#: Counted for each header in a table or list, in addition to its bytes (RFC 7541, section 4.1).
OVERHEAD_BYTES = 32
#: All headers of one block, in bytes. The rest of a larger block is read only for what it adds to the table.
LIST_BYTES = 65_536
#: The headers of one block that are read before it is too large; other servers take 100 or 128. ...
LIST_HEADERS = 512
#: ... All headers in a block that is read at once, and bytes in Huffman code behind the first LIST_BYTES. More end the
#: connection: these four bound the time that it takes. ``LongBlock`` has the server read a long block in parts.
MOST_HEADERS, CODED_BYTES = 2048, 65_536
#: A string of more bytes in Huffman code, whose longest code has 30 bits, is larger than a whole table.
BEYOND_TABLE = TABLE_BYTES * 30 // 8 + 8
#: Used instead of a string that makes its block too large or is larger than the table: it is not decoded.
_LARGE = bytes(LIST_BYTES)
#: Shorter strings in Huffman code are decoded only once.
_SHORT = 256


class HeaderError(ValueError):
    """A block cannot be read, and neither can later blocks of the connection."""

    #: The error code of HTTP/2 (RFC 9113, section 4.3).
    code = COMPRESSION_ERROR


class HeaderReader:
    """Reads the header blocks of one connection, and keeps its table."""

    def __init__(self) -> None:
        self._table: deque[Header] = deque()
        self._size, self._largest = 0, TABLE_BYTES
        #: Whether the peer may still keep a table, which blocks read and change.
        self.has_table = True
        #: Whether the last block means the same behind any other block, and leaves the table as it is.
        self.constant = False
        #: Whether the last block had more than LIST_BYTES or LIST_HEADERS; only the first headers were returned.
        self.too_large = False

    def read(self, block: bytes) -> list[Header]:
        """The headers of a block, in their order. Raises HeaderError."""
        try:
            return self._read(block)
        except (IndexError, HPACKDecodingError) as error:
            raise _unreadable(error) from None

    def read_rest(self, part: bytes) -> None:
        """Read more headers of a block that is too large, for what they add to the table. Raises HeaderError."""
        try:
            self._skip(part, 0, MOST_HEADERS)
        except (IndexError, HPACKDecodingError) as error:
            raise _unreadable(error) from None

    def _read(self, block: bytes) -> list[Header]:
        headers: list[Header] = []
        at, end, total = 0, len(block), 0
        self.constant, self.too_large = True, False
        for _ in range(LIST_HEADERS):
            if at >= end:
                return headers
            first = block[at]
            if first & 0x80:
                index, at = integer(block, at, 7)
                header = self._entry(index)
            elif first & 0xE0 == 0x20:
                size, at = integer(block, at, 5)
                if headers or size > TABLE_BYTES:
                    raise HeaderError(f"a header table of {size} bytes, or a new size behind headers")
                self._largest, self.constant, self.has_table = size, False, size > 0
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
                break
        self.too_large = total > LIST_BYTES or at < end
        self._skip(block, at, MOST_HEADERS - len(headers))
        return headers

    def _skip(self, block: bytes, at: int, most: int) -> None:
        """Read the rest of a block, at most ``most`` headers, only for what it adds to the table."""
        left = CODED_BYTES
        for _ in range(most):
            if at >= len(block):
                return
            first = block[at]
            if first & 0x80:
                index, at = integer(block, at, 7)
                self._entry(index)
            elif first & 0xE0 == 0x20:
                raise HeaderError("a new size of the header table behind headers")
            else:
                added = first & 0x40
                index, at = integer(block, at, 6 if added else 4)
                parts = [self._entry(index)[0]] if index else []
                while len(parts) < 2:
                    begin, at = at, past(block, at)
                    size = at - begin if block[begin] & 0x80 else 0
                    if not added or size > BEYOND_TABLE:
                        parts.append(_LARGE)
                        continue
                    left -= size
                    if left < 0:
                        raise HeaderError(f"more than {CODED_BYTES} bytes of headers in Huffman code")
                    parts.append(string(block, begin)[0])
                if added:
                    self._add((parts[0], parts[1]))
        if at < len(block):
            raise HeaderError(f"more than {MOST_HEADERS} headers in one block")

    def _entry(self, index: int) -> Header:
        if not index:
            raise IndexError
        if index <= len(STATIC):
            return STATIC[index - 1]
        self.constant = False
        return self._table[index - 1 - len(STATIC)]

    def _add(self, header: Header) -> None:
        self._table.appendleft(header)
        self._size += len(header[0]) + len(header[1]) + OVERHEAD_BYTES
        self._shrink()
        self.constant = self.constant and not self.has_table

    def _shrink(self) -> None:
        while self._size > self._largest:
            name, value = self._table.pop()
            self._size -= len(name) + len(value) + OVERHEAD_BYTES


def _unreadable(error: IndexError | HPACKDecodingError) -> HeaderError:
    if isinstance(error, IndexError):
        return HeaderError("a header block ends within a header, or names one that is not in the table")
    return HeaderError(f"a header is not in Huffman code: {error}")


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
    if not coded:
        return block[at:end], end
    if size < _SHORT:
        return _plain(block[at:end]), end
    if size > LIST_BYTES:
        return _LARGE, end
    return decode_huffman(block[at:end]), end


def past(block: bytes, at: int) -> int:
    """The place behind the string at ``at``."""
    size, at = integer(block, at, 7)
    if at + size > len(block):
        raise IndexError
    return at + size


@lru_cache(1024)
def _plain(data: bytes) -> bytes:
    return decode_huffman(data)


def metadata_header(name: str, value: str | bytes) -> Header:
    """The header of gRPC metadata; bytes, which names in -bin have, are sent in base64, without padding."""
    return name.encode(), value.encode() if isinstance(value, str) else base64.b64encode(value).rstrip(b"=")


def written(*headers: Header) -> bytes:
    """A block of these headers that uses no table."""
    parts = []
    for header in headers:
        if header in STATIC:
            parts.append(bytes([0x80 | STATIC.index(header) + 1]))
        else:
            parts += [b"\x00", sized(header[0]), sized(header[1])]
    return b"".join(parts)


def sized(data: bytes) -> bytes:
    """``data`` as a string of a block, without Huffman code."""
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
