"""Surnames as one-hot arrays. Needs numpy only, so a client of the served network needs no torch.

A name is decomposed (Unicode NFKD) and lower-cased, so that ``é`` is ``e`` and an accent, each a token of its own: an
accented letter that no training name had still shows its letter. It stands between two markers, zeros follow.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from normfold.models.surnames import VOCABULARY

BEGIN, END, UNKNOWN = "<begin>", "<end>", "<unknown>"

#: Fewest zeros after a name. With them the last character has been in every place of the network's receptive field and
#: one window holds nothing but zeros, so more zeros cannot change the answer: names of any length share a batch.
TAIL = 7
#: Lengths are multiples of this, so that most names have the same length and a server can batch them.
STEP = 8


@dataclass(frozen=True)
class Vectorizer:
    """A vocabulary, and names as one-hot arrays over it.

    >>> vectorizer = Vectorizer.load()
    >>> vectorizer(["Garcia", "Müller"]).shape == (2, len(vectorizer.tokens), 24)
    True
    """

    #: What each channel stands for: the two markers, the unknown character, then single characters.
    tokens: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.tokens[:3] != (BEGIN, END, UNKNOWN):
            raise ValueError(f"tokens: begin with {self.tokens[:3]}, must begin with {(BEGIN, END, UNKNOWN)}")
        if len(set(self.tokens)) != len(self.tokens):
            raise ValueError("tokens: a token occurs twice")

    @classmethod
    def of_names(cls, names: Iterable[str]) -> Vectorizer:
        """Return a vectorizer that knows every character of ``names``, in code point order."""
        return cls((BEGIN, END, UNKNOWN, *sorted(set().union(*map(_characters, names)))))

    @classmethod
    def load(cls, path: Path = VOCABULARY) -> Vectorizer:
        """Return the vectorizer of a ``vocabulary.json``: a list of tokens; by default the trained network's."""
        return cls(tuple(json.loads(path.read_text(encoding="utf-8"))))

    def indices(self, names: Sequence[str]) -> NDArray[np.int64]:
        """Return the tokens of ``names`` as an (N, L) array; -1 stands for a zero column.

        L is the least multiple of ``STEP`` that leaves ``TAIL`` columns after the longest name. A character outside the
        vocabulary counts as unknown, an accent outside it is left out.

        Raises:
            ValueError: a name has no character, or there are no names.
        """
        if not names:
            raise ValueError("names: none given; give at least one")
        channel = {token: index for index, token in enumerate(self.tokens)}
        rows = []
        for name in names:
            characters = [c for c in _characters(name) if c in channel or not unicodedata.combining(c)]
            if not characters:
                raise ValueError(f"names: {name!r} has no character to classify")
            rows.append([channel[BEGIN], *(channel.get(c, channel[UNKNOWN]) for c in characters), channel[END]])
        result = np.full((len(rows), padded_length(max(map(len, rows)))), -1, dtype=np.int64)
        for row, columns in zip(result, rows, strict=True):
            row[: len(columns)] = columns
        return result

    def __call__(self, names: Sequence[str]) -> NDArray[np.float32]:
        """Return ``names`` one-hot, (N, V, L) with V = ``len(tokens)``; see ``indices`` for L and for what raises."""
        one_hot: NDArray[np.bool_] = self.indices(names)[:, None, :] == np.arange(len(self.tokens))[:, None]
        return one_hot.astype(np.float32)


def padded_length(columns: int) -> int:
    """Return the least multiple of ``STEP`` that leaves ``TAIL`` columns after ``columns`` of them."""
    return -(-(columns + TAIL) // STEP) * STEP


def _characters(name: str) -> str:
    """Return ``name`` in the form the vocabulary is written in: decomposed, trimmed, lower case."""
    return unicodedata.normalize("NFKD", name).strip().lower()
