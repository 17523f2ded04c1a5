"""Many elements are handled in pieces, so that no thread keeps the interpreter for long."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from normfold.protos.datatypes import by_name
from normfold.serving.runtime import session
from normfold.serving.wire import classification, tensors
from normfold.serving.wire.tensors import split_elements, to_array, to_raw
from normfold.serving.wire.turns import ELEMENTS, pieces
from normfold.serving.wire.typed import Typed, fill_typed

COUNT = 3 * ELEMENTS + 5
STRINGS = [str(number).encode() for number in range(COUNT)]


class Noted(list):
    """Notes the sizes of the pieces that are read of it or added to it."""

    def __init__(self, elements=()):
        super().__init__(elements)
        self.sizes = []

    def __getitem__(self, key):
        found = super().__getitem__(key)
        self.sizes.append(len(found))
        return found

    def extend(self, elements):
        self.sizes.append(len(elements))
        super().extend(elements)


@pytest.mark.parametrize("count", [0, 1, ELEMENTS, ELEMENTS + 1, COUNT])
def test_the_pieces_are_the_whole(count):
    assert [each for piece in pieces(count) for each in range(count)[piece]] == list(range(count))


def test_strings_become_an_array_in_pieces():
    strings = Noted(STRINGS)
    array = to_array(Typed(strings), (COUNT,), by_name("BYTES"), "x", "")
    assert list(array) == STRINGS
    assert strings.sizes == [ELEMENTS] * 3 + [5]


@pytest.mark.parametrize(("datatype", "values"), [("BYTES", STRINGS), ("INT64", range(COUNT))])
def test_typed_contents_are_written_in_pieces(datatype, values):
    field = by_name(datatype).contents_field
    contents = SimpleNamespace(**{field: Noted()})
    fill_typed(contents, np.array(values, object if datatype == "BYTES" else np.int64), by_name(datatype))
    assert list(getattr(contents, field)) == list(values)
    assert getattr(contents, field).sizes == [ELEMENTS] * 3 + [5]


def test_strings_become_raw_contents_in_pieces(monkeypatch):
    sizes = []

    def noted(count):
        found = list(pieces(count))
        sizes.append(len(found))
        return found

    monkeypatch.setattr(tensors, "pieces", noted)
    array = np.array(STRINGS, object).reshape(COUNT, 1)
    assert split_elements(to_raw(array, by_name("BYTES")), COUNT, "x") == STRINGS
    assert sizes == [4]


@pytest.mark.parametrize(
    ("module", "work", "elements"),
    [
        (session, session._texts, STRINGS),
        (session, session._bytes, [text.decode() for text in STRINGS]),
        (classification, lambda array: classification.classify(array, COUNT, (), False), range(COUNT)),
    ],
)
def test_strings_and_classes_become_objects_in_pieces(monkeypatch, module, work, elements):
    counts = []
    monkeypatch.setattr(module, "pieces", lambda count: (counts.append(count), *pieces(count))[1:])
    array = np.array(elements, np.float32 if isinstance(elements, range) else object)
    assert work(array).shape == (COUNT,)
    assert counts == [COUNT]
