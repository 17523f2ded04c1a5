"""The sizes in the metadata of a published file are those of the proof, and the server reads them as they are meant."""

from __future__ import annotations

import json

import pytest

from normfold.export.inputs.sizes import Sizes, find_sizes
from normfold.export.inputs.specs import parse_inputs
from normfold.export.publishing.provenance import proved_sizes
from normfold.serving.wire.proved_sizes import parse


def found(*texts: str, takes=lambda sizes: True) -> Sizes:
    """The sizes that a search finds for a network that runs where ``takes`` says so."""

    def attempt(sizes):
        if not takes(sizes):
            raise ValueError

    return find_sizes(parse_inputs(texts), attempt)


def test_the_smallest_size_is_the_one_that_was_found_and_there_is_no_largest() -> None:
    content = json.loads(proved_sizes(found("x=FP32[N,77,L]", takes=lambda s: s["L"] >= 9)))
    assert content["schema"] == 1
    assert content["inputs"] == {"x": ["N", 77, "L"]}
    assert content["dimensions"]["N"] == {"low": 1, "high": None, "step": 1, "tried": [1, 2, 5]}
    assert content["dimensions"]["L"] == {"low": 9, "high": None, "step": 1, "tried": [9, 32, 33, 35, 65]}


def test_a_step_that_was_found_is_kept() -> None:
    content = json.loads(proved_sizes(found("x=FP32[N,L]", takes=lambda s: s["L"] % 16 == 0)))
    assert content["dimensions"]["L"] == {"low": 16, "high": None, "step": 16, "tried": [16, 32, 48, 80]}


def test_declared_bounds_are_kept_and_every_tried_size_lies_within() -> None:
    content = json.loads(proved_sizes(found("x=FP32[1,3,L:9..100]", "y=FP32[L:9..100]")))
    assert content["dimensions"] == {"L": {"low": 9, "high": 100, "step": 1, "tried": [9, 32, 33, 35, 100]}}
    assert content["inputs"] == {"x": [1, 3, "L"], "y": ["L"]}


def test_a_bound_that_is_no_whole_number_of_steps_away_moves_to_the_first_that_is() -> None:
    sizes = found("x=FP32[L:8..]", takes=lambda s: s["L"] == 8 or s["L"] % 16 == 5)
    content = json.loads(proved_sizes(sizes))["dimensions"]["L"]
    assert (content["low"] - sizes.trace["L"]) % content["step"] == 0
    assert sizes.trace["L"] in content["tried"]


@pytest.mark.parametrize("text", ["x=FP32[N,77,L]", "x=FP32[N:1..4,L:8..64:8]", "x=FP32[2,3]"])
def test_the_server_reads_what_the_export_writes(text: str) -> None:
    sizes = found(text)
    read = parse(proved_sizes(sizes))
    for each in sizes.proof:
        assert read.refusal({s.name: s.shape(each) for s in sizes.specs}) == ""
