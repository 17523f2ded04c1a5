from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from normfold.export.errors import StateError
from normfold.export.inputs.sizes import usual_sizes
from normfold.export.inputs.specs import UNLIMITED, parse_inputs, random_inputs
from normfold.export.inputs.values import find_values


def found(condition: Any, *texts: str) -> tuple[list[str], tuple[str, ...]]:
    """Return the inputs, as text, of a network that refuses what ``condition`` refuses."""

    def run(arrays: Mapping[str, Any]) -> None:
        if not condition(**arrays):
            raise IndexError

    specs = parse_inputs(texts)
    specs, notes = find_values(specs, run, usual_sizes(specs))
    return [str(s) for s in specs], notes


X = "x=FP32[N,3,L]"


@pytest.mark.parametrize(
    ("condition", "given", "expected"),
    [
        (lambda x, k: k.min() >= 0 and k.max() < 85, "k=INT64[N,L]", "k=INT64[N,L]:0..84"),
        (lambda x, k: k.min() >= 1 and k.max() <= x.shape[2], "k=INT64[N]", "k=INT64[N]:1..L"),
        (lambda x, k: k.min() >= 0 and k.max() <= x.shape[2], "k=INT32[N]", "k=INT32[N]:1..L"),
        (lambda x, k: k.min() >= 0 and k.max() < x.shape[2], "k=INT64[N]", "k=INT64[N]:0..L-1"),
        (lambda x, k: k.min() >= 0 and k.max() < 32, "k=INT64[N,L]", "k=INT64[N,L]:0..31"),
        (lambda x, k: x.shape[2] % 48 == 0 and k.min() > 0 and k.max() <= x.shape[2], "k=INT64[N]", "k=INT64[N]:1..L"),
        (lambda x, k: x.shape[2] >= 64 and k.min() > 0 and k.max() <= x.shape[2], "k=INT8[N]", "k=INT8[N]:1..L"),
        (lambda x, k: True, "k=INT16[N,L]", "k=INT16[N,L]:-32768..32767"),
        (lambda x, k: k.max() < 9, "k=UINT8[N,L]", "k=UINT8[N,L]:0..8"),
        (lambda x, k: k.max() < 9, "k=INT64[N]:0..5", "k=INT64[N]:0..5"),
        (lambda x, k: False, "k=INT64[N]", "k=INT64[N]"),
    ],
)
def test_the_values_that_the_network_takes_are_found(condition: Any, given: str, expected: str) -> None:
    (_, text), notes = found(condition, X, given)
    assert (text, notes) == (expected, ())
    assert str(parse_inputs([X, text])[1]) == text


def test_where_every_value_is_taken_a_note_says_which_were_tried() -> None:
    (_, text), (note,) = found(lambda x, lengths: True, X, "lengths=INT64[N]")
    assert text == "lengths=INT64[N]:1..L"
    assert note == (
        "lengths was tried with values from 1 to L; if it takes others, give them: --input 'lengths=INT64[N]:low..high'"
    )
    (text,), (note,) = found(lambda mask: True, "mask=INT64[N,L]")
    assert text == "mask=INT64[N,L]"
    assert note.startswith("mask was tried with the values 0 and 1 only; ")


def test_two_inputs_have_their_own_values() -> None:
    texts, notes = found(
        lambda tokens, lengths: tokens.max() < 85 and lengths.min() >= 1 and lengths.max() <= tokens.shape[1],
        "tokens=INT64[N,L]",
        "lengths=INT64[N]",
    )  # fmt: skip
    assert (texts, notes) == (["tokens=INT64[N,L]:0..84", "lengths=INT64[N]:1..L"], ())


def test_a_declared_range_is_kept_to_and_stays_within_the_length() -> None:
    def run(arrays: Mapping[str, Any]) -> None:
        if arrays["lengths"].max() > arrays["x"].shape[2]:
            raise IndexError

    specs = parse_inputs([X, "lengths=INT64[N]:1..250"])
    specs, notes = find_values(specs, run, usual_sizes(specs))
    assert (str(specs[1]), specs[1].limit, notes) == ("lengths=INT64[N]:1..250", "L", ())
    for size, largest in ((1, 1), (40, 40), (1000, 250)):
        drawn = random_inputs(specs, {"N": 500, "L": size}, np.random.default_rng(0))["lengths"]
        assert drawn.min() >= 1
        assert largest // 2 <= drawn.max() <= largest


def test_state_is_not_a_refusal_and_floats_are_not_probed() -> None:
    def stateful(arrays: Mapping[str, Any]) -> None:
        raise StateError("keeps state")

    specs = parse_inputs([X, "k=INT64[N]"])
    with pytest.raises(StateError):
        find_values(specs, stateful, usual_sizes(specs))
    assert find_values(specs[:1], stateful, usual_sizes(specs)) == (specs[:1], ())


def test_a_limit_is_written_by_its_dimension() -> None:
    (_, spec) = parse_inputs([X, "k=INT64[N]: 0 .. L - 1 "])
    assert (spec.values, spec.limit, spec.below) == ((0, UNLIMITED), "L", 1)
    assert spec.drawn({"N": 1, "L": 9}) == (0, 8)
