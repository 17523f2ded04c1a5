from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score

from normfold.models.scores import accuracy, f1_per_class, macro_f1

CLASSES = 5
PAIRS = st.lists(st.tuples(st.integers(0, CLASSES - 1), st.integers(0, CLASSES - 1)), min_size=1, max_size=40)


@given(PAIRS)
def test_scores_are_those_of_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    truth, predicted = np.array(pairs, dtype=np.int64).T
    reference = f1_score(truth, predicted, labels=range(CLASSES), average=None, zero_division=0)
    assert f1_per_class(truth, predicted, CLASSES) == pytest.approx(reference)
    assert macro_f1(truth, predicted, CLASSES) == pytest.approx(reference.mean())
    assert accuracy(truth, predicted) == pytest.approx(accuracy_score(truth, predicted))
