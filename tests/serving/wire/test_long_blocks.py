"""Long header blocks: read in steps they mean what they mean at once."""

from __future__ import annotations

import random

import hpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.serving.wire.test_http2_headers import LARGE, literal, table_of_hpack

from normfold.serving.wire.http2_headers import CODED_BYTES, LIST_BYTES, MOST_HEADERS, HeaderError, HeaderReader
from normfold.serving.wire.long_blocks import STEP_BYTES, LongBlock

HEADERS = st.lists(st.tuples(st.binary(max_size=600), st.binary(max_size=2000), st.booleans()), max_size=12)


def plain(block: bytes) -> tuple[list[bytes], int]:
    """The parts of the plain block, and the steps that they took."""
    long, parts, steps = LongBlock(block), [], 0
    while (part := long.step()) is not None:
        steps += 1
        if part:
            assert long.at_start == (not parts)
            parts.append(part)
    return parts, steps


def read(block: bytes, reader: HeaderReader) -> list[tuple[bytes, bytes]]:
    """Read ``block`` in parts."""
    parts, _ = plain(block)
    headers = reader.read(b"".join(parts[:1]))
    assert reader.too_large or len(parts) < 2
    for part in parts[1:]:
        reader.read_rest(part)
    return headers


def table_after(block: bytes) -> list[tuple[bytes, bytes]]:
    reader = HeaderReader()
    read(block, reader)
    return list(reader._table)


@given(HEADERS)
def test_the_plain_block_has_the_same_headers_and_leaves_the_same_table(headers):
    encoder, reader, expected = hpack.Encoder(), HeaderReader(), HeaderReader()
    for table in (4096, 100):
        encoder.header_table_size = table
        block = encoder.encode(
            [hpack.HeaderTuple(n, v) if add else hpack.NeverIndexedHeaderTuple(n, v) for n, v, add in headers]
        )
        assert read(block, reader) == expected.read(block)
        assert reader._table == expected._table


@settings(deadline=None)
@given(LARGE)
def test_the_plain_block_of_one_that_is_too_large_leaves_the_table_as_hpack_does(values):
    block = b"".join(literal(*value) for value in values)
    assert table_after(block) == table_of_hpack(block)


CODER = hpack.Encoder().huffman_coder


def random_header(chance: random.Random, entries: int) -> bytes:
    """A header of any kind that a table with this many entries, or more, allows."""
    kind = chance.choice((b"\x80", b"\x40", b"\x40", b"\x40", b"\x00"))
    most = 61 + entries
    index = chance.randint(kind == b"\x80", most) if chance.random() < 0.7 else chance.randint(1, 61)
    head = hpack.hpack.encode_integer(index, {b"\x80": 7, b"\x40": 6, b"\x00": 4}[kind])
    head[0] |= kind[0]
    strings = []
    for _ in range(0 if kind == b"\x80" else 1 if index else 2):
        data = chance.randbytes(chance.choice((0, 1, 3, 9, 30, 60, 200)) if chance.random() < 0.98 else 3000)
        coded = chance.random() < 0.5
        data = CODER.encode(data) if coded else data
        size = hpack.hpack.encode_integer(len(data), 7)
        size[0] |= 0x80 * coded
        strings.append(bytes(size) + data)
    return bytes(head) + b"".join(strings)


@pytest.mark.parametrize("seed", range(6))
def test_many_headers_of_all_kinds_leave_the_table_as_hpack_does(seed):
    chance, decoder, block = random.Random(seed), hpack.Decoder(max_header_list_size=1 << 30), b""
    for _ in range(MOST_HEADERS + 500):
        header = random_header(chance, len(decoder.header_table.dynamic_entries))
        decoder.decode(header, raw=True)
        block += header
    expected = [(bytes(n), bytes(v)) for n, v in decoder.header_table.dynamic_entries]
    assert table_after(block) == expected


TOO_LARGE = {
    "headers": b"\x88" * (MOST_HEADERS + 1),
    "headers for the table": b"\x41\x00" * (MOST_HEADERS + 1),
    "headers from the table": b"\x41\x01x" + b"\xbe" * (MOST_HEADERS + 1),
    "Huffman code": literal(500, True, True) * ((LIST_BYTES + CODED_BYTES) // 2500 + 10),
    "Huffman code of strings beyond the table": literal(3000, True, True) * ((LIST_BYTES + CODED_BYTES) // 15_000 + 2),
}


@pytest.mark.parametrize("name", TOO_LARGE)
def test_no_block_is_too_large_to_be_read_in_parts(name):
    block = TOO_LARGE[name] + b"\x40\x01x\x01y"
    assert table_after(block) == table_of_hpack(block)
    with pytest.raises(HeaderError, match="more than"):
        HeaderReader().read(block)


@pytest.mark.parametrize("name", TOO_LARGE)
def test_what_is_behind_the_beginning_comes_in_small_parts(name):
    parts, _ = plain(TOO_LARGE[name])
    assert len(parts) > 2
    for part in parts[1:]:
        decoder = hpack.Decoder(max_header_list_size=1 << 24)
        assert len(decoder.decode(b"\x40\x01x\x01y" + part, raw=True)) <= STEP_BYTES // 4 + 1


@pytest.mark.parametrize("rest", [b"\xbe", b"\x20", b"\x40\x02x", b"\x40\x81\xff\x00", b"\x80"])
def test_a_mistake_behind_the_beginning_is_refused(rest):
    with pytest.raises(HeaderError):
        read(b"\x88" * 1000 + rest, HeaderReader())


@given(st.binary(max_size=60))
def test_any_bytes_are_refused_as_at_once(block):
    try:
        expected = HeaderReader().read(block)
    except HeaderError:
        expected = None
    try:
        got = read(block, HeaderReader())
    except HeaderError:
        got = None
    assert got == expected


@pytest.mark.parametrize("added", [True, False])
@pytest.mark.parametrize("values", [(8000,), (200,) * 40, (1,) * 2000])
def test_a_step_is_a_small_part_of_the_work(values, added):
    block = b"".join(literal(size, added, True) for size in values)
    assert plain(block)[1] >= sum(values) * 5 // (2 * STEP_BYTES)


def test_no_huffman_code_is_left_for_the_reader(monkeypatch):
    block = literal(12_000, False, True) + literal(1500, True, True) + literal(12_000, True, True)
    monkeypatch.setattr("normfold.serving.wire.http2_headers.decode_huffman", None)
    reader = HeaderReader()
    read(block, reader)
    assert reader.too_large
    assert not reader._table
