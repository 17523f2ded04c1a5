from __future__ import annotations

import numpy as np
import pytest

from normfold.export.errors import InputSpecError
from normfold.export.inputs.specs import (
    Dimension,
    dimensions,
    parse_input,
    parse_inputs,
    random_inputs,
    specs_of_samples,
)


def test_names_ranges_and_sizes_are_read() -> None:
    spec = parse_input(" x = fp32[ N:1..64, 77, L:5.. ] ")
    assert (spec.name, spec.datatype.name) == ("x", "FP32")
    assert spec.dims == (Dimension("N", 1, 64), 77, Dimension("L", 5, None))
    assert parse_input("mask=BOOL[N,L:..9]").dims == (Dimension("N"), Dimension("L", None, 9))
    assert parse_input("tokens=INT64[N,L]:0..84").values == (0, 84)
    assert parse_input("scalar=FP32[]").dims == ()
    assert parse_input("x=FP32[L:8..400:8, M : 9 .. : 4]").dims == (
        Dimension("L", 8, 400, 8),
        Dimension("M", 9, None, 4),
    )
    assert parse_input("x=FP32[L:..:8]").dims == (Dimension("L", 8, None, 8),), "the multiples of 8"


def test_a_dimension_holds_the_sizes_of_its_range_and_step() -> None:
    assert [n for n in range(40) if Dimension("L", 9, 33, 8).holds(n)] == [9, 17, 25, 33]
    assert [n for n in range(5) if Dimension("L").holds(n)] == [1, 2, 3, 4]


def test_what_is_printed_is_read_back_the_same() -> None:
    for text in (
        "x=FP32[N,77,L]",
        "x=FP32[N:1..64,77,L:5..]",
        "t=INT64[N]:0..9",
        "x=FP32[L:8..96:8]",
        "a=UINT8[..]".replace("..", "M:..7"),
    ):
        assert str(parse_input(str(parse_input(text)))) == str(parse_input(text)) == text


def test_a_range_given_once_holds_for_every_use_of_the_name() -> None:
    a, b = parse_inputs(["a=FP32[N:1..8,3]", "b=INT64[N,5]"])
    assert a.dims[0] == b.dims[0] == Dimension("N", 1, 8)
    assert dimensions((a, b)) == (Dimension("N", 1, 8),)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x", "expected NAME=DTYPE[dims]"),
        ("x=FP32", "expected NAME=DTYPE[dims]"),
        ("x=FP32[N", "expected NAME=DTYPE[dims]"),
        ("x=float32[N]", "did you mean FP32"),
        ("x=FP31[N]", "did you mean FP32"),
        ("x=BYTES[N]", "cannot be BYTES"),
        ("x=FP32[-1,3]", "give the dynamic dimension a name"),
        ("x=FP32[N,,3]", "give the dynamic dimension a name"),
        ("x=FP32[N,0]", "not a size"),
        ("x=FP32[10000000000]", "not a size"),
        (f"x=FP32[{'9' * 5000}]", "a number of 20 digits or more"),
        (f"x=FP32[L:1..{'9' * 5000}]", "a number of 20 digits or more"),
        (f"x=INT64[N]:0..{'9' * 5000}", "a number of 20 digits or more"),
        ("x=FP32[L:9..3]", "empty range"),
        ("x=FP32[L:0..3]", "empty range"),
        ("x=FP32[L:8..64:0]", "empty range"),
        ("x=FP32[L:8]", "nor a range such as L:5..400 or L:8..400:8"),
        ("x=FP32[Nx2xL]", "dimensions are separated by commas: N,2,L instead of Nx2xL"),
        ("x=FP32[L*2]", "neither a size, a name, nor a range"),
        ("../x=FP32[N]", "not a name for an input"),
        ("2x=FP32[N]", "not a name for an input"),
        ("x y=FP32[N]", "not a name for an input"),
        ("x\x07=FP32[N]", "not a name for an input"),
        ("x\x1b[31m", "expected NAME=DTYPE[dims]"),
        ("x=FP32[N\x1b]", "neither a size, a name, nor a range"),
        ("x=INT64[N]:9..3", "run backwards"),
        ("x=UINT8[N]:-5..5", "UINT8 holds numbers from 0 to 255, not -5"),
        ("x=INT8[N]:0..128", "INT8 holds numbers from -128 to 127, not 128"),
        ("x=UINT8[N]:-1..N", "UINT8 holds numbers from 0 to 255, not -1"),
        ("x=INT64[N]:0..9999999999999999999", "INT64 holds numbers from"),
        ("x=FP32[N]:0..1", "values 0..1 are for integers and BOOL"),
        ("x=BOOL[N]:0..7", "the values of BOOL are 0..1, 0..0 (always false) or 1..1"),
        ("x=INT64[N]:1..L:3", "expected NAME=DTYPE[dims]"),
    ],
)
def test_an_input_that_cannot_be_read_says_what_and_shows_the_form(text: str, expected: str) -> None:
    with pytest.raises(InputSpecError) as caught:
        parse_input(text)
    assert expected in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["input:0", "serving_default_x:0", "model/in.1:0", "x-1", "x::0"])
def test_the_names_that_other_exporters_give_to_inputs_are_names(name: str) -> None:
    spec = parse_input(f" {name} = INT64[N:1..8, L]:1..L")
    assert (spec.name, [str(d) for d in spec.dims], spec.limit) == (name, ["N:1..8", "L"], "L")
    assert parse_input(str(spec)) == spec


def test_two_inputs_of_one_name_and_two_ranges_of_one_dimension_are_refused() -> None:
    with pytest.raises(InputSpecError, match="described twice"):
        parse_inputs(["x=FP32[N]", "x=FP32[N]"])
    with pytest.raises(InputSpecError, match="no input has a dimension 'M'"):
        parse_inputs(["x=FP32[N,L]", "k=INT64[N]:1..M"])
    with pytest.raises(InputSpecError, match="two ranges"):
        parse_inputs(["x=FP32[N:1..3]", "y=FP32[N:1..4]"])


def test_random_inputs_have_the_shapes_and_stay_within_the_values() -> None:
    specs = parse_inputs(["x=FP32[N,3,L]", "t=INT64[N,L]:2..4", "m=BOOL[N]"])
    drawn = random_inputs(specs, {"N": 2, "L": 50}, np.random.default_rng(0))
    assert {k: (v.shape, v.dtype.name) for k, v in drawn.items()} == {
        "x": ((2, 3, 50), "float32"),
        "t": ((2, 50), "int64"),
        "m": ((2,), "bool"),
    }
    assert set(np.unique(drawn["t"])) == {2, 3, 4}
    specs = parse_inputs(["x=FP32[N,L]", "k=INT8[N]:1..L"])
    lengths = random_inputs(specs, {"N": 500, "L": 400}, np.random.default_rng(0))["k"]
    assert (lengths.min() > 0, lengths.max()) == (True, 127)  # not wrapped around
    scalars = random_inputs(parse_inputs(["a=FP32[]", "b=INT64[]", "c=BOOL[]"]), {}, np.random.default_rng(0))
    assert [(type(v), v.shape, v.dtype.name) for v in scalars.values()] == [
        (np.ndarray, (), "float32"),
        (np.ndarray, (), "int64"),
        (np.ndarray, (), "bool"),
    ]


def test_a_boolean_input_keeps_to_its_values() -> None:
    specs = parse_inputs(["a=BOOL[9]:0..0", "b=BOOL[9]:1..1", "c=BOOL[9]:0..1", "d=BOOL[9]"])
    drawn = random_inputs(specs, {}, np.random.default_rng(0))
    assert [sorted({*drawn[name].tolist()}) for name in "abcd"] == [[False], [True], [False, True], [False, True]]


def test_shapes_are_inferred_from_a_sample() -> None:
    (spec,) = specs_of_samples({"x": np.zeros((4, 77, 17), np.float32)})
    assert str(spec) == "x=FP32[N,77,17]"
    assert str(specs_of_samples({"t": np.float32(2.5)})[0]) == "t=FP32[]"  # type: ignore[dict-item]
    with pytest.raises(InputSpecError, match="complex64"):
        specs_of_samples({"x": np.zeros((4, 2), np.complex64)})
