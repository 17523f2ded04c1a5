"""Scores of a classifier, from its answers and the right classes. Needs numpy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


def accuracy(truth: Indices, predicted: Indices) -> float:
    """Return the share of answers that are right; both (N,)."""
    return float(np.mean(truth == predicted))


def f1_per_class(truth: Indices, predicted: Indices, classes: int) -> NDArray[np.float64]:
    """Return 2TP / (2TP + FP + FN) of each class, (classes,); 0 for a class without samples and answers."""
    right = np.bincount(truth[truth == predicted], minlength=classes)
    claimed = np.bincount(truth, minlength=classes) + np.bincount(predicted, minlength=classes)
    f1: NDArray[np.float64] = 2 * right / np.maximum(claimed, 1)
    return f1


def macro_f1(truth: Indices, predicted: Indices, classes: int) -> float:
    """Return the mean of ``f1_per_class``: every class counts the same, however rare."""
    return float(np.mean(f1_per_class(truth, predicted, classes)))
