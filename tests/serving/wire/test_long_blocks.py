"""Long header blocks: read in steps they mean what they mean at once."""

from __future__ import annotations

import hpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.serving.wire.test_http2_headers import LARGE, literal, table_after, table_of_hpack

from normfold.serving.wire.http2_headers import CODED_BYTES, LIST_BYTES, HeaderError, HeaderReader
from normfold.serving.wire.long_blocks import STEP_BYTES, LongBlock

HEADERS = st.lists(st.tuples(st.binary(max_size=600), st.binary(max_size=2000), st.booleans()), max_size=12)


def plain(block: bytes) -> tuple[bytes, int]:
    """The plain block, and the steps that it took."""
    long, steps = LongBlock(block), 1
    while (whole := long.step()) is None:
        steps += 1
    return whole, steps


@given(HEADERS)
def test_the_plain_block_has_the_same_headers_and_leaves_the_same_table(headers):
    encoder, reader, expected = hpack.Encoder(), HeaderReader(), HeaderReader()
    for table in (4096, 100):
        encoder.header_table_size = table
        block = encoder.encode(
            [hpack.HeaderTuple(n, v) if add else hpack.NeverIndexedHeaderTuple(n, v) for n, v, add in headers]
        )
        assert reader.read(plain(block)[0]) == expected.read(block)
        assert reader._table == expected._table


@settings(deadline=None)
@given(LARGE)
def test_the_plain_block_of_one_that_is_too_large_leaves_the_table_as_hpack_does(values):
    block = b"".join(literal(*value) for value in values)
    assert table_after(plain(block)[0]) == table_of_hpack(block)


@given(st.binary(max_size=60))
def test_any_bytes_are_refused_as_at_once(block):
    try:
        expected = HeaderReader().read(block)
    except HeaderError:
        expected = None
    try:
        got = HeaderReader().read(plain(block)[0])
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
    whole = plain(block)[0]
    monkeypatch.setattr("normfold.serving.wire.http2_headers.decode_huffman", None)
    reader = HeaderReader()
    reader.read(whole)
    assert reader.too_large
    assert not reader._table


def test_the_huffman_code_of_a_block_is_bounded():
    with pytest.raises(HeaderError, match="in Huffman code"):
        plain(literal(1000, True, True) * ((LIST_BYTES + CODED_BYTES) // 5000 + 1))
