"""Dataclasses as values of JSON, and back: nothing is taken that is not of its field's type."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from normfold.serving.process.typed_json import from_values, to_values


@dataclass(frozen=True)
class Inner:
    data: bytes
    pair: tuple[str, int]


@dataclass(frozen=True)
class Outer:
    path: Path
    choice: bool | None
    size: float
    names: tuple[str, ...]
    inner: tuple[Inner, ...]
    rest: bytes | None


SAMPLE = Outer(Path("a/b"), None, 2.5, ("x", "ü"), (Inner(b"1", ("p", 1)), Inner(b"22", ("q", 2))), b"333")


def values(sample: Outer = SAMPLE) -> tuple[dict, list[bytes]]:
    parts: list[bytes] = []
    return json.loads(json.dumps(to_values(sample, parts))), parts


@pytest.mark.parametrize("sample", [SAMPLE, replace(SAMPLE, choice=True, names=(), inner=(), rest=None)])
def test_what_is_written_is_read_again(sample):
    written, parts = values(sample)
    assert from_values(Outer, written, parts) == sample


def test_bytes_are_kept_beside_the_json():
    assert values()[1] == [b"1", b"22", b"333"]


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("path", 1, "Outer.path must be Path, got int"),
        ("path", None, "Outer.path must be Path, got NoneType"),
        ("choice", 1, "Outer.choice must be bool, got int"),
        ("size", "2", "Outer.size must be float, got str"),
        ("size", True, "Outer.size must be float, got bool"),
        ("names", "xy", "Outer.names must be tuple"),
        ("names", [1], "Outer.names must be str, got int"),
        ("inner", [{"data": 0, "pair": ["p"]}], "Inner.pair must be tuple"),
        ("inner", [{"data": 9, "pair": ["p", 1]}], "Inner.data must be bytes, got int"),
        ("inner", [{"data": 0}], r"Inner has unknown fields \[\] and lacks \['pair'\]"),
        ("rest", -1, "Outer.rest must be bytes, got int"),
    ],
)
def test_a_value_of_another_type_is_refused(field, value, words):
    written, parts = values()
    with pytest.raises(ValueError, match=words):
        from_values(Outer, {**written, field: value}, parts)


def test_unknown_and_missing_fields_are_refused():
    written, parts = values()
    with pytest.raises(ValueError, match=r"Outer has unknown fields \['new'\] and lacks \[\]"):
        from_values(Outer, {**written, "new": 1}, parts)
    del written["size"]
    with pytest.raises(ValueError, match=r"lacks \['size'\]"):
        from_values(Outer, written, parts)
