"""The sizes that a model was proved for: which are refused, in which words, and what is no such text."""

from __future__ import annotations

import json

import pytest

from normfold.serving.wire.proved_sizes import parse

SIZES = {
    "schema": 1,
    "dimensions": {
        "N": {"low": 1, "high": None, "step": 1, "tried": [1, 2, 5]},
        "L": {"low": 8, "high": None, "step": 1, "tried": [4096, 8, 32]},
        "T": {"low": 16, "high": 64, "step": 16, "tried": [16, 64]},
    },
    "inputs": {"x": ["N", 3, "L"], "y": ["N", "L"], "z": ["T"]},
}
T = "this model takes T from 16 to 64, in steps of 16; it was proved for 16 to 64"


def changed(*path, value):
    """``SIZES`` as text, with the entry at ``path`` replaced."""
    copy = json.loads(json.dumps(SIZES))
    place = copy
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return json.dumps(copy)


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({"x": (1, 3, 8), "y": (1, 8), "z": (32,)}, ""),
        ({"x": (1, 3, 99999)}, ""),
        (
            {"x": (1, 3, 4)},
            "input 'x': L is 4; this model takes L from 8; it was proved for 8 to 4096",
        ),
        (
            {"x": (1, 3, 8), "y": (1, 9)},
            "input 'y': L is 9, but 8 in input 'x'; both must be equal",
        ),
        (
            {"z": (20,)},
            "input 'z': T is 20; " + T,
        ),
        (
            {"z": (80,)},
            "input 'z': T is 80; " + T,
        ),
        ({"x": (0, 3, 8)}, "input 'x': N is 0; this model takes N from 1; it was proved for 1 to 5"),
    ],
)
def test_a_size_outside_is_refused_in_a_sentence_with_the_range(shapes, words):
    assert parse(json.dumps(SIZES)).refusal(shapes) == words


def test_no_rows_at_all_are_right_where_the_first_dimension_is_the_batch():
    assert parse(json.dumps(SIZES)).refusal({"x": (0, 3, 8)}, batched=True) == ""
    assert "L is 0" in parse(json.dumps(SIZES)).refusal({"x": (1, 3, 0)}, batched=True)


def test_a_size_above_every_size_that_was_tried_is_named():
    sizes = parse(json.dumps(SIZES))
    assert sizes.beyond({"x": (1, 3, 4097)}) == "input 'x': L is 4097; it was proved for 8 to 4096"
    assert sizes.beyond({"x": (1, 3, 4096)}) == ""


def test_many_rows_are_not_named_but_a_first_dimension_of_one_input_is():
    alike = parse(changed("inputs", value={"x": ["N", 3, "L"], "y": ["N", "L"]}))
    assert (alike.batch, alike.beyond({"x": (64, 3, 8)})) == ("N", "")
    assert parse(json.dumps(SIZES)).batch is None
    assert parse(json.dumps(SIZES)).beyond({"x": (64, 3, 8)}) == "input 'x': N is 64; it was proved for 1 to 5"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "it is not JSON"),
        ("[" * 100_000, "it is not JSON"),
        ("[]", "must be an object"),
        (changed("schema", value=2), "its schema is 2; this program reads schema 1"),
        (changed("schema", value=True), "its schema is True"),
        (changed("more", value=1), "must be an object with schema, dimensions and inputs"),
        (changed("inputs", value=[]), "inputs must be an object"),
        (changed("dimensions", "L", value=8), "dimension 'L' must be an object with low, high, step and tried"),
        (changed("dimensions", "L", "low", value="8"), "dimension 'L': every size must be a whole number"),
        (changed("dimensions", "L", "low", value=True), "dimension 'L': every size must be a whole number"),
        (changed("dimensions", "L", "step", value=0), "dimension 'L': every size must be a whole number"),
        (changed("dimensions", "L", "high", value=1.5), "dimension 'L': every size must be a whole number"),
        (changed("dimensions", "L", "tried", value=[]), "dimension 'L': tried must be a list of 1 to"),
        (changed("dimensions", "L", "tried", value=[4]), "dimension 'L': a size in tried is not from 8"),
        (changed("dimensions", "T", "high", value=8), "dimension 'T': a size in tried is not from 16 to 8"),
        (changed("inputs", "x", value="NL"), "input 'x' must be a list"),
        (changed("inputs", "x", value=["N", "M"]), "input 'x': 'M' is neither a size nor a dimension"),
        (changed("inputs", "x", value=["N", -1]), "input 'x': '-1' is neither a size nor a dimension"),
    ],
)
def test_a_text_that_is_no_such_text_is_refused_with_the_reason(text, words):
    with pytest.raises(ValueError, match=words):
        parse(text)
