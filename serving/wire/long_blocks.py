"""Long header blocks: their Huffman code is replaced by plain strings, in steps that take a small time each.

Such a block means the same, also for the table, and ``HeaderReader`` reads it at once: what takes long is Huffman code.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator

from hpack.huffman_table import HUFFMAN_COMPLETE, HUFFMAN_EMIT_SYMBOL, HUFFMAN_FAIL, HUFFMAN_TABLE

from normfold.serving.wire.http2_headers import BEYOND_TABLE, CODED_BYTES, LIST_BYTES, HeaderError, integer, sized

#: The work of a step, in bytes of Huffman code; ...
STEP_BYTES = 512
#: ... a header without any counts as this many.
_HEADER_BYTES = 4


class LongBlock:
    """One block, and the part of it that is plain already."""

    def __init__(self, block: bytes) -> None:
        self._block, self._plain = block, bytearray()
        self._steps = self._made_plain()

    def __len__(self) -> int:
        return len(self._block) + len(self._plain)

    def step(self) -> bytes | None:
        """Go on for one step; the whole block once it is plain, None before. Raises HeaderError."""
        try:
            for _ in self._steps:
                return None
        except IndexError:
            raise HeaderError("a header block ends within a header") from None
        return bytes(self._plain)

    def _made_plain(self) -> Iterator[None]:
        """Make the block plain; it yields after each step.

        Behind the first LIST_BYTES of headers ``HeaderReader`` needs only what fits into the table: the rest stays as
        it is. Bytes are counted here so that they are never more than there.
        """
        block, plain = self._block, self._plain
        at, total, coded, work = 0, 0, 0, 0
        while at < len(block):
            begin, first = at, block[at]
            if first & 0x80:
                strings, (_, at) = 0, integer(block, at, 7)
            elif first & 0xE0 == 0x20:
                strings, (_, at) = 0, integer(block, at, 5)
            else:
                index, at = integer(block, at, 6 if first & 0x40 else 4)
                strings = 1 if index else 2
            plain += block[begin:at]
            most = LIST_BYTES if total <= LIST_BYTES else BEYOND_TABLE if first & 0x40 else 0
            work += _HEADER_BYTES
            for _ in range(strings):
                begin, is_coded = at, block[at] & 0x80
                size, inside = integer(block, at, 7)
                at = inside + size
                if at > len(block):
                    raise IndexError
                if not is_coded or size > most:
                    plain += block[begin:at]
                    total += size
                    continue
                coded += size
                if coded > LIST_BYTES + CODED_BYTES:
                    raise HeaderError(f"more than {LIST_BYTES + CODED_BYTES} bytes of headers in Huffman code")
                string = yield from _decoded(block[inside:at])
                plain += sized(string)
                total += len(string)
                work += size % STEP_BYTES
            if work >= STEP_BYTES:
                work = 0
                yield


def _decoded(code: bytes) -> Generator[None, None, bytes]:
    """The string in Huffman code, as ``hpack`` decodes it; it yields after each STEP_BYTES. Raises HeaderError."""
    string, state, flags = bytearray(), 0, HUFFMAN_COMPLETE
    for at, byte in enumerate(code, 1):
        for half in (byte >> 4, byte & 0xF):
            state, flags, symbol = HUFFMAN_TABLE[state << 4 | half]
            if flags & HUFFMAN_FAIL:
                raise HeaderError("a header is not in Huffman code")
            if flags & HUFFMAN_EMIT_SYMBOL:
                string.append(symbol)
        if not at % STEP_BYTES:
            yield
    if not flags & HUFFMAN_COMPLETE:
        raise HeaderError("a header is not in Huffman code: it ends within a character")
    return bytes(string)
