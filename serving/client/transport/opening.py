"""The headers of a request as one block of bytes, and a message as gRPC sends it."""

from __future__ import annotations

import struct
import zlib

from normfold.serving.wire.http2_headers import Header, metadata_header, written

#: The gRPC metadata of a call: names and values; bytes for a name that ends in -bin.
Pairs = tuple[tuple[str, str | bytes], ...]

#: Whether the message is compressed, and its size.
PREFIX = struct.Struct(">BI")
PREFIX_BYTES = PREFIX.size

#: The compressions of requests, by the names of their options.
COMPRESSIONS = ("gzip",)
#: Smaller messages are sent as they are, in bytes: gzip adds 18 of its own.
_WORTH_COMPRESSING = 64
_ACCEPTED = b"identity,deflate,gzip"
#: The numbers of bits by which zlib reads what grpc-encoding names.
_BITS = {b"deflate": zlib.MAX_WBITS, b"gzip": zlib.MAX_WBITS | 16}

#: No message of protobuf is larger, in bytes. Few compressed bytes may stand for any number of others.
LARGEST_MESSAGE = (1 << 31) - 1

#: gRPC allows eight digits.
_MOST_DIGITS = 99_999_999
_UNITS = ((1e-3, b"m"), (1.0, b"S"), (60.0, b"M"), (3600.0, b"H"))


class Opening:
    """The headers of the requests of one client, as blocks; all but the deadline are prepared."""

    def __init__(
        self,
        scheme: str,
        authority: str,
        metadata: Pairs = (),
        compression: str | None = None,
    ) -> None:
        """``metadata``: of requests that have none of their own. ``compression``: one of COMPRESSIONS, or None."""
        self.compressed = compression is not None
        self._first = written((b":method", b"POST"), (b":scheme", scheme.encode()), (b":authority", authority.encode()))
        rest: list[Header] = [
            (b"te", b"trailers"),
            (b"content-type", b"application/grpc"),
            (b"user-agent", b"normfold"),
            (b"grpc-accept-encoding", _ACCEPTED),
        ]
        if compression is not None:
            rest.append((b"grpc-encoding", compression.encode()))
        self._rest, self._metadata = written(*rest), _written_metadata(metadata)
        self._prepared: dict[tuple[str, float | None], bytes] = {}

    def block(self, path: str, seconds: float | None, metadata: Pairs | None = None) -> bytes:
        """The headers of a call of ``path`` that must be answered within ``seconds``; None: some time.

        ``metadata`` stands in the place of that of all requests.
        """
        block = self._prepared.get((path, seconds))
        if block is None:
            timeout = () if seconds is None else ((b"grpc-timeout", written_timeout(seconds)),)
            block = self._first + written((b":path", path.encode())) + self._rest + written(*timeout)
            if len(self._prepared) >= 256:
                self._prepared.clear()
            self._prepared[path, seconds] = block
        return block + (self._metadata if metadata is None else _written_metadata(metadata))

    def message(self, data: bytes) -> tuple[bytes, bytes]:
        """``data`` as it is sent: the prefix of the message, and its bytes."""
        if self.compressed and len(data) >= _WORTH_COMPRESSING:
            packer = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
            packed = packer.compress(data) + packer.flush()
            if len(packed) < len(data):
                return PREFIX.pack(1, len(packed)), packed
        return PREFIX.pack(0, len(data)), data


def _written_metadata(metadata: Pairs) -> bytes:
    return written(*(metadata_header(name, value) for name, value in metadata))


def written_timeout(seconds: float) -> bytes:
    """``seconds`` as grpc-timeout has it: eight digits at most, rounded down, and at least a millisecond.

    >>> written_timeout(60.0), written_timeout(1e6), written_timeout(1e-9), written_timeout(1e99)
    (b'60000m', b'1000000S', b'1m', b'99999999H')
    """
    for unit, letter in _UNITS:
        count = seconds / unit
        if count <= _MOST_DIGITS:
            return b"%d%b" % (max(int(count), 1), letter)
    return b"%dH" % _MOST_DIGITS


def inflated(data: bytes, encoding: bytes) -> bytes:
    """A compressed message as it was before. Raises ValueError, with the reason."""
    bits = _BITS.get(encoding)
    if bits is None:
        raise ValueError(f"it is compressed, and grpc-encoding is {encoding.decode(errors='replace')!r}")
    reader = zlib.decompressobj(bits)
    try:
        message = reader.decompress(data, LARGEST_MESSAGE)
    except zlib.error as error:
        raise ValueError(f"it cannot be decompressed: {error}") from None
    if reader.unconsumed_tail:
        raise ValueError(f"decompressed it would have more than {LARGEST_MESSAGE} bytes")
    if not reader.eof:
        raise ValueError("it cannot be decompressed: it is cut off")
    if reader.unused_data:  # it may be the rest of the message
        raise ValueError("it cannot be decompressed: bytes follow behind its end")
    return message
