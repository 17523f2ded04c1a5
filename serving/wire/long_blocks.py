"""Long header blocks: their Huffman code is replaced by plain strings, in steps that take a small time each.

Such a block means the same, also for the table, and ``HeaderReader`` reads it at once: what takes long is Huffman code.
One that is too large is cut: its beginning refuses the call, and the rest changes only the table, a part in each step.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator

from hpack.huffman_table import HUFFMAN_COMPLETE, HUFFMAN_EMIT_SYMBOL, HUFFMAN_FAIL, HUFFMAN_TABLE

from normfold.serving.wire.http2_headers import BEYOND_TABLE, LIST_BYTES, LIST_HEADERS, HeaderError, integer, sized

#: The work of a step, in bytes of Huffman code; ...
STEP_BYTES = 512
#: ... a header without any counts as this many.
_HEADER_BYTES = 4


class LongBlock:
    """One block, and what is plain already of the part that comes next."""

    def __init__(self, block: bytes) -> None:
        self._block, self._plain = block, bytearray()
        #: Whether a part that ``step`` gives is the first one: all of the block, unless that is too large.
        self.at_start = True
        self._parts = self._plain_parts()

    def __len__(self) -> int:
        return len(self._block) + len(self._plain)

    def step(self) -> bytes | None:
        """Go on for one step: the next part once it is plain, b"" before, None behind the last. Raises HeaderError."""
        try:
            return next(self._parts, None)
        except IndexError:
            raise HeaderError("a header block ends within a header") from None

    def _plain_parts(self) -> Iterator[bytes]:
        """Make the block plain, part by part; it yields after each step.

        Where others follow, the first part is too large for ``HeaderReader``: the bytes and headers that are counted
        here are never more than there. Of the others it needs only what fits into the table: the rest stays as it is.
        """
        block, plain = self._block, self._plain
        at, total, headers, work = 0, 0, 0, 0
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
            most = LIST_BYTES if self.at_start else BEYOND_TABLE if first & 0x40 else 0
            headers += 1
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
                string = yield from _decoded(block[inside:at])
                plain += sized(string)
                total += len(string)
                work += size % STEP_BYTES
            too_large = total > LIST_BYTES or headers > LIST_HEADERS
            if work >= STEP_BYTES or (too_large and self.at_start):
                work = 0
                if too_large:
                    yield self._part()
                    self.at_start = False
                else:
                    yield b""
        if plain:
            yield self._part()

    def _part(self) -> bytes:
        part = bytes(self._plain)
        self._plain.clear()
        return part


def _decoded(code: bytes) -> Generator[bytes, None, bytes]:
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
            yield b""
    if not flags & HUFFMAN_COMPLETE:
        raise HeaderError("a header is not in Huffman code: it ends within a character")
    return bytes(string)
