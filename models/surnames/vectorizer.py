"""Surnames as one-hot arrays. Needs numpy only, so a client of the served network needs no torch.

A name is decomposed (Unicode NFKD) and converted to lower case: ``é`` becomes two tokens, ``e`` and an accent, so that
the letter is known even if no training name had this accent on it. A marker is put before and after the name; zeros
follow.
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

#: Smallest number of zeros after a name. With them the last character has been at every place of the network's
#: receptive field, and one window holds only zeros. More zeros cannot change the answer, so names of any length share a
#: batch.
TAIL = 7
#: Lengths are multiples of this: most names then have the same length, and a server can batch them.
STEP = 8


@dataclass(frozen=True)
class Vectorizer:
    """A vocabulary, and names as one-hot arrays over it.

    >>> vectorizer = Vectorizer.load()
    >>> vectorizer(["Garcia", "Müller"]).shape == (2, len(vectorizer.tokens), 24)
    True
    """

    #: The token of each channel: the two markers, the unknown character, then single characters.
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
        """Return the vectorizer of a ``vocabulary.json``, a list of tokens; by default that of the trained network."""
        return cls(tuple(json.loads(path.read_text(encoding="utf-8"))))

    def indices(self, names: Sequence[str]) -> NDArray[np.int64]:
        """Return the tokens of ``names`` as an (N, L) array; -1 means a zero column.

        L is the smallest multiple of ``STEP`` that leaves ``TAIL`` columns after the longest name. A character that is
        not in the vocabulary becomes the unknown character; an accent that is not in it is left out.

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
        """Return ``names`` one-hot, (N, V, L), V = ``len(tokens)``; L and errors are those of ``indices``."""
        one_hot: NDArray[np.bool_] = self.indices(names)[:, None, :] == np.arange(len(self.tokens))[:, None]
        return one_hot.astype(np.float32)


def padded_length(columns: int) -> int:
    """Return the smallest multiple of ``STEP`` that leaves ``TAIL`` columns after the first ``columns``."""
    return -(-(columns + TAIL) // STEP) * STEP


def _characters(name: str) -> str:
    """Return ``name`` as the vocabulary has it: decomposed, trimmed, in lower case."""
    return unicodedata.normalize("NFKD", name).strip().lower()
