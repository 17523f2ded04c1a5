"""HPACK: we read the same headers as the hpack package, and refuse the same blocks."""

from __future__ import annotations

import time

import hpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from normfold.serving.frontends.http2.requests import Requests, percent_encoded
from normfold.serving.wire.http2_headers import LIST_BYTES, MOST_HEADERS, STATIC, HeaderError, HeaderReader, written

NAMES = st.sampled_from([name for name, _ in STATIC]) | st.binary(min_size=1, max_size=40)
VALUES = st.sampled_from([value for _, value in STATIC]) | st.binary(max_size=300)
HEADERS = st.tuples(NAMES, VALUES, st.booleans())
STEPS = st.tuples(st.lists(HEADERS, max_size=8), st.booleans(), st.none() | st.integers(0, 4096))


@given(st.lists(STEPS, max_size=8))
def test_blocks_mean_what_was_encoded(steps):
    encoder, reader = hpack.Encoder(), HeaderReader()
    for headers, huffman, size in steps:
        if size is not None:
            encoder.header_table_size = size
        block = encoder.encode(
            [hpack.HeaderTuple(n, v) if add else hpack.NeverIndexedHeaderTuple(n, v) for n, v, add in headers], huffman
        )
        assert reader.read(block) == [(name, value) for name, value, _ in headers]


@given(st.binary(max_size=60))
def test_any_bytes_are_read_as_hpack_reads_them(block):
    decoder, reader = hpack.Decoder(), HeaderReader()
    try:
        expected = [(bytes(n), bytes(v)) for n, v in decoder.decode(block, raw=True)]
    except hpack.HPACKError:
        expected = None
    try:
        got = reader.read(block)
    except HeaderError:
        got = None
    assert got == expected


@given(st.lists(st.tuples(NAMES, VALUES), max_size=8))
def test_what_is_written_is_read_by_hpack(headers):
    decoder = hpack.Decoder()
    assert [(bytes(n), bytes(v)) for n, v in decoder.decode(written(*headers), raw=True)] == headers


@pytest.mark.parametrize("size", [0, 1, 126, 127, 128, 254, 255, 300, 20_000])
def test_lengths_of_every_size_are_written(size):
    block = written((b"x", b"v" * size))
    assert HeaderReader().read(block) == [(b"x", b"v" * size)]
    assert hpack.Decoder().decode(block, raw=True)[0][1] == b"v" * size


def test_a_small_block_cannot_become_large_headers():
    encoder = hpack.Encoder()
    reader = HeaderReader()
    reader.read(encoder.encode([("x", "v" * 4000)]))
    headers = reader.read(b"\xbe" * MOST_HEADERS)
    assert reader.too_large
    assert sum(len(name) + len(value) for name, value in headers) < LIST_BYTES + 4001
    assert reader.read(b"\xbe") == [(b"x", b"v" * 4000)]
    assert not reader.too_large
    with pytest.raises(HeaderError, match=f"more than {MOST_HEADERS} headers"):
        reader.read(b"\xbe" * (MOST_HEADERS + 1))


def literal(size: int, added: bool, coded: bool) -> bytes:
    """A header "x" whose value is ``size`` times "aaaaaaaa", which Huffman code shortens to five bytes."""
    value = (bytes.fromhex("18c6318c63") if coded else b"a" * 8) * size
    length = bytearray(hpack.hpack.encode_integer(len(value), 7))
    length[0] |= 0x80 * coded
    return (b"\x40" if added else b"\x00") + b"\x01x" + bytes(length) + value


LARGE = st.lists(st.tuples(st.sampled_from([0, 20, 400, 3000, 3200]), st.booleans(), st.booleans()), max_size=12)


@settings(deadline=None)
@given(LARGE)
def test_a_block_that_is_too_large_leaves_the_table_as_hpack_does(values):
    block = b"".join(literal(*value) for value in values)
    assert table_after(block) == table_of_hpack(block)


def table_after(block: bytes) -> list[tuple[bytes, bytes]]:
    reader = HeaderReader()
    reader.read(block)
    return list(reader._table)


def table_of_hpack(block: bytes) -> list[tuple[bytes, bytes]]:
    decoder = hpack.Decoder(max_header_list_size=1 << 24)
    decoder.decode(block, raw=True)
    return [(bytes(n), bytes(v)) for n, v in decoder.header_table.dynamic_entries]


def test_the_time_for_huffman_code_in_a_block_that_is_too_large_is_bounded():
    with pytest.raises(HeaderError, match="in Huffman code"):
        HeaderReader().read(literal(500, True, True) * 60)
    begun = time.process_time()
    reader = HeaderReader()
    reader.read(literal(200_000, True, True))
    assert reader.too_large
    assert time.process_time() - begun < 0.1  # its decoding takes 0.4 s


def test_a_block_is_constant_only_where_no_table_is_used():
    encoder, reader = hpack.Encoder(), HeaderReader()
    assert reader.read(written((b":method", b"POST"), (b"a", b"b")))
    assert reader.constant
    reader.read(encoder.encode([("a", "b")]))
    assert not reader.constant
    reader.read(encoder.encode([("a", "b")]))
    assert not reader.constant
    encoder.header_table_size = 0
    reader.read(encoder.encode([("a", "b")]))
    assert not reader.constant  # the block has the new size of the table
    reader.read(encoder.encode([("a", "b")]))
    assert reader.constant


def test_equal_blocks_are_read_again_while_a_table_is_in_use():
    requests, reader, encoder = Requests([]), HeaderReader(), hpack.Encoder()
    head = [(":method", "POST"), (":scheme", "http"), ("content-type", "application/grpc")]
    first = encoder.encode([*head, (":path", "/a"), ("grpc-timeout", "1S")])
    same = encoder.encode([*head, (":path", "/a"), ("grpc-timeout", "1S")])
    other = encoder.encode([*head, (":path", "/a"), ("grpc-timeout", "x")])
    for block in (first, same, other, same):
        requests.read(block, reader)
    assert not any(requests._kept)


def test_a_block_that_a_connection_without_a_table_has_sent_fills_the_table_of_another():
    head = [(":method", "POST"), (":scheme", "http"), (":path", "/a"), ("content-type", "application/grpc")]
    requests, bare, encoder = Requests([]), HeaderReader(), hpack.Encoder()
    bare.read(b"\x20")  # a table of 0 bytes
    block = encoder.encode(head)
    for _ in range(2):
        requests.read(block, bare)
    assert block in requests._kept[False]
    reader = HeaderReader()
    for later in (block, encoder.encode(head)):
        assert requests.read(later, reader) == requests.read(hpack.Encoder().encode(head), bare)


@given(st.text(max_size=200))
def test_a_status_message_survives_its_coding(text):
    from urllib.parse import unquote

    encoded = percent_encoded(text)
    assert encoded.isascii()
    assert unquote(encoded.decode()) == text
