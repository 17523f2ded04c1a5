"""Baselines for the network: the majority class, and logistic regression on character n-grams (scikit-learn)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from normfold.models.scores import Indices


def majority(classes: Indices, count: int) -> Indices:
    """Return the most frequent class in ``classes``, ``count`` times."""
    return np.full(count, np.bincount(classes).argmax())


def logistic_regression(
    surnames: Sequence[str], classes: Indices, asked: Sequence[str], *, markers: bool, balanced: bool
) -> Indices:
    """Return the class of each surname in ``asked`` by logistic regression on counts of character 1-3-grams.

    ``markers`` are put before and after each name, so that n-grams show where a name begins and ends, as the input of
    the network does. ``balanced`` weighs each class by its inverse frequency.
    """
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    def form(names: Sequence[str]) -> list[str]:
        return [f"^{name}$" if markers else name for name in names]

    counter = CountVectorizer(analyzer="char", ngram_range=(1, 3), lowercase=True)
    model = LogisticRegression(max_iter=1000, class_weight="balanced" if balanced else None)
    model.fit(counter.fit_transform(form(surnames)), classes)
    return np.asarray(model.predict(counter.transform(form(asked))), dtype=np.int64)
