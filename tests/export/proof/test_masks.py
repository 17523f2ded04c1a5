"""Masks as real inputs have them."""

from __future__ import annotations

import numpy as np

from normfold.export.inputs.specs import parse_inputs, random_inputs
from normfold.export.proof.masks import mask_cases

SIZES = {"N": 40, "L": 5}


def test_a_mask_is_true_or_false_behind_the_end_of_each_row_which_has_an_element_and_padding() -> None:
    specs = parse_inputs(["x=FP32[N,L]", "pad=BOOL[N,L]", "flag=BOOL[N]", "one=BOOL[N,1]", "known=BOOL[N,L]:0..0"])
    rng = np.random.default_rng(0)
    drawn = random_inputs(specs, SIZES, rng)
    true, false = mask_cases(specs, drawn, rng)
    pad = true.inputs["pad"]
    assert {tuple(row) for row in pad.tolist()} == {(*[False] * n, *[True] * (5 - n)) for n in range(1, 5)}
    np.testing.assert_array_equal(false.inputs["pad"], ~pad)
    for case in (true, false):
        assert case.kind == "masks"
        for name in ("x", "flag", "one", "known"):
            assert case.inputs[name] is drawn[name]


def test_there_is_no_such_case_without_a_mask() -> None:
    specs = parse_inputs(["x=FP32[N,L]", "flag=BOOL[N]", "known=BOOL[N,L]:0..1"])
    rng = np.random.default_rng(0)
    assert not list(mask_cases(specs, random_inputs(specs, SIZES, rng), rng))
