from __future__ import annotations

from collections.abc import Mapping

import pytest

from normfold.export.errors import InputSpecError
from normfold.export.inputs import parse_inputs
from normfold.export.sizes import batch_dimension, find_sizes


def takes(condition):  # type: ignore[no-untyped-def]
    """A network that refuses every size for which ``condition`` is false."""

    def attempt(sizes: Mapping[str, int]) -> None:
        if not condition(sizes):
            raise RuntimeError(f"refused {dict(sizes)}")

    return attempt


def test_the_shortest_length_is_found_by_trying() -> None:
    specs = parse_inputs(["x=FP32[N,3,L]"])
    sizes = find_sizes(specs, takes(lambda s: s["L"] >= 9))
    assert str(sizes.specs[0]) == "x=FP32[N:1..,3,L:9..]"
    assert {"N": 1, "L": 9} in sizes.proof
    assert {s["N"] for s in sizes.proof} == {1, 2, 5}
    assert len({s["L"] for s in sizes.proof}) >= 4


def test_sizes_that_the_network_refuses_between_accepted_ones_are_left_out() -> None:
    sizes = find_sizes(parse_inputs(["x=FP32[N,3,L]"]), takes(lambda s: s["L"] % 16 == 0))
    assert sizes.trace["L"] == 32
    assert all(s["L"] % 16 == 0 for s in sizes.proof)
    assert 64 in {s["L"] for s in sizes.proof}


def test_declared_corners_are_all_proved() -> None:
    sizes = find_sizes(parse_inputs(["x=FP32[N:1..64,3,L:5..400]"]), takes(lambda s: s["L"] >= 5))
    for corner in ({"N": 1, "L": 5}, {"N": 64, "L": 400}):
        assert corner in sizes.proof


def test_a_declared_bound_that_does_not_run_is_refused_with_one_that_does() -> None:
    with pytest.raises(InputSpecError, match=r"does not run at L = 3: refused .* for example L:9\.\."):
        find_sizes(parse_inputs(["x=FP32[N,3,L:3..]"]), takes(lambda s: s["L"] >= 9))
    with pytest.raises(InputSpecError, match="declared up to 400"):
        find_sizes(parse_inputs(["x=FP32[N,3,L:9..400]"]), takes(lambda s: 9 <= s["L"] <= 300))


def test_a_shape_that_no_size_mends_quotes_the_network() -> None:
    with pytest.raises(InputSpecError, match=r"does not take x FP32\[2, 76, 32\].*refused"):
        find_sizes(parse_inputs(["x=FP32[N,76,L]"]), takes(lambda s: False))


def test_an_upper_bound_beyond_memory_is_proved_as_far_as_it_goes_and_says_so() -> None:
    sizes = find_sizes(parse_inputs(["x=FP32[N,16,L:1..10000000000]"]), takes(lambda s: s["L"] < 10**6))
    assert max(s["N"] * 16 * s["L"] for s in sizes.proof) <= 1 << 21
    assert "not to 10000000000" in sizes.notes[0]


def test_an_input_too_large_to_try_is_refused_without_allocating() -> None:
    with pytest.raises(InputSpecError, match="too large to try"):
        find_sizes(parse_inputs(["x=FP32[60000000,60000000]"]), takes(lambda s: True))


def test_the_sizes_of_a_sample_are_tried_first() -> None:
    sizes = find_sizes(parse_inputs(["x=FP32[N,3,L]"]), takes(lambda s: s["L"] == 17), [{"N": 1, "L": 17}])
    assert sizes.trace == {"N": 2, "L": 17}


def test_the_batch_is_the_dimension_that_every_input_has_first() -> None:
    assert batch_dimension(parse_inputs(["a=FP32[N,3]", "b=FP32[N]"])).name == "N"  # type: ignore[union-attr]
    assert batch_dimension(parse_inputs(["a=FP32[N,3]", "b=FP32[M]"])) is None
    assert batch_dimension(parse_inputs(["a=FP32[2,3]"])) is None
