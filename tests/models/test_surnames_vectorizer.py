from __future__ import annotations

import json
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from normfold.models import surnames
from normfold.models.surnames.vectorizer import BEGIN, END, STEP, TAIL, UNKNOWN, Vectorizer

VECTORIZER = Vectorizer.load()
CHANNEL = {token: index for index, token in enumerate(VECTORIZER.tokens)}
LETTERS = st.text(alphabet="abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=30)
#: Any text with at least one character that is neither a space nor an accent, so that there is something to classify.
NAMES = st.builds(lambda text, letter: text + letter, st.text(max_size=25), st.sampled_from("abcxyz"))


def written(name: str) -> list[str]:
    """The tokens of one name, read from its one-hot columns."""
    (columns,) = VECTORIZER([name])
    return [VECTORIZER.tokens[int(column.argmax())] for column in columns.T if column.any()]


def test_a_name_stands_between_markers() -> None:
    assert written("Rao") == [BEGIN, "r", "a", "o", END]


def test_upper_and_lower_case_are_one() -> None:
    assert np.array_equal(VECTORIZER(["MCMAHAN"]), VECTORIZER(["McMahan"]))


def test_an_accented_letter_is_its_letter_and_its_accent() -> None:
    assert written("Müller") == [BEGIN, "m", "u", "\N{COMBINING DIAERESIS}", "l", "l", "e", "r", END]


def test_composed_and_decomposed_spellings_are_one() -> None:
    assert np.array_equal(
        VECTORIZER([unicodedata.normalize("NFC", "Żołędź")]), VECTORIZER([unicodedata.normalize("NFD", "Żołędź")])
    )


def test_an_accent_that_training_never_saw_leaves_its_letter() -> None:
    assert "\N{COMBINING CARON}" not in CHANNEL
    assert written("Dvořák") == [BEGIN, "d", "v", "o", "r", "a", "\N{COMBINING ACUTE ACCENT}", "k", END]


def test_a_character_that_training_never_saw_is_unknown() -> None:
    assert written("山a") == [BEGIN, UNKNOWN, "a", END]


@pytest.mark.parametrize("name", ["", "   ", "\N{COMBINING CARON}"])
def test_a_name_without_a_character_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="has no character to classify"):
        VECTORIZER(["Rao", name])


def test_no_names_are_refused() -> None:
    with pytest.raises(ValueError, match="none given"):
        VECTORIZER([])


@given(st.lists(NAMES, min_size=1, max_size=6))
def test_every_column_of_any_text_is_one_hot_or_zero_and_zeros_come_last(names: list[str]) -> None:
    array = VECTORIZER(names)
    assert array.dtype == np.float32
    assert array.shape[:2] == (len(names), len(VECTORIZER.tokens))
    filled = array.sum(axis=1)
    assert set(np.unique(array)) <= {0.0, 1.0}
    assert set(np.unique(filled)) <= {0.0, 1.0}
    assert (np.diff(filled, axis=1) <= 0).all()


@given(st.lists(NAMES, min_size=1, max_size=6))
def test_the_length_is_the_least_multiple_of_the_step_that_leaves_the_tail(names: list[str]) -> None:
    array = VECTORIZER(names)
    longest = int(array.sum(axis=(1, 2)).max())
    assert array.shape[2] % STEP == 0
    assert 0 <= array.shape[2] - (longest + TAIL) < STEP


@given(st.lists(LETTERS, min_size=2, max_size=6))
def test_a_name_has_the_same_columns_alone_and_in_a_batch(names: list[str]) -> None:
    together = VECTORIZER(names)
    for row, name in zip(together, names, strict=True):
        (alone,) = VECTORIZER([name])
        assert np.array_equal(row[:, : alone.shape[1]], alone)
        assert not row[:, alone.shape[1] :].any()


@given(LETTERS)
def test_letters_are_read_back_as_they_were_written(name: str) -> None:
    assert "".join(written(name)[1:-1]) == name


def test_a_vectorizer_of_names_knows_their_characters_only() -> None:
    vectorizer = Vectorizer.of_names(["Bé", "ab"])
    assert vectorizer.tokens == (BEGIN, END, UNKNOWN, "a", "b", "e", "\N{COMBINING ACUTE ACCENT}")


@pytest.mark.parametrize(
    ("tokens", "message"),
    [(("a", "b"), "must begin with"), ((BEGIN, END, UNKNOWN, "a", "a"), "occurs twice")],
)
def test_a_vocabulary_that_is_not_one_is_refused(tokens: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Vectorizer(tokens)


def test_vocabulary_file_is_a_list_of_tokens() -> None:
    assert tuple(json.loads(surnames.VOCABULARY.read_text(encoding="utf-8"))) == VECTORIZER.tokens


def test_importing_models_samples_and_vectorizer_imports_no_torch() -> None:
    code = (
        "import sys, normfold.models.surnames.vectorizer, normfold.models.surnames as s, normfold.models.gunpoint as g;"
        "s.load_samples(), g.load_samples(), s.load_labels(), g.load_labels();"
        "print(sorted({name.partition('.')[0] for name in sys.modules} & {'torch', 'onnx', 'onnxruntime', 'sklearn'}))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
