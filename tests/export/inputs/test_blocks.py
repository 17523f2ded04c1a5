"""The sizes at which a network that works in blocks is traced and proved."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from normfold.export.errors import CaptureError
from normfold.export.inputs.blocks import Blocks, refusing, sizes_around_blocks, sizes_with_blocks
from normfold.export.inputs.specs import parse_inputs

LARGE = 1 << 21


def blocks(each: int, size: Callable[[Mapping[str, int]], int] = lambda s: s["L"], *names: str) -> Blocks:
    return Blocks(each, "net.py:3 in forward", names or ("L",), size)


@pytest.mark.parametrize(
    ("dims", "each", "expected"),
    [
        ("L", 100, 267),
        ("L:8..", 100, 267),
        ("L:8..:16", 100, 280),
        ("L:8..250", 100, 202),  # no room for two and two thirds: for two and two entries
        ("L:8..201", 100, None),
        ("L", 1, 3),
        ("L", 2, 6),
        ("L:1000..", 100, 1000),
    ],
)
def test_a_trace_has_two_blocks_and_a_rest(dims: str, each: int, expected: int | None) -> None:
    found = sizes_with_blocks(blocks(each), parse_inputs([f"x=FP32[N,3,{dims}]"]), {"N": 2, "L": 8})
    assert found == (None if expected is None else {"N": 2, "L": expected})


def test_the_size_may_follow_from_the_inputs_in_any_way() -> None:
    quarter = blocks(10, lambda s: s["L"] // 4 - 1)
    specs = parse_inputs(["x=FP32[N,3,L]"])
    assert sizes_with_blocks(quarter, specs, {"N": 2, "L": 32}) == {"N": 2, "L": 4 * 28}
    around = sizes_around_blocks(quarter, specs, {"N": 2, "L": 32}, LARGE)
    assert [quarter.size(s) for s in around] == [10, 11, 20, 21, 36]


def test_every_dimension_that_the_size_depends_on_is_varied_and_large_inputs_are_left_out() -> None:
    rows = blocks(10, lambda s: s["N"] * s["L"], "N", "L")
    specs = parse_inputs(["x=FP32[N,3,L]"])
    around = sizes_around_blocks(rows, specs, {"N": 2, "L": 8}, LARGE)
    assert {"N": 2, "L": 18} in around
    assert {"N": 5, "L": 8} in around
    small = sizes_around_blocks(rows, specs, {"N": 2, "L": 8}, 60)
    assert small == [s for s in around if 3 * s["N"] * s["L"] <= 60]
    assert {"N": 2, "L": 6} in small


def test_a_range_with_room_for_one_block_only_is_known() -> None:
    assert blocks(10).only_one(parse_inputs(["x=FP32[N,3,L:1..10]"]))
    assert not blocks(10).only_one(parse_inputs(["x=FP32[N,3,L:1..11]"]))
    assert not blocks(10).only_one(parse_inputs(["x=FP32[N,3,L]"]))


def test_only_a_capture_with_blocks_gets_their_sentence() -> None:
    sentence = r"into blocks of 10 at net\.py:3 in forward: .* \(another graph\)"
    with pytest.raises(CaptureError, match=sentence), refusing([blocks(10)]):
        raise CaptureError("another graph")
    with pytest.raises(CaptureError, match=r"^another graph$"), refusing([]):
        raise CaptureError("another graph")
